//! The console: a terminal or a pipe as standard input and output.

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::tests::{Bench, Heard, bench, hear, read_exactly, say, start};
use super::*;
use crate::devices::char::TxQueue;
use crate::life::{Request, UserRequest};

fn connect(b: &mut Bench, stdin: impl AsFd, stdout: impl AsFd) {
    let wire = Wire::streams(
        "serial0",
        stdin.as_fd(),
        stdout.as_fd(),
        b.io.handle.clone(),
    );
    b.io.wires.push((wire.unwrap(), b.probe.clone()));
}

/// The only test that puts a terminal into raw mode: there is one at a time per process.
#[test]
fn a_terminal_is_raw_while_it_is_the_console_and_its_escape_keys_work() {
    let mut b = bench();
    let events = b.events.take().unwrap();
    let pty = openpty(None, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap();
    connect(&mut b, &pty.slave, &pty.slave);
    assert!(
        !tcgetattr(&pty.slave)
            .unwrap()
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    );
    let running = start(b.io);
    let mut user = std::fs::File::from(pty.master);

    say(&b.probe, b"login: ");
    assert_eq!(read_exactly(&user, 7), b"login: ");
    user.write_all(b"r\x03\x01\x01\x13").unwrap();
    assert_eq!(
        hear(&b.heard, 4),
        b"r\x03\x01\x13",
        "no key is taken but Ctrl-A"
    );
    user.write_all(b"\x01b").unwrap();
    let heard = b.heard.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(heard, Heard::Break);
    user.write_all(b"\x01h").unwrap();
    let help = read_exactly(&user, 20);
    assert!(
        help.starts_with(b"\r\r\nC-a h") || help.starts_with(b"\r\nC-a h"),
        "{help:?}"
    );

    // A guest that has stopped listening does not keep the user from ending it.
    lock(&b.probe).room = 0;
    user.write_all(&[b'x'; 100]).unwrap();
    user.write_all(b"\x01x").unwrap();
    events.wait();
    assert_eq!(
        events.next_request(),
        Some(UserRequest::Life(Request::Kill))
    );
    running.stop();
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
}

#[test]
fn the_end_of_piped_input_ends_only_the_input() {
    let mut b = bench();
    let (stdin, mut typed) = io::pipe().unwrap();
    let (mut shown, stdout) = io::pipe().unwrap();
    connect(&mut b, &stdin, &stdout);
    drop((stdin, stdout));
    let running = start(b.io);
    typed.write_all(b"ls\n").unwrap();
    drop(typed);
    assert_eq!(hear(&b.heard, 3), b"ls\n");
    say(&b.probe, b"files");
    running.stop();
    let mut all = Vec::new();
    shown.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"files");
}

#[test]
fn a_closed_stdout_costs_the_output_and_nothing_else() {
    let mut b = bench();
    let (stdin, mut typed) = io::pipe().unwrap();
    let (shown, stdout) = io::pipe().unwrap();
    connect(&mut b, &stdin, &stdout);
    drop((stdin, stdout, shown));
    let running = start(b.io);
    for _ in 0..3 * TxQueue::CAPACITY {
        lock(&b.probe).queue.push(b'x');
    }
    typed.write_all(b"still there").unwrap();
    assert_eq!(hear(&b.heard, 11), b"still there");
    running.stop();
}

#[test]
fn a_reader_that_stalls_holds_neither_the_guest_nor_the_end() {
    let mut b = bench();
    let (stdin, _typed) = io::pipe().unwrap();
    let (_shown, stdout) = io::pipe().unwrap();
    connect(&mut b, &stdin, &stdout);
    let running = start(b.io);
    // More than a pipe and the queue hold.
    for _ in 0..200_000 {
        lock(&b.probe).queue.push(b'x');
    }
    running.stop();
    assert!(lock(&b.probe).queue.lost() > 0);
}

#[test]
fn input_from_a_file_or_dev_null_is_not_read() {
    let mut b = bench();
    let null = std::fs::File::open("/dev/null").unwrap();
    let (_shown, stdout) = io::pipe().unwrap();
    connect(&mut b, &null, &stdout);
    let wire = &b.io.wires[0].0;
    let [input, _, _] = wire.interest();
    assert!(input.is_none());
}
