use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::fcntl::OFlag;

use super::*;
use crate::devices::char::TxQueue;
use crate::life::{Inbox, channel as life};

/// A device that hands its input to the test and has as much room as it is given.
pub(super) struct Probe {
    pub(super) queue: TxQueue,
    pub(super) room: usize,
    waker: Waker,
    heard: Sender<Heard>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Bytes(Vec<u8>),
    Break,
}

impl CharDevice for Probe {
    fn input_room(&mut self) -> usize {
        self.room
    }

    fn input(&mut self, bytes: &[u8]) {
        self.room = self.room.saturating_sub(bytes.len());
        let _test_over = self.heard.send(Heard::Bytes(bytes.to_vec()));
    }

    fn input_break(&mut self) {
        let _test_over = self.heard.send(Heard::Break);
    }

    fn take_output(&mut self, buf: &mut [u8]) -> usize {
        self.queue.take(buf)
    }
}

pub(super) struct Bench {
    pub(super) io: IoThread,
    pub(super) probe: Arc<Mutex<Probe>>,
    pub(super) heard: Receiver<Heard>,
    pub(super) events: Option<Inbox>,
}

pub(super) fn bench() -> Bench {
    let (_, handle, events) = life();
    let io = IoThread::new(handle).unwrap();
    let (tx, heard) = channel();
    let probe = Arc::new(Mutex::new(Probe {
        queue: TxQueue::new(Some(io.waker())),
        room: usize::MAX,
        waker: io.waker(),
        heard: tx,
    }));
    Bench {
        io,
        probe,
        heard,
        events: Some(events),
    }
}

pub(super) fn say(probe: &Mutex<Probe>, text: &[u8]) {
    for byte in text {
        lock(probe).queue.push(*byte);
    }
}

pub(super) fn hear(heard: &Receiver<Heard>, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        match heard.recv_timeout(Duration::from_secs(60)).unwrap() {
            Heard::Bytes(more) => bytes.extend(more),
            Heard::Break => panic!("a break"),
        }
    }
    bytes
}

pub(super) fn read_exactly(mut from: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_gets_the_output_and_what_was_there_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "from before").unwrap();
    let mut b = bench();
    let backend = CharBackend::File(path.clone());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let running = start(b.io);
    say(&b.probe, b"hello");
    // Stopping delivers what is pending.
    running.stop();
    assert_eq!(std::fs::read(&path).unwrap(), b"hello");
}

#[test]
fn a_file_that_is_kept_gets_the_output_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "from before, ").unwrap();
    let mut b = bench();
    b.io.keep_files();
    let backend = CharBackend::File(path.clone());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let running = start(b.io);
    // Whoever had it before may still write.
    let mut other = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    std::io::Write::write_all(&mut other, b"and still, ").unwrap();
    say(&b.probe, b"hello");
    running.stop();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        b"from before, and still, hello"
    );
}

#[test]
fn a_full_disk_does_not_stop_anything() {
    let mut b = bench();
    let backend = CharBackend::File("/dev/full".into());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let running = start(b.io);
    for _ in 0..3 * TxQueue::CAPACITY {
        lock(&b.probe).queue.push(b'x');
    }
    running.stop();
    assert_eq!(lock(&b.probe).queue.take(&mut [0; 8]), 0, "dropped");
}

#[test]
fn an_impossible_path_is_an_error_that_names_it() {
    let mut b = bench();
    let backend = CharBackend::File("/nonexistent/dir/log".into());
    let error = b.io.connect("serial0", &backend, b.probe).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("serial0") && text.contains("/nonexistent/dir/log"),
        "{text}"
    );
}

#[test]
fn socket_clients_come_and_go_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("com1");
    let mut b = bench();
    let backend = CharBackend::Socket(path.clone());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let running = start(b.io);

    let mut first = UnixStream::connect(&path).unwrap();
    first.write_all(b"one").unwrap();
    assert_eq!(hear(&b.heard, 3), b"one");
    // Waits in line; what it writes is not heard while the first is there.
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"two").unwrap();
    say(&b.probe, b"to the first");
    assert_eq!(read_exactly(&first, 12), b"to the first");
    first.write_all(b"more").unwrap();
    assert_eq!(hear(&b.heard, 4), b"more");
    drop(first);
    assert_eq!(hear(&b.heard, 3), b"two");
    say(&b.probe, b"to the second");
    assert_eq!(read_exactly(&second, 13), b"to the second");

    running.stop();
    assert!(!path.exists(), "the socket is removed");
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "the client's descriptor is closed");
}

#[test]
fn a_socket_client_may_close_only_its_sending_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("com1");
    let mut b = bench();
    let backend = CharBackend::Socket(path.clone());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let _running = start(b.io);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"bye").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(hear(&b.heard, 3), b"bye");
    say(&b.probe, b"still here");
    assert_eq!(read_exactly(&client, 10), b"still here");
    drop(client);
    let mut next = UnixStream::connect(&path).unwrap();
    next.write_all(b"next").unwrap();
    assert_eq!(hear(&b.heard, 4), b"next");
}

#[test]
fn input_waits_while_the_device_has_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("com1");
    let mut b = bench();
    lock(&b.probe).room = 10;
    let backend = CharBackend::Socket(path.clone());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let _running = start(b.io);
    let mut client = UnixStream::connect(&path).unwrap();
    let text: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    let written = text.clone();
    let writer = std::thread::spawn(move || client.write_all(&written).map(|()| client));
    let mut got = hear(&b.heard, 10);
    while got.len() < text.len() {
        {
            let mut probe = lock(&b.probe);
            assert_eq!(probe.room, 0, "never more than fits");
            probe.room = 1000;
            probe.waker.wake();
        }
        let want = (text.len() - got.len()).min(1000);
        got.extend(hear(&b.heard, want));
    }
    assert_eq!(got, text);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_pty_is_found_by_its_path_and_survives_its_users() {
    let mut b = bench();
    b.io.connect("serial0", &CharBackend::Pty, b.probe.clone())
        .unwrap();
    let [(name, path)] = b.io.ptys() else {
        panic!("{:?}", b.io.ptys());
    };
    assert_eq!(name, "serial0");
    let path = path.clone();
    let running = start(b.io);
    // Nobody has it open: dropped, and nothing blocks.
    for _ in 0..3 * TxQueue::CAPACITY {
        lock(&b.probe).queue.push(b'x');
    }
    let open = || -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&path)
            .unwrap()
    };
    for round in [b"first", b"again"] {
        let mut user = open();
        user.write_all(round).unwrap();
        assert_eq!(hear(&b.heard, 5), round);
        say(&b.probe, b"prompt# ");
        let mut seen = Vec::new();
        while !seen.ends_with(b"prompt# ") {
            let mut byte = [0];
            user.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    }
    let mut user = open();
    running.stop();
    // The master is closed: end of file, or EIO as Linux says it.
    let end = user.read(&mut [0; 16]);
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[test]
fn stdio_is_given_once() {
    let mut b = bench();
    b.io.stdio_taken = true;
    let error =
        b.io.connect("serial1", &CharBackend::Stdio, b.probe)
            .unwrap_err();
    assert!(error.to_string().contains("serial1"), "{error}");
}

#[test]
fn a_backend_of_none_wakes_nobody() {
    let b = bench();
    assert!(b.io.waker_for(&CharBackend::None).is_none());
    assert!(b.io.waker_for(&CharBackend::Stdio).is_some());
}

struct Alarm {
    due: Option<Instant>,
    rang: Sender<Instant>,
}

impl Timed for Alarm {
    fn until_due(&self) -> Option<Duration> {
        self.due
            .map(|d| d.saturating_duration_since(Instant::now()))
    }

    fn tick(&mut self) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            let _test_over = self.rang.send(Instant::now());
        }
    }
}

#[test]
fn deadlines_are_kept_also_when_set_later() {
    let (tx, rang) = channel();
    let first = Instant::now() + Duration::from_millis(5);
    let alarm = Arc::new(Mutex::new(Alarm {
        due: Some(first),
        rang: tx,
    }));
    let mut b = bench();
    b.io.schedule(alarm.clone());
    let waker = b.io.waker();
    let _running = start(b.io);
    assert!(rang.recv_timeout(Duration::from_secs(60)).unwrap() >= first);
    let second = Instant::now() + Duration::from_millis(5);
    lock(&alarm).due = Some(second);
    waker.wake();
    assert!(rang.recv_timeout(Duration::from_secs(60)).unwrap() >= second);
}

#[test]
fn stopping_releases_the_devices() {
    let mut b = bench();
    let backend = CharBackend::File("/dev/null".into());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let running = start(b.io);
    running.stop();
    // The thread is joined and its half of everything dropped.
    assert_eq!(Arc::strong_count(&b.probe), 1);
}

#[test]
fn waking_costs_one_system_call_until_the_thread_has_looked() {
    let waker = Waker::new().unwrap();
    let tokens = || (&waker.0.receiver).read(&mut [0; 64]).unwrap_or(0);
    waker.wake_for_output();
    waker.wake_for_output();
    assert!(waker.is_for_output_only());
    assert_eq!(tokens(), 1);
    // Something urgent ends the gathering of output.
    waker.wake();
    waker.wake();
    assert!(!waker.is_for_output_only());
    assert_eq!(tokens(), 1);
    waker.clear();
    waker.wake();
    assert_eq!(tokens(), 1);
}

/// Parked until the machine runs; here it does.
pub(super) fn start(io: IoThread) -> RunningIo {
    let running = io.start().unwrap();
    running.unpark();
    running
}

#[test]
fn a_parked_thread_touches_no_device_and_serves_the_users_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("com1");
    let mut b = bench();
    let (tx, rang) = channel();
    b.io.schedule(Arc::new(Mutex::new(Alarm {
        due: Some(Instant::now()),
        rang: tx,
    })));
    let backend = CharBackend::Socket(path.clone());
    b.io.connect("serial0", &backend, b.probe.clone()).unwrap();
    let running = b.io.start().unwrap();
    // As it begins.
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"before").unwrap();
    assert!(running.park(Duration::from_secs(60)));
    assert!(rang.try_recv().is_err() && b.heard.try_recv().is_err());
    running.unpark();
    assert_eq!(hear(&b.heard, 6), b"before");
    rang.recv_timeout(Duration::from_secs(60)).unwrap();
    // More output than the reader takes at once is still delivered, without the device.
    let text: Vec<u8> = (0..=255).cycle().take(TxQueue::CAPACITY).collect();
    say(&b.probe, &text);
    assert!(running.park(Duration::from_secs(60)));
    let device = lock(&b.probe);
    client.write_all(b"meanwhile").unwrap();
    assert_eq!(read_exactly(&client, text.len()), text);
    drop(device);
    assert!(running.park(Duration::from_secs(60)), "once more");
    assert!(b.heard.try_recv().is_err());
    running.unpark();
    assert_eq!(hear(&b.heard, 9), b"meanwhile");
    // A parked thread ends, too.
    running.park(Duration::from_secs(60));
    running.stop();
}
