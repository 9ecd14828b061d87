use proptest::prelude::*;

use super::*;
use crate::devices::testing::{
    accesses, assert_comes_back, hostile, inb, inl, inw, outb, outl, outw, replay,
};

fn device() -> FwCfg {
    FwCfg::new(Items::of_machine(6 << 30, 4, 6))
}

fn read(device: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
    outw(device, SELECTOR, key);
    (0..len).map(|_| inb(device, DATA)).collect()
}

#[test]
fn items_read_as_in_qemu_and_zeros_follow() {
    let mut device = device();
    for (key, bytes) in [
        (0x00, &b"QEMU\0\0"[..]),
        (0x01, &[1, 0, 0, 0, 0]),
        (0x03, &[0, 0, 0, 0x80, 1, 0, 0, 0, 0]),
        (0x04, &[1, 0, 0]),
        (0x05, &[4, 0, 0]),
        (0x0f, &[6, 0, 0]),
        // The write channel of an item reads the same.
        (0x4000, &b"QEMU\0\0"[..]),
    ] {
        assert_eq!(read(&mut device, key, bytes.len()), bytes, "{key:#x}");
    }
}

#[test]
fn what_is_not_offered_reads_as_zeros() {
    let mut device = device();
    // UUID, FW_CFG_KERNEL_DATA, the directory of files, the first file, the x86 items, and what no item can
    // be.
    for key in [0x02, 0x11, 0x19, 0x20, 0x8000, 0x8005, 0x3fff, 0xffff] {
        assert_eq!(read(&mut device, key, 64), [0; 64], "{key:#x}");
    }
}

#[test]
fn files_are_found_by_the_directory() {
    let files = vec![
        ("etc/b", vec![1, 2, 3]),
        (
            "etc/a/of-55-bytes-as-long-as-a-name-can-be-with-its-nul",
            vec![4],
        ),
    ];
    let items = Items::of_machine(6 << 30, 4, 6).with_files(files.clone());
    let mut device = FwCfg::new(items);
    let directory = read(&mut device, 0x19, 4 + 2 * 64 + 1);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..12], [0, 0, 0, 1, 0, 0x20, 0, 0]);
    assert_eq!(directory[68..76], [0, 0, 0, 3, 0, 0x21, 0, 0]);
    for (at, name) in [(12, files[1].0), (76, files[0].0)] {
        let field = &directory[at..at + 56];
        assert_eq!(field[..name.len()], *name.as_bytes());
        assert!(field[name.len()..].iter().all(|&byte| byte == 0));
    }
    assert_eq!(read(&mut device, 0x20, 2), [4, 0]);
    assert_eq!(read(&mut device, 0x21, 4), [1, 2, 3, 0]);
    assert_eq!(read(&mut device, 0x22, 2), [0, 0]);
    assert_eq!(read(&mut device, 0x05, 2), [4, 0]);
}

/// Items are not state: a VM that was saved in the middle of one goes on, whether or not it is still there.
#[test]
fn a_saved_device_without_files_is_one_with_files() {
    let mut before = device();
    assert_eq!(read(&mut before, 0x19, 3), [0; 3]);
    let files = vec![("etc/a", vec![7; 9])];
    let mut after = FwCfg::new(Items::of_machine(6 << 30, 4, 6).with_files(files));
    assert_comes_back(&before, &mut after);
    assert_eq!(inb(&mut after, DATA), 0);
    assert_eq!(read(&mut after, 0x20, 1), [7]);
}

#[test]
fn only_words_select_and_only_bytes_are_read() {
    let mut device = device();
    assert_eq!(read(&mut device, 0, 1), b"Q");
    // None of these selects an item, and none of these reads takes a byte.
    outb(&mut device, SELECTOR, 1);
    outl(&mut device, SELECTOR, 1);
    outb(&mut device, DATA, 1);
    outw(&mut device, DATA, 1);
    assert_eq!(inw(&mut device, DATA), 0xffff);
    assert_eq!(inl(&mut device, DATA), 0xffff_ffff);
    assert_eq!(inb(&mut device, SELECTOR), 0xff);
    assert_eq!([inb(&mut device, DATA), inb(&mut device, DATA)], *b"EM");
}

#[test]
fn a_restored_device_continues_in_the_middle_of_an_item() {
    let mut before = device();
    assert_eq!(read(&mut before, 0, 2), b"QE");
    let mut after = device();
    assert_comes_back(&before, &mut after);
    assert_eq!([inb(&mut after, DATA), inb(&mut after, DATA)], *b"MU");
    after.reset();
    assert_eq!(inb(&mut after, DATA), b'Q');
}

proptest! {
    #[test]
    fn any_accesses_and_any_state_are_survived(seq in accesses(4), body in hostile()) {
        let (mut device, mut fresh) = (device(), device());
        replay(&mut device, Region::ONLY, seq.clone());
        assert_comes_back(&device, &mut fresh);
        body.load_into(&mut device);
        replay(&mut device, Region::ONLY, seq);
        inb(&mut device, DATA);
    }
}
