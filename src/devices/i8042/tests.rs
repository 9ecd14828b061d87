use super::*;
use crate::devices::testing::{self, LineRecorder, accesses, assert_comes_back, hostile};
use crate::life::{Inbox, channel};
use proptest::prelude::*;
use std::sync::Arc;

fn controller() -> (I8042, Arc<LineRecorder>, Inbox) {
    let (line, irq) = LineRecorder::line();
    let (guest, _, events) = channel();
    (I8042::new(irq, guest), line, events)
}

/// A PC's ports.
fn place(port: u64) -> (Region, u64) {
    let region = if port < 0x64 { DATA } else { COMMAND };
    (region, port % 4)
}

fn inb(c: &mut I8042, port: u64) -> u8 {
    let (mut data, (region, offset)) = ([0xff], place(port));
    c.read(region, offset, &mut data);
    data[0]
}

fn outb(c: &mut I8042, port: u64, value: u8) {
    let (region, offset) = place(port);
    c.write(region, offset, &[value]);
}

fn replay(c: &mut I8042, seq: Vec<(bool, u64, Vec<u8>)>) {
    for (write, port, data) in seq {
        let (region, offset) = place(0x60 + port);
        testing::replay(c, region, vec![(write, offset, data)]);
    }
}

fn drain(c: &mut I8042) -> Vec<u8> {
    let mut bytes = Vec::new();
    while inb(c, 0x64) & STATUS_OUTPUT_FULL != 0 {
        bytes.push(inb(c, 0x60));
    }
    bytes
}

#[test]
fn controller_commands_answer() {
    for (command, answer) in [
        (0x20, vec![0x65]),
        (0xa4, vec![0xf1]),
        (0xa9, vec![0x01]),
        (0xaa, vec![0x55]),
        (0xab, vec![0x00]),
        (0xc0, vec![0x80]),
        (0xd0, vec![0xcf]),
        (0xa8, vec![]),
        (0x99, vec![]),
    ] {
        let (mut c, line, _) = controller();
        outb(&mut c, 0x64, command);
        assert_eq!(drain(&mut c), answer, "command {command:#x}");
        assert_eq!(line.edges(), 0, "answers to commands do not interrupt");
    }
}

#[test]
fn the_keyboard_answers() {
    for (written, answer) in [
        (&[0xff][..], &[0xfa, 0xaa][..]),
        (&[0xf2], &[0xfa, 0xab, 0x83]),
        (&[0xed, 0x07], &[0xfa, 0xfa]),
        (&[0xf3, 0x00], &[0xfa, 0xfa]),
        (&[0xf0, 0x00], &[0xfa, 0xfa, 0x02]),
        (&[0xf0, 0x03, 0xf0, 0x00], &[0xfa, 0xfa, 0xfa, 0xfa, 0x03]),
        (&[0xf0, 0x09], &[0xfa, 0xfe]),
        (&[0xee], &[0xee]),
        (&[0xf4], &[0xfa]),
        (&[0x00], &[0xfe]),
    ] {
        let (mut c, line, _) = controller();
        // No translation.
        outb(&mut c, 0x64, 0x60);
        outb(&mut c, 0x60, 0x05);
        let mut got = Vec::new();
        for byte in written {
            outb(&mut c, 0x60, *byte);
            got.extend(drain(&mut c));
        }
        assert_eq!(got, answer, "{written:x?}");
        assert_eq!(line.edges() as usize, answer.len(), "one edge per byte");
    }
}

#[test]
fn translation_applies_to_the_identity() {
    let (mut c, _, _) = controller();
    outb(&mut c, 0x60, 0xf2);
    assert_eq!(drain(&mut c), [0xfa, 0xab, 0x41]);
}

#[test]
fn there_is_no_mouse_and_the_probe_sees_it_at_once() {
    let (mut c, _, _) = controller();
    outb(&mut c, 0x64, 0xd3);
    outb(&mut c, 0x60, 0x5a);
    let status = inb(&mut c, 0x64);
    assert_eq!(status & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
    assert_eq!(status & 0x20, 0, "the answer does not come from a mouse");
    assert_eq!(drain(&mut c), [0x5a]);
    outb(&mut c, 0x64, 0xd4);
    outb(&mut c, 0x60, 0xff);
    assert!(drain(&mut c).is_empty());
}

#[test]
fn a_disabled_keyboard_keeps_its_bytes() {
    let (mut c, line, _) = controller();
    outb(&mut c, 0x60, 0xf2);
    outb(&mut c, 0x64, 0xad);
    assert_eq!(drain(&mut c), [0xfa], "already in the data port");
    outb(&mut c, 0x64, 0x20);
    assert_eq!(drain(&mut c), [0x75]);
    outb(&mut c, 0x64, 0xae);
    assert!(line.high());
    assert_eq!(drain(&mut c), [0xab, 0x41]);
    assert!(!line.high());
}

#[test]
fn interrupts_follow_the_command_byte() {
    let (mut c, line, _) = controller();
    outb(&mut c, 0x64, 0x60);
    outb(&mut c, 0x60, 0x44);
    outb(&mut c, 0x60, 0xee);
    assert!(!line.high());
    outb(&mut c, 0x64, 0x60);
    outb(&mut c, 0x60, 0x45);
    assert!(line.high());
}

#[test]
fn the_ways_to_reset_the_machine() {
    let reset = GuestEvent::Reset {
        by: "keyboard controller",
    };
    let (mut c, _, events) = controller();
    outb(&mut c, 0x64, 0xff);
    outb(&mut c, 0x64, 0xfd);
    assert!(
        events.take_guest_events().is_empty(),
        "other lines are pulsed"
    );
    outb(&mut c, 0x64, 0xfe);
    assert_eq!(events.take_guest_events(), std::slice::from_ref(&reset));
    outb(&mut c, 0x64, 0xd1);
    outb(&mut c, 0x60, 0xdf);
    assert!(events.take_guest_events().is_empty());
    outb(&mut c, 0x64, 0xd1);
    outb(&mut c, 0x60, 0xde);
    assert_eq!(events.take_guest_events(), [reset]);
}

#[test]
fn reset_forgets_everything() {
    let (mut c, line, _) = controller();
    outb(&mut c, 0x60, 0xf2);
    outb(&mut c, 0x64, 0xd1);
    c.reset();
    assert!(!line.high());
    assert!(drain(&mut c).is_empty());
    outb(&mut c, 0x60, 0xee);
    assert_eq!(
        drain(&mut c),
        [0xee],
        "no longer waiting for the output port"
    );
}

proptest! {
    #[test]
    fn it_comes_back_after_any_accesses(seq in accesses(8)) {
        let (mut c, line, _) = controller();
        replay(&mut c, seq);
        let (mut fresh, restored_line, _) = controller();
        assert_comes_back(&c, &mut fresh);
        prop_assert_eq!(line.high(), restored_line.high());
        prop_assert_eq!(drain(&mut c), drain(&mut fresh));
    }

    #[test]
    fn no_state_harms(body in hostile(), seq in accesses(8)) {
        let (mut c, _, _) = controller();
        body.load_into(&mut c);
        replay(&mut c, seq);
        prop_assert!(c.keyboard.len() <= KEYBOARD_QUEUE);
    }

    #[test]
    fn no_access_sequence_panics_or_grows(seq in accesses(8)) {
        let (mut c, _, _) = controller();
        replay(&mut c, seq);
        prop_assert!(c.keyboard.len() <= KEYBOARD_QUEUE);
    }
}
