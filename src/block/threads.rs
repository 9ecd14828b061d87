//! The threads that run a disk's requests, which block.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::eventfd::EventFd;

use super::{Completion, Operation, Request};
use crate::sys::{Role, eventfd, lock, spawn};

/// How many threads a disk has: one for a long flush or discard, and some for reads meanwhile.
const COUNT: usize = 4;

/// How many requests there is room for from the start. More make the queues grow once.
const ROOM: usize = 256;

/// Runs operations, several at a time.
pub(super) trait Serve: Send + Sync + 'static {
    /// What each thread keeps from one operation to the next.
    type Scratch: Default;

    /// Runs `operation` to its end.
    ///
    /// # Errors
    /// If it fails; part of it may have been done then.
    fn serve(&self, operation: &mut Operation, scratch: &mut Self::Scratch) -> io::Result<()>;
}

/// The threads. Dropping it ends them when what has begun is done; the rest is not begun.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// The queue has changed.
    submitted: Condvar,
    done: Mutex<VecDeque<Completion>>,
    bell: Arc<EventFd>,
}

#[derive(Debug)]
struct Queue {
    requests: VecDeque<Request>,
    ending: bool,
}

impl Threads {
    /// Starts threads that run requests by `disk`. Each holds what `watch` makes, also while it panics.
    ///
    /// # Errors
    /// If there are no more threads or descriptors.
    pub(super) fn start<W: Send + 'static>(
        name: &str,
        disk: &Arc<impl Serve>,
        mut watch: impl FnMut() -> W,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                requests: VecDeque::with_capacity(ROOM),
                ending: false,
            }),
            submitted: Condvar::new(),
            done: Mutex::new(VecDeque::with_capacity(ROOM)),
            bell: Arc::new(eventfd()?),
        });
        let mut threads = Self {
            shared,
            threads: Vec::with_capacity(COUNT),
        };
        for _ in 0..COUNT {
            let (shared, disk) = (Arc::clone(&threads.shared), Arc::clone(disk));
            let watch = watch();
            let thread = spawn(Role::Disk(name), move || {
                let _watch = watch;
                shared.run(&*disk);
            })?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }

    /// Is signalled after each completion.
    pub(super) fn bell(&self) -> &Arc<EventFd> {
        &self.shared.bell
    }

    /// Queues a request.
    pub(super) fn submit(&self, request: Request) {
        self.shared.queue().requests.push_back(request);
        self.shared.submitted.notify_one();
    }

    /// Takes back the last request that has not begun, if there is one.
    pub(super) fn cancel(&self) -> Option<Request> {
        self.shared.queue().requests.pop_back()
    }

    /// Takes the next completion, if there is one.
    pub(super) fn completed(&self) -> Option<Completion> {
        self.shared.done().pop_front()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.queue();
            queue.ending = true;
            queue.requests.clear();
        }
        self.shared.submitted.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was already reported by the hook.
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn done(&self) -> MutexGuard<'_, VecDeque<Completion>> {
        lock(&self.done)
    }

    fn run<S: Serve>(&self, disk: &S) {
        let mut scratch = S::Scratch::default();
        while let Some(Request { tag, mut operation }) = self.next() {
            let result = disk.serve(&mut operation, &mut scratch);
            self.done().push_back(Completion {
                tag,
                operation,
                result,
            });
            // It fails only if the counter is full, and then the bell rings as well.
            let _rung = self.bell.write(1);
        }
    }

    /// Waits for a request. None: there are none left, and the disk is dropped.
    fn next(&self) -> Option<Request> {
        let idle = |queue: &mut Queue| queue.requests.is_empty() && !queue.ending;
        self.submitted
            .wait_while(self.queue(), idle)
            .unwrap_or_else(PoisonError::into_inner)
            .requests
            .pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Flushes wait for a token, discards panic, and the others fail.
    struct Gated {
        tokens: Mutex<Receiver<()>>,
        served: AtomicUsize,
    }

    impl Gated {
        fn new() -> (SyncSender<()>, Arc<Self>) {
            let (give, tokens) = sync_channel(1024);
            let served = AtomicUsize::new(0);
            let tokens = Mutex::new(tokens);
            (give, Arc::new(Self { tokens, served }))
        }
    }

    impl Serve for Gated {
        /// How many operations the thread has run.
        type Scratch = usize;

        fn serve(&self, operation: &mut Operation, before: &mut usize) -> io::Result<()> {
            *before += 1;
            match operation {
                Operation::Flush => self.tokens.lock().unwrap().recv().unwrap(),
                Operation::Discard { .. } => panic!("the test's"),
                _ => return Err(io::ErrorKind::Unsupported.into()),
            }
            self.served.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    const ZEROES: Operation = Operation::WriteZeroes {
        offset: 0,
        len: 512,
        unmap: false,
    };

    fn flush(tag: usize) -> Request {
        let operation = Operation::Flush;
        Request { tag, operation }
    }

    /// Waits for the bell, and takes the next completion.
    fn next(threads: &Threads) -> Completion {
        loop {
            if let Some(completion) = threads.completed() {
                return completion;
            }
            let mut fds = [PollFd::new(threads.bell().as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).unwrap();
            threads.bell().read().unwrap();
        }
    }

    #[test]
    fn each_request_completes_once_under_its_number() {
        let (give, disk) = Gated::new();
        let threads = Threads::start("test", &disk, || ()).unwrap();
        assert!(threads.completed().is_none());
        for tag in 0..600 {
            threads.submit(flush(tag));
        }
        assert!(threads.completed().is_none());
        for _ in 0..600 {
            give.send(()).unwrap();
        }
        let mut tags: Vec<_> = (0..600).map(|_| next(&threads).tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..600));
        let operation = ZEROES;
        threads.submit(Request { tag: 7, operation });
        let failed = next(&threads);
        assert_eq!(failed.tag, 7);
        assert!(matches!(
            failed.operation,
            Operation::WriteZeroes { len: 512, .. }
        ));
        assert_eq!(
            failed.result.unwrap_err().kind(),
            io::ErrorKind::Unsupported
        );
        assert!(threads.completed().is_none());
    }

    #[test]
    fn a_slow_request_does_not_hold_up_others() {
        let (give, disk) = Gated::new();
        let threads = Threads::start("test", &disk, || ()).unwrap();
        threads.submit(flush(0));
        let operation = ZEROES;
        threads.submit(Request { tag: 1, operation });
        assert_eq!(next(&threads).tag, 1);
        give.send(()).unwrap();
        assert_eq!(next(&threads).tag, 0);
    }

    #[test]
    fn dropping_it_waits_for_what_has_begun_and_drops_the_rest() {
        let (give, disk) = Gated::new();
        let threads = Threads::start("test", &disk, || ()).unwrap();
        for tag in 0..10 {
            threads.submit(flush(tag));
        }
        let shared = Arc::clone(&threads.shared);
        while shared.queue().requests.len() > 10 - COUNT {
            std::thread::yield_now();
        }
        let dropped = std::thread::spawn(move || drop(threads));
        while !shared.queue().ending {
            std::thread::yield_now();
        }
        for _ in 0..10 {
            give.send(()).unwrap();
        }
        dropped.join().unwrap();
        assert_eq!(disk.served.load(Ordering::Relaxed), COUNT);
    }

    #[test]
    fn a_panic_is_seen_by_the_watch_and_the_others_go_on() {
        struct Watch(std::sync::mpsc::Sender<bool>);
        impl Drop for Watch {
            fn drop(&mut self) {
                self.0.send(std::thread::panicking()).unwrap();
            }
        }

        let (give, disk) = Gated::new();
        let (report, reports) = channel();
        let threads = Threads::start("test", &disk, || Watch(report.clone())).unwrap();
        let operation = Operation::Discard { offset: 0, len: 1 };
        threads.submit(Request { tag: 0, operation });
        assert!(reports.recv().unwrap());
        threads.submit(flush(1));
        give.send(()).unwrap();
        assert_eq!(next(&threads).tag, 1);
        drop(threads);
        assert_eq!(reports.try_iter().collect::<Vec<_>>(), [false; COUNT - 1]);
    }
}
