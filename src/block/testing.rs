//! A disk in memory whose requests end when a test says so.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::EventFd;

use super::{Backend, Completion, Info, Operation, Request, Resize, SECTOR, Syncer};
use crate::sys::{eventfd, lock};

/// What a test has of the disk.
#[derive(Clone, Debug)]
pub(crate) struct TestDisk(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    info: Info,
    bell: Arc<EventFd>,
    pending: Vec<Request>,
    completed: VecDeque<Completion>,
    /// What was submitted, in order.
    log: Vec<String>,
    failed: bool,
    /// Requests begin when they are submitted, so that none is cancelled.
    begins: bool,
}

impl TestDisk {
    /// Of so many sectors.
    pub(crate) fn new(sectors: u64) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            info: Info {
                size: sectors * SECTOR,
                read_only: false,
                write_through: false,
                discard: true,
                logical_block: 512,
                physical_block: 4096,
            },
            bell: Arc::new(eventfd().unwrap()),
            pending: Vec::new(),
            completed: VecDeque::new(),
            log: Vec::new(),
            failed: false,
            begins: true,
        })))
    }

    pub(crate) fn with(self, change: impl FnOnce(&mut Info)) -> Self {
        change(&mut lock(&self.0).info);
        self
    }

    pub(crate) fn backend(&self) -> Box<dyn Backend> {
        Box::new(TestBackend {
            bell: Arc::clone(&lock(&self.0).bell),
            disk: self.clone(),
        })
    }

    /// From now on requests do not begin before they end.
    pub(crate) fn hold(&self) {
        lock(&self.0).begins = false;
    }

    /// From now on its flushes have failed.
    pub(crate) fn fail(&self) {
        lock(&self.0).failed = true;
    }

    /// What was submitted since the last call.
    pub(crate) fn submitted(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0).log)
    }

    /// Ends the pending request `index`.
    pub(crate) fn end(&self, index: usize, result: io::Result<()>) {
        let mut shared = lock(&self.0);
        let Request { tag, operation } = shared.pending.remove(index);
        shared.completed.push_back(Completion {
            tag,
            operation,
            result,
        });
        shared.bell.write(1).unwrap();
    }
}

struct TestBackend {
    bell: Arc<EventFd>,
    disk: TestDisk,
}

impl Backend for TestBackend {
    fn info(&self) -> Info {
        lock(&self.disk.0).info
    }

    fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }

    fn submit(&mut self, request: Request) {
        let mut shared = lock(&self.disk.0);
        let text = match &request.operation {
            Operation::Read { offset, to } => format!("read {offset} {}", to.len()),
            Operation::Write { offset, from } => format!("write {offset} {}", from.len()),
            Operation::Flush => "flush".to_owned(),
            Operation::Discard { offset, len } => format!("discard {offset} {len}"),
            Operation::WriteZeroes { offset, len, unmap } => {
                format!("zero {offset} {len} {unmap}")
            }
        };
        shared.log.push(text);
        shared.pending.push(request);
    }

    fn completed(&mut self) -> Option<Completion> {
        lock(&self.disk.0).completed.pop_front()
    }

    fn resize(&mut self, resize: Resize) -> io::Result<()> {
        let mut shared = lock(&self.disk.0);
        shared.info.size = resize.target(&shared.info, shared.info.size)?;
        Ok(())
    }

    fn cancel(&mut self) -> Option<Request> {
        let mut shared = lock(&self.disk.0);
        match shared.begins {
            true => None,
            false => shared.pending.pop(),
        }
    }

    fn syncer(&self) -> Option<Syncer> {
        let disk = self.disk.clone();
        let sync = move || {
            lock(&disk.0).log.push("sync".to_owned());
            Ok(())
        };
        let write_through = self.info().write_through;
        (!write_through).then(|| Box::new(sync) as Syncer)
    }

    fn failure(&self) -> Option<String> {
        let failed = lock(&self.disk.0).failed;
        failed.then(|| "a flush has failed".to_owned())
    }
}
