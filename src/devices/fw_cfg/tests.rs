use proptest::prelude::*;

use super::*;
use crate::devices::testing::{
    accesses, assert_comes_back, hostile, inb, inl, inw, outb, outl, outw, replay, saved,
};
use crate::memory::{GuestRam, MemoryConfig};
use crate::units::Gpa;

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

const RAM: u64 = 1 << 16;
/// Where requests are made, and where their data goes.
const REQUEST: u64 = 0x1000;
const BUFFER: u64 = 0x2000;

fn with_dma(files: Vec<(&str, Vec<u8>)>) -> (FwCfg, GuestRam) {
    let ram = GuestRam::new(&MemoryConfig::of(0), &[(Gpa(0), RAM)]).unwrap();
    let items = Items::of_machine(6 << 30, 4, 6).with_files(files);
    (FwCfg::with_dma(items, Dma::new(ram.clone())), ram)
}

/// Makes a request for DMA at `at`; its control afterwards.
fn request(device: &mut FwCfg, ram: &GuestRam, at: u64, control: u32, len: u32, to: u64) -> u32 {
    let mut bytes = control.to_be_bytes().to_vec();
    bytes.extend(len.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    ram.write(Gpa(at), &bytes).unwrap();
    let [high, low] = [at >> 32, at & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
    device.write(DMA, 0, &high.to_be_bytes());
    device.write(DMA, 4, &low.to_be_bytes());
    let mut control = [0; 4];
    ram.read(Gpa(at), &mut control).unwrap();
    u32::from_be_bytes(control)
}

fn buffer<const N: usize>(ram: &GuestRam) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(Gpa(BUFFER), &mut bytes).unwrap();
    bytes
}

#[test]
fn dma_copies_skips_and_pads_with_zeros() {
    let (mut device, ram) = with_dma(vec![("etc/a", (1..=9).collect())]);
    assert_eq!(read(&mut device, 0x01, 4), [3, 0, 0, 0]);
    ram.write(Gpa(BUFFER), &[0xff; 16]).unwrap();
    // (control, length, what is in the buffer then): each continues where the last one ended.
    for (control, len, expected) in [
        (0x0020_000a, 3, [1, 2, 3, 0xff, 0xff, 0xff]),
        (0x0000_0002, 2, [4, 5, 3, 0xff, 0xff, 0xff]),
        (0x0000_0004, 2, [4, 5, 3, 0xff, 0xff, 0xff]),
        // Neither reads nor skips.
        (0x0000_0000, 2, [4, 5, 3, 0xff, 0xff, 0xff]),
        (0x0000_0002, 5, [8, 9, 0, 0, 0, 0xff]),
        // Skips while it selects.
        (0x0020_000c, 7, [8, 9, 0, 0, 0, 0xff]),
        (0x0000_0002, 1, [8, 9, 0, 0, 0, 0xff]),
        // Of no such item.
        (0x1234_000a, 1, [0, 9, 0, 0, 0, 0xff]),
    ] {
        let result = request(&mut device, &ram, REQUEST, control, len, BUFFER);
        assert_eq!((result, buffer(&ram)), (0, expected), "{control:#x}");
    }
    // The ports and DMA share the place.
    assert_eq!(read(&mut device, 0x20, 1), [1]);
    assert_eq!(request(&mut device, &ram, REQUEST, 2, 1, BUFFER), 0);
    assert_eq!(buffer(&ram), [2]);
    assert_eq!(inb(&mut device, DATA), 3);
}

#[test]
fn what_dma_cannot_do_is_an_error() {
    let (mut device, ram) = with_dma(vec![("etc/a", vec![7; 9])]);
    for (control, len, to) in [
        // Writing, also beside reading nothing.
        (0x0020_0018, 1, BUFFER),
        // Memory that there is not, only partly, or that would wrap.
        (0x0020_000a, 1, RAM),
        (0x0020_000a, 9, RAM - 8),
        (0x0020_000a, u32::MAX, BUFFER),
        (0x0020_000a, 9, u64::MAX - 4),
    ] {
        let result = request(&mut device, &ram, REQUEST, control, len, to);
        assert_eq!(result, 1, "{control:#x} {len:#x} {to:#x}");
    }
    // Requests that are nowhere, or partly so.
    for at in [RAM, RAM - 8, 1 << 40] {
        device.write(DMA, 0, &u32::try_from(at >> 32).unwrap().to_be_bytes());
        device.write(
            DMA,
            4,
            &u32::try_from(at & 0xffff_ffff).unwrap().to_be_bytes(),
        );
    }
    assert_eq!(
        request(&mut device, &ram, REQUEST, 0x0020_000a, 9, BUFFER),
        0
    );
    assert_eq!(buffer(&ram), [7; 9]);
}

#[test]
fn the_address_register_reads_as_in_qemu_and_is_written_by_halves() {
    let (mut device, ram) = with_dma(Vec::new());
    let mut signature = [0; 8];
    for (at, bytes) in (0..).step_by(4).zip(signature.chunks_mut(4)) {
        device.read(DMA, at, bytes);
    }
    assert_eq!(&signature, b"QEMU CFG");
    // Only words start a request, at the lower half.
    let request = [
        0x00, 0x00, 0x00, 0x0a, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x20, 0,
    ];
    ram.write(Gpa(REQUEST), &request).unwrap();
    let low = 0x1000_u32.to_be_bytes();
    device.write(DMA, 4, &low[..2]);
    device.write(DMA, 5, &low);
    device.write(DMA, 0, &low);
    assert_eq!(buffer(&ram), [0; 4]);
    // The upper half is now 0x1000.
    device.write(DMA, 4, &low);
    assert_eq!(buffer(&ram), [0; 4]);
    // It is used once.
    device.write(DMA, 4, &low);
    assert_eq!(&buffer(&ram), b"QEMU");
}

#[test]
fn half_an_address_is_saved_and_older_states_have_none() {
    let (mut device, _) = with_dma(Vec::new());
    device.write(DMA, 0, &[1, 2, 3, 4]);
    let (mut other, ram) = with_dma(Vec::new());
    assert_comes_back(&device, &mut other);
    let older = saved(&FwCfg::new(Items::of_machine(6 << 30, 4, 6)));
    other
        .load(&mut Decoder::new("device/fw-cfg", 1, &older))
        .unwrap();
    assert_eq!(
        request(&mut other, &ram, REQUEST, 0x0000_000a, 4, BUFFER),
        0
    );
    assert_eq!(&buffer(&ram), b"QEMU");
}

proptest! {
    /// Whatever a guest asks for, it is what the ports read, and nothing else in memory changes.
    #[test]
    fn dma_reads_what_the_ports_read(
        file in proptest::collection::vec(any::<u8>(), 0..9000), skip in 0_u32..9000, len in 0_u32..9000,
    ) {
        let (mut device, ram) = with_dma(vec![("etc/a", file.clone())]);
        prop_assert_eq!(request(&mut device, &ram, REQUEST, 0x0020_000c, skip, 0), 0);
        prop_assert_eq!(request(&mut device, &ram, REQUEST, 2, len, BUFFER), 0);
        let mut memory = vec![0; usize::try_from(RAM).unwrap()];
        ram.read(Gpa(0), &mut memory).unwrap();
        let rest = file.iter().skip(usize::try_from(skip).unwrap()).copied();
        let rest = rest.chain(std::iter::repeat(0)).take(usize::try_from(len).unwrap());
        let buffer = usize::try_from(BUFFER).unwrap();
        let (before, data) = memory.split_at(buffer);
        let (data, after) = data.split_at(usize::try_from(len).unwrap());
        prop_assert!(data.iter().copied().eq(rest));
        prop_assert!(after.iter().chain(&before[0x1010..]).all(|&byte| byte == 0));
    }

    #[test]
    fn any_requests_and_any_state_are_survived(
        seq in accesses(10), request in proptest::collection::vec(any::<u8>(), 16), body in hostile(),
    ) {
        let (mut device, ram) = with_dma(vec![("etc/a", vec![1; 5000])]);
        ram.write(Gpa(0), &request).unwrap();
        let low = |device: &mut FwCfg| device.write(DMA, 4, &[0; 4]);
        low(&mut device);
        replay(&mut device, DMA, seq.clone());
        assert_comes_back(&device, &mut with_dma(Vec::new()).0);
        body.load_into(&mut device);
        replay(&mut device, DMA, seq);
        low(&mut device);
    }

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
