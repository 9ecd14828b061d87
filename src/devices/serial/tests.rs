use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::devices::io_thread::IoThread;
use crate::devices::testing::{
    LineRecorder, accesses, assert_comes_back, hostile, inb, inw, outb, outw, replay,
};
use crate::life::channel;

const LSR_DATA_READY: u8 = 1 << 0;
const MSR: u8 = 6;
const SCRATCH: u8 = 7;

fn serial() -> (Serial, Arc<LineRecorder>) {
    let (recorder, irq) = LineRecorder::line();
    let io = IoThread::new(channel().1).unwrap();
    (Serial::new("serial0", irq, Some(io.waker())), recorder)
}

fn get(s: &mut Serial, register: u8) -> u8 {
    inb(s, u64::from(register))
}

fn put(s: &mut Serial, register: u8, value: u8) {
    outb(s, u64::from(register), value);
}

fn sent(s: &mut Serial) -> Vec<u8> {
    let mut buf = vec![0; 2 * TxQueue::CAPACITY];
    let count = s.take_output(&mut buf);
    buf.truncate(count);
    buf
}

/// Linux's `autoconfig` and `autoconfig_16550a` (drivers/tty/serial/8250/8250_port.c), as far as they test a
/// 16550A.
#[test]
fn linux_finds_a_16550a() {
    let (mut s, line) = serial();
    put(&mut s, IER, 0);
    assert_eq!(get(&mut s, IER), 0);
    put(&mut s, IER, 0x0f);
    assert_eq!(get(&mut s, IER), 0x0f);
    put(&mut s, IER, 0);
    put(&mut s, MCR, 0x1a);
    assert_eq!(get(&mut s, MSR) & 0xf0, 0x90, "loopback: OUT2 and RTS");
    put(&mut s, MCR, 0);
    put(&mut s, LCR, 0x80);
    assert_ne!(
        get(&mut s, IIR_FCR),
        0,
        "no EFR of a 16650 behind the latch"
    );
    put(&mut s, LCR, 0);
    put(&mut s, IIR_FCR, FCR_ENABLE);
    assert_eq!(get(&mut s, IIR_FCR) >> 6, 3, "FIFOs work");
    put(&mut s, IIR_FCR, 0);
    assert_eq!(get(&mut s, IIR_FCR), IIR_NONE, "FIFOs off");
    put(&mut s, SCRATCH, 0xa5);
    assert_eq!(get(&mut s, SCRATCH), 0xa5);
    assert!(!line.high());
}

/// The THRE test of `serial8250_do_startup`: the interrupt comes back when it is enabled again.
#[test]
fn enabling_the_thr_interrupt_raises_it_every_time() {
    let (mut s, line) = serial();
    for round in 1..=2 {
        put(&mut s, IER, IER_THR_EMPTY);
        assert!(line.high());
        assert_eq!(get(&mut s, IIR_FCR), IIR_THR_EMPTY);
        assert!(!line.high(), "reading IIR acknowledges it");
        assert_eq!(get(&mut s, IIR_FCR), IIR_NONE);
        put(&mut s, IER, 0);
        assert_eq!(line.edges(), round);
    }
}

#[test]
fn every_byte_sent_raises_the_thr_interrupt() {
    let (mut s, line) = serial();
    put(&mut s, IER, IER_THR_EMPTY);
    get(&mut s, IIR_FCR);
    put(&mut s, DATA, b'a');
    assert!(line.high());
    assert_eq!(get(&mut s, IIR_FCR), IIR_THR_EMPTY);
    put(&mut s, DATA, b'b');
    assert_eq!(line.edges(), 3);
    assert_eq!(sent(&mut s), b"ab");
}

#[test]
fn received_data_outranks_the_transmitter_and_survives_reading_iir() {
    let (mut s, line) = serial();
    put(&mut s, IIR_FCR, FCR_ENABLE);
    put(&mut s, IER, IER_RECEIVED | IER_THR_EMPTY);
    s.input(b"xy");
    assert_eq!(get(&mut s, IIR_FCR) & 0x0f, IIR_RECEIVED);
    assert_eq!(
        get(&mut s, IIR_FCR) & 0x0f,
        IIR_RECEIVED,
        "until it is read"
    );
    assert_eq!(get(&mut s, LSR) & LSR_DATA_READY, LSR_DATA_READY);
    assert_eq!(get(&mut s, DATA), b'x');
    assert_eq!(get(&mut s, DATA), b'y');
    assert_eq!(get(&mut s, LSR) & LSR_DATA_READY, 0);
    assert_eq!(get(&mut s, IIR_FCR) & 0x0f, IIR_THR_EMPTY);
    assert!(!line.high());
}

#[test]
fn input_waits_in_the_source_while_the_fifo_is_full() {
    let (mut s, _) = serial();
    assert_eq!(s.input_room(), 1, "without FIFO there is one register");
    put(&mut s, IIR_FCR, FCR_ENABLE);
    assert_eq!(s.input_room(), FIFO);
    s.input(&[b'z'; FIFO + 9]);
    assert_eq!(s.input_room(), 0);
    assert!(s.rx_paused);
    for _ in 0..FIFO {
        assert!(s.rx_paused);
        assert_eq!(get(&mut s, DATA), b'z');
    }
    assert!(!s.rx_paused, "woken once the FIFO is empty");
    assert_eq!(get(&mut s, LSR) & LSR_DATA_READY, 0, "no more than room");
}

#[test]
fn clearing_the_fifo_works_from_behind_the_divisor_latch() {
    let (mut s, line) = serial();
    put(&mut s, IIR_FCR, FCR_ENABLE);
    put(&mut s, IER, IER_RECEIVED);
    s.input(b"abc");
    put(&mut s, LCR, 0x83);
    put(&mut s, DATA, 0x01);
    put(&mut s, IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    assert!(!line.high());
    assert_eq!(get(&mut s, DATA), 0x01, "the latch is untouched");
    put(&mut s, LCR, 0x03);
    assert_eq!(s.input_room(), FIFO);
}

#[test]
fn loopback_returns_what_is_sent_and_takes_no_input() {
    let (mut s, _) = serial();
    put(&mut s, IIR_FCR, FCR_ENABLE);
    put(&mut s, MCR, MCR_LOOPBACK);
    put(&mut s, DATA, 0x5a);
    assert_eq!(s.input_room(), 0);
    assert_eq!(get(&mut s, DATA), 0x5a);
    for _ in 0..200 {
        put(&mut s, DATA, 1);
    }
    put(&mut s, MCR, 0);
    assert_eq!(s.input_room(), 0, "still full of its own bytes");
    assert_eq!(sent(&mut s), b"");
}

#[test]
fn a_full_queue_shows_as_a_busy_transmitter() {
    let (mut s, line) = serial();
    put(&mut s, IER, IER_THR_EMPTY);
    let ready = LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY;
    for _ in 0..TxQueue::CAPACITY {
        assert_eq!(get(&mut s, LSR) & ready, ready);
        put(&mut s, DATA, b'.');
    }
    assert_eq!(get(&mut s, LSR) & ready, 0);
    assert!(!line.high(), "no interrupt from a busy transmitter");
    put(&mut s, DATA, b'!');
    assert_eq!(s.uart.writer().lost(), 1);
    assert_eq!(sent(&mut s), vec![b'.'; TxQueue::CAPACITY]);
    assert!(line.high(), "notified when it is ready again");
    assert_eq!(get(&mut s, LSR) & ready, ready);
}

#[test]
fn without_a_reader_output_costs_nothing() {
    let (_, irq) = LineRecorder::line();
    let mut s = Serial::new("serial1", irq, None);
    for _ in 0..2 * TxQueue::CAPACITY {
        put(&mut s, DATA, b'x');
    }
    assert_eq!(get(&mut s, LSR) & LSR_THR_EMPTY, LSR_THR_EMPTY);
    assert_eq!(sent(&mut s), b"");
}

#[test]
fn a_break_comes_after_what_was_received_before() {
    let (mut s, line) = serial();
    put(&mut s, IIR_FCR, FCR_ENABLE);
    put(&mut s, IER, IER_RECEIVED | IER_LINE_STATUS);
    s.input(b"a");
    s.input_break();
    assert_eq!(s.input_room(), 0, "later input waits");
    assert_eq!(get(&mut s, LSR) & LSR_BREAK, 0);
    assert_eq!(get(&mut s, DATA), b'a');
    assert_eq!(get(&mut s, IIR_FCR) & 0x0f, IIR_LINE_STATUS);
    let status = get(&mut s, LSR);
    assert_eq!(
        status & (LSR_BREAK | LSR_DATA_READY),
        LSR_BREAK | LSR_DATA_READY
    );
    assert_eq!(get(&mut s, LSR) & LSR_BREAK, 0, "reading clears it");
    assert_eq!(get(&mut s, DATA), 0);
    assert!(!line.high());
    assert_eq!(s.input_room(), FIFO);
}

#[test]
fn wide_accesses_touch_consecutive_registers() {
    let (mut s, _) = serial();
    outw(&mut s, u64::from(LCR), 0x0b83);
    assert_eq!(inw(&mut s, u64::from(LCR)), 0x0b83);
    outw(&mut s, u64::from(DATA), 0x0001);
    assert_eq!(
        inw(&mut s, u64::from(DATA)),
        0x0001,
        "both halves of the divisor"
    );
    assert_eq!(inw(&mut s, u64::from(SCRATCH)) >> 8, 0xff, "past the end");
}

#[test]
fn reset_restores_power_on_state_and_keeps_what_was_sent() {
    let (mut s, line) = serial();
    put(&mut s, IIR_FCR, FCR_ENABLE);
    put(&mut s, IER, 0x0f);
    put(&mut s, MCR, 0x1f);
    put(&mut s, MCR, 0x0f);
    put(&mut s, DATA, b'q');
    s.input(b"in");
    put(&mut s, LCR, 0x80);
    s.reset();
    assert!(!line.high());
    assert_eq!(get(&mut s, LCR), 0x03);
    assert_eq!(get(&mut s, IER), 0);
    assert_eq!(get(&mut s, IIR_FCR), IIR_NONE);
    assert_eq!(get(&mut s, LSR), LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY);
    assert_eq!(sent(&mut s), b"q");
}

#[test]
fn a_guest_that_waits_for_the_transmitter_is_told_after_a_restore() {
    let (mut s, _) = serial();
    put(&mut s, IER, IER_THR_EMPTY);
    get(&mut s, IIR_FCR);
    for _ in 0..TxQueue::CAPACITY {
        put(&mut s, DATA, b'x');
    }
    assert_eq!(get(&mut s, LSR) & LSR_THR_EMPTY, 0);
    let (mut restored, line) = serial();
    assert_comes_back(&s, &mut restored);
    assert!(line.high());
    assert_eq!(get(&mut restored, IIR_FCR), IIR_THR_EMPTY);
    assert!(sent(&mut restored).is_empty(), "the saved one delivers it");
}

proptest! {
    #[test]
    fn it_comes_back_after_any_accesses(
        seq in accesses(PORTS + 2),
        typed in proptest::collection::vec(any::<u8>(), 0..40),
        is_break: bool,
    ) {
        let (mut s, line) = serial();
        replay(&mut s, Region::ONLY, seq);
        s.input(&typed);
        if is_break {
            s.input_break();
        }
        let (mut fresh, restored_line) = serial();
        assert_comes_back(&s, &mut fresh);
        prop_assert!(restored_line.high() == line.high() || fresh.thr_interrupt);
        prop_assert_eq!(s.received(), fresh.received());
        for register in [DATA, IER, LCR, MCR, MSR, SCRATCH] {
            prop_assert_eq!(get(&mut s, register), get(&mut fresh, register));
        }
    }

    #[test]
    fn no_state_harms(body in hostile(), seq in accesses(PORTS + 2)) {
        let (mut s, line) = serial();
        body.load_into(&mut s);
        replay(&mut s, Region::ONLY, seq);
        if s.input_room() > 0 {
            s.input(b"x");
        }
        prop_assert!(s.received() <= 64);
        s.reset();
        prop_assert!(!line.high());
    }

    #[test]
    fn no_access_sequence_panics_or_loses_the_line(
        seq in accesses(PORTS + 2),
        typed in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let (mut s, line) = serial();
        replay(&mut s, Region::ONLY, seq);
        if s.input_room() > 0 {
            s.input(&typed);
        }
        s.input_break();
        prop_assert_eq!(line.high(), s.cause() != IIR_NONE);
        prop_assert!(s.received() <= 64);
        s.reset();
        prop_assert!(!line.high());
    }
}
