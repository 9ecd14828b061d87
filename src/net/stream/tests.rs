use std::collections::VecDeque;
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{MAX_FRAME, MIN_FRAME};
use super::*;
use crate::memory::{Dma, GuestRam, MemoryConfig};
use crate::units::Gpa;

const RAM: u64 = 1 << 20;

fn dma() -> Dma {
    let ram = GuestRam::new(&MemoryConfig::of(RAM), &[(Gpa(0), RAM)]).unwrap();
    let dma = Dma::new(ram);
    dma.gate().set(true);
    dma
}

/// A frame of `len` bytes of `byte`, behind a header.
fn frame(dma: &Dma, byte: u8, len: usize) -> Readable {
    dma.write(Gpa(0x100 + HEADER as u64), &vec![byte; len])
        .unwrap();
    dma.readable(Gpa(0x100), (HEADER + len) as u64).unwrap()
}

fn sent(byte: u8, len: usize) -> Vec<u8> {
    let length = u32::try_from(len).unwrap().to_be_bytes();
    [&length[..], &vec![byte; len]].concat()
}

/// Streams that a test has made, one after the other.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<io::Result<UnixStream>>>>);

impl Script {
    /// Adds a stream and returns its other end.
    fn add(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.0.lock().unwrap().push_back(Ok(ours));
        theirs
    }

    fn add_error(&self) {
        let error = io::ErrorKind::ConnectionRefused.into();
        self.0.lock().unwrap().push_back(Err(error));
    }
}

impl Connect for Script {
    fn connect(&mut self) -> io::Result<UnixStream> {
        let next = self.0.lock().unwrap().pop_front();
        next.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    }
}

/// Waits for the bell, and lets the back end look.
fn ring(backend: &mut StreamBackend) {
    let bell = backend.bell().unwrap();
    let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).unwrap();
    bell.clear();
    backend.woken();
}

fn receive(backend: &mut StreamBackend) -> Option<Vec<u8>> {
    let mut frame = vec![0xee; MAX_FRAME];
    let len = backend.receive(0, &mut frame)?;
    assert_eq!(frame[..HEADER], [0; HEADER]);
    Some(frame[HEADER..len].to_vec())
}

/// The next frame, whenever it comes.
fn arrival(backend: &mut StreamBackend) -> Vec<u8> {
    loop {
        if let Some(frame) = receive(backend) {
            return frame;
        }
        ring(backend);
    }
}

#[test]
fn frames_go_both_ways() {
    let script = Script::default();
    let mut peer = script.add();
    let mut backend = StreamBackend::new("net0", Box::new(script)).unwrap();
    assert!(!backend.link());
    let dma = dma();
    assert_eq!(backend.send(0, &frame(&dma, 1, 60)), Sent::Dropped);
    backend.acquire().unwrap();
    assert!(backend.link());
    assert_eq!(receive(&mut backend), None);
    assert_eq!(backend.send(0, &frame(&dma, 2, 60)), Sent::Yes);
    assert_eq!(backend.send(0, &frame(&dma, 3, MIN_FRAME)), Sent::Yes);
    backend.flush();
    let expected = [sent(2, 60), sent(3, MIN_FRAME)].concat();
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
    peer.write_all(&[sent(4, 100), sent(5, 3), sent(6, 1500)].concat())
        .unwrap();
    while !backend.stream.as_ref().unwrap().readable {
        ring(&mut backend);
    }
    assert_eq!(receive(&mut backend), Some(vec![4; 100]));
    let short = [&[5; 3][..], &[0; 57]].concat();
    assert_eq!(receive(&mut backend), Some(short));
    assert_eq!(receive(&mut backend), Some(vec![6; 1500]));
    assert_eq!(receive(&mut backend), None);
    backend.release();
    assert!(!backend.link());
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_peer_that_does_not_read_holds_frames_up_and_no_memory() {
    let script = Script::default();
    let mut peer = script.add();
    let mut backend = StreamBackend::new("net0", Box::new(script)).unwrap();
    backend.acquire().unwrap();
    ring(&mut backend);
    let dma = dma();
    let one = frame(&dma, 7, 60_000);
    let mut count = 0;
    while backend.send(0, &one) == Sent::Yes {
        count += 1;
        assert!(count < 1000, "an endless stream");
    }
    assert_eq!(backend.send(0, &one), Sent::Later);
    // What was taken arrives, and then more is taken.
    let mut got = vec![0; 4 + 60_000];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(got, sent(7, 60_000));
    peer.set_nonblocking(true).unwrap();
    let mut more = Vec::new();
    while more.len() < (count - 1) * got.len() {
        match peer.read_to_end(&mut more) {
            Ok(_) => panic!("the stream has ended"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        ring(&mut backend);
    }
    assert_eq!(backend.send(0, &one), Sent::Yes);
}

#[test]
fn a_lost_peer_comes_back() {
    let script = Script::default();
    let peer = script.add();
    let mut backend = StreamBackend::new("net0", Box::new(script.clone())).unwrap();
    backend.acquire().unwrap();
    script.add_error();
    let mut again = script.add();
    drop(peer);
    // Whether or not somebody receives.
    while backend.link() {
        ring(&mut backend);
    }
    assert_eq!(backend.send(0, &frame(&dma(), 1, 60)), Sent::Dropped);
    while !backend.link() {
        ring(&mut backend);
    }
    again.write_all(&sent(1, 60)).unwrap();
    assert_eq!(receive(&mut backend), Some(vec![1; 60]));
}

#[test]
fn a_peer_that_sends_no_frames_is_given_up() {
    let script = Script::default();
    let mut peer = script.add();
    let mut backend = StreamBackend::new("net0", Box::new(script)).unwrap();
    backend.acquire().unwrap();
    peer.write_all(&sent(1, 60)).unwrap();
    peer.write_all(b"HTTP/1.1 200 OK").unwrap();
    assert_eq!(receive(&mut backend), Some(vec![1; 60]));
    assert_eq!(receive(&mut backend), None);
    assert!(!backend.link());
}

#[test]
fn a_server_takes_one_peer_after_the_other_and_removes_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net");
    let mut server = StreamBackend::new("a", Box::new(Server::new(&path))).unwrap();
    let mut client = StreamBackend::new("b", Box::new(Client::new(&path))).unwrap();
    let error = client.acquire().unwrap_err().to_string();
    assert!(
        error.contains("cannot connect to") && error.contains("net"),
        "{error}"
    );
    server.acquire().unwrap();
    assert!(!server.link());
    let error = StreamBackend::new("c", Box::new(Server::new(&path)))
        .and_then(|mut other| other.acquire())
        .unwrap_err();
    assert!(
        error.to_string().contains("in use by a running program"),
        "{error}"
    );
    // That was a peer for a moment.
    assert!(path.exists());
    client.acquire().unwrap();
    let mut second = StreamBackend::new("d", Box::new(Client::new(&path))).unwrap();
    second.acquire().unwrap();
    let dma = dma();
    assert_eq!(client.send(0, &frame(&dma, 1, 60)), Sent::Yes);
    client.flush();
    assert_eq!(arrival(&mut server), vec![1; 60]);
    client.release();
    // The next was waiting.
    assert_eq!(second.send(0, &frame(&dma, 2, 60)), Sent::Yes);
    second.flush();
    assert_eq!(arrival(&mut server), vec![2; 60]);
    server.release();
    assert!(!path.exists());
    server.acquire().unwrap();
    assert!(path.exists());
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_given_stream_ends_once_and_for_all() {
    let (ours, peer) = UnixStream::pair().unwrap();
    let mut backend = StreamBackend::new("net0", Box::new(Given::new(ours))).unwrap();
    backend.acquire().unwrap();
    backend.release();
    // Not lost: a migration has failed, say.
    backend.acquire().unwrap();
    assert!(backend.link());
    drop(peer);
    while backend.link() {
        ring(&mut backend);
    }
    // The VM goes on without it, also after a migration that has failed.
    backend.release();
    backend.acquire().unwrap();
    assert!(!backend.link());
}

#[test]
fn a_missing_peer_is_an_error_only_at_first() {
    let script = Script::default();
    script.add_error();
    let mut backend = StreamBackend::new("net0", Box::new(script.clone())).unwrap();
    assert!(backend.acquire().is_err());
    let peer = script.add();
    backend.acquire().unwrap();
    drop(peer);
    while backend.link() {
        ring(&mut backend);
    }
    backend.release();
    backend.acquire().unwrap();
    assert!(!backend.link());
    let _again = script.add();
    while !backend.link() {
        ring(&mut backend);
    }
}

#[test]
fn nothing_connects_after_a_release() {
    let script = Script::default();
    drop(script.add());
    let mut backend = StreamBackend::new("net0", Box::new(script.clone())).unwrap();
    backend.acquire().unwrap();
    while backend.link() {
        ring(&mut backend);
    }
    backend.release();
    let _peer = script.add();
    std::thread::sleep(2 * FIRST_DELAY);
    backend.bell().unwrap().clear();
    backend.woken();
    assert!(!backend.link());
    assert_eq!(script.0.lock().unwrap().len(), 1, "it has connected");
}
