use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::bus::{Bus, Handler, Region};

/// Reads as its number.
struct Marked(u8);

impl Handler for Marked {
    fn read(&self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&self, _region: Region, _offset: u64, _data: &[u8]) {}
}

const ECAM: u8 = 0xe;
const PM: u8 = 0xa;
const FIXED: u8 = 0xf;

/// Port and address of something that is always there.
const FIXED_PORT: u64 = 0x600;
const FIXED_ADDRESS: u64 = 0xe001_0000;

struct Board {
    ports: Bus,
    mmio: Bus,
    bridge: OnBoard<Q35HostBridge>,
    lpc: OnBoard<Lpc>,
}

impl Board {
    fn new(power_on: PowerOn) -> Self {
        let (ports, mmio) = (Bus::ports(), Bus::mmio());
        let ecam = Arc::new(Marked(ECAM));
        let windows = ECAM_SIZES.map(|len| mmio.window("ecam", Region::ONLY, len, ecam.clone()));
        let bridge = Q35HostBridge::new(windows, power_on, 0xe000_0000);
        let pm = [(0, 4), (8, 4)];
        let pm = pm.map(|(offset, len)| {
            let window = ports.window("pm", Region::ONLY, len, Arc::new(Marked(PM)));
            (offset, window)
        });
        let rcba = Arc::new(RootComplexRegisters);
        let rcba = mmio.window("rcba", Region::ONLY, RCBA_LEN, rcba);
        Self {
            bridge: OnBoard::new(DevFn::HOST_BRIDGE, bridge),
            lpc: OnBoard::new(DevFn::LPC, Lpc::new(pm.into(), rcba, power_on)),
            ports,
            mmio,
        }
    }

    /// With fixed devices in the places that firmware uses.
    fn crowded() -> Self {
        let board = Self::new(PowerOn::Reset);
        let fixed = || Arc::new(Marked(FIXED));
        board
            .ports
            .fixed("f", Region::ONLY, FIXED_PORT, 1, fixed())
            .unwrap();
        board
            .mmio
            .fixed("f", Region::ONLY, FIXED_ADDRESS, 1, fixed())
            .unwrap();
        board
    }

    fn functions(&self) -> [(&dyn ConfigSpace, &dyn Device); 2] {
        [(&self.bridge, &self.bridge), (&self.lpc, &self.lpc)]
    }

    fn at(bus: &Bus, address: u64) -> Option<u8> {
        let mut data = [0];
        bus.read(address, &mut data).then_some(data[0])
    }

    fn port(&self, address: u64) -> Option<u8> {
        Self::at(&self.ports, address)
    }

    fn memory(&self, address: u64) -> Option<u8> {
        Self::at(&self.mmio, address)
    }
}

fn body(device: &dyn Device) -> Vec<u8> {
    let mut e = Encoder::new();
    device.save(&mut e);
    e.into_body()
}

fn load(device: &dyn Device, body: &[u8]) -> Result<(), StateError> {
    let mut d = Decoder::new("s", 1, body);
    device.load(&mut d)?;
    d.finish()
}

fn write(function: &dyn ConfigSpace, offset: u16, value: u32) {
    function.write_config(offset, value, u32::MAX);
}

#[test]
fn registers_after_a_reset_and_the_bits_that_can_be_written() {
    let board = Board::new(PowerOn::Reset);
    // (function, offset, after a reset, after all ones)
    let bridge = &board.bridge as &dyn ConfigSpace;
    let lpc = &board.lpc as &dyn ConfigSpace;
    for (function, offset, reset, ones) in [
        (bridge, 0x00, 0x29c0_8086, 0x29c0_8086),
        (bridge, 0x04, 0x0000_0006, 0x0000_0006),
        (bridge, 0x08, 0x0600_0000, 0x0600_0000),
        (bridge, 0x0c, 0, 0),
        (bridge, 0x10, 0, 0),
        (bridge, 0x34, 0, 0),
        (bridge, 0x3c, 0, 0xff),
        (bridge, 0x50, 0, 16),
        (bridge, 0x60, 0xb000_0000, 0xfc00_0007),
        (bridge, 0x64, 0, 0xf),
        (bridge, 0x90, 0, 0x3333_3330),
        (bridge, 0x94, 0, 0x0033_3333),
        // D_OPEN does not come with D_LCK.
        (bridge, 0x9c, 0x0038_0200, 0x00bf_3a00),
        (bridge, 0x100, 0, 0),
        (lpc, 0x00, 0x2918_8086, 0x2918_8086),
        (lpc, 0x04, 0x0000_0007, 0x0000_0007),
        (lpc, 0x08, 0x0601_0002, 0x0601_0002),
        (lpc, 0x0c, 0x0080_0000, 0x0080_0000),
        (lpc, 0x3c, 0, 0xff),
        (lpc, 0x40, 1, 0xff81),
        (lpc, 0x44, 0, 0x87),
        (lpc, 0x60, 0x8080_8080, 0x8f8f_8f8f),
        (lpc, 0x68, 0x8080_8080, 0x8f8f_8f8f),
        (lpc, 0xa0, 0, 0x10),
        (lpc, 0xf0, 0, 0xffff_c001),
    ] {
        assert_eq!(function.read_config(offset), reset, "{offset:#x}");
        write(function, offset, u32::MAX);
        assert_eq!(function.read_config(offset), ones, "{offset:#x}");
    }
    for (_, device) in board.functions() {
        device.reset();
    }
    assert_eq!(bridge.read_config(0x9c), 0x0038_0200);
    assert_eq!(lpc.read_config(0xa0), 0);
    assert_eq!(board.bridge.name(), "pci-00:00.0");
    assert_eq!(board.lpc.name(), "pci-00:1f.0");
}

#[test]
fn pciexbar_moves_the_ecam_window() {
    let board = Board::new(PowerOn::Reset);
    assert_eq!(board.mmio.ranges(), []);
    // (low, high, read back, the window's start and length)
    for (low, high, read, window) in [
        (0xe000_0001, 0, 0xe000_0001, Some((0xe000_0000, 256 << 20))),
        (0xb000_0001, 0, 0xb000_0001, Some((0xb000_0000, 256 << 20))),
        (0xbc00_0001, 0, 0xb000_0001, Some((0xb000_0000, 256 << 20))),
        (0xbc00_0003, 0, 0xb800_0003, Some((0xb800_0000, 128 << 20))),
        (0xbc00_0005, 0, 0xbc00_0005, Some((0xbc00_0000, 64 << 20))),
        (0xbc00_0007, 0, 0xbc00_0007, None),
        (0xe000_0000, 0, 0xe000_0000, None),
        (
            0xf000_0001,
            0xff,
            0xf000_0001,
            Some((0xf_f000_0000, 256 << 20)),
        ),
        (1, 0, 1, Some((0, 256 << 20))),
    ] {
        // As OVMF does it.
        write(&board.bridge, 0x60, 0);
        write(&board.bridge, 0x64, high);
        write(&board.bridge, 0x60, low);
        assert_eq!(board.bridge.read_config(0x60), read);
        let ranges = board.mmio.ranges();
        let found = ranges
            .first()
            .map(|(first, last, _)| (*first, last - first + 1));
        assert_eq!(found, window, "{low:#x}");
    }
}

#[test]
fn smram_control_is_locked_until_a_reset() {
    let board = Board::new(PowerOn::Reset);
    let control = || board.bridge.read_config(0x9c) >> 8;
    // G_SMRAME, D_OPEN, T_EN with 8 MiB of TSEG.
    write(&board.bridge, 0x9c, 0x0005_4800);
    assert_eq!(control(), 0x3d4a);
    board.bridge.write_config(0x9c, 0x0000_1800, 0x0000_ff00);
    assert_eq!(control(), 0x3d1a, "locked and closed");
    for (value, expected) in [(0x0000_6000, 0x3d3a), (0, 0x3d1a), (u32::MAX, 0x3d3a)] {
        write(&board.bridge, 0x9c, value);
        assert_eq!(control(), expected, "{value:#x}");
    }
    Device::reset(&board.bridge);
    assert_eq!(control(), 0x3802);
}

#[test]
fn power_management_registers_follow_pmbase() {
    let board = Board::new(PowerOn::Reset);
    assert_eq!(board.ports.ranges(), []);
    // As OVMF does it.
    board.lpc.write_config(0x40, 0x600, 0xff80);
    assert_eq!(board.port(0x600), None);
    board.lpc.write_config(0x44, 0x80, 0xff);
    for (port, there) in [(0x600, true), (0x603, true), (0x604, false), (0x608, true)] {
        assert_eq!(board.port(port).is_some(), there, "{port:#x}");
    }
    board.lpc.write_config(0x40, 0xff80, 0xffff);
    assert_eq!((board.port(0x600), board.port(0xff88)), (None, Some(PM)));
    board.lpc.write_config(0x44, 0, 0xff);
    assert_eq!(board.ports.ranges(), []);

    write(&board.lpc, 0xf0, 0xfed1_c001);
    assert_eq!(board.memory(0xfed1_ffff), Some(0));
    assert_eq!(board.memory(0xfed2_0000), None);
    write(&board.lpc, 0xf0, 0xfed1_c000);
    assert_eq!(board.memory(0xfed1_c000), None);

    write(&board.lpc, 0xa0, 0x10);
    write(&board.lpc, 0xa0, 0);
    assert_eq!(board.lpc.read_config(0xa0), 0x10, "SMI_LOCK stays");
}

#[test]
fn a_kernel_without_firmware_finds_what_firmware_leaves() {
    let board = Board::new(PowerOn::AfterFirmware);
    for _ in 0..2 {
        assert_eq!(board.bridge.read_config(0x60), 0xe000_0001);
        assert_eq!(board.lpc.read_config(0x40), 0x601);
        assert_eq!(board.lpc.read_config(0x44), 0x80);
        assert_eq!(board.memory(0xefff_ffff), Some(ECAM));
        assert_eq!(board.port(0x608), Some(PM));
        for (function, device) in board.functions() {
            (0..64).for_each(|n| write(function, n * 4, 0));
            device.reset();
        }
    }
}

proptest! {
    #[test]
    fn no_write_harms_and_what_is_fixed_stays(
        writes in proptest::collection::vec(
            (any::<bool>(), 0..0x400_u16, any::<u32>(), any::<u32>()), 0..64),
    ) {
        let board = Board::crowded();
        for (which, register, value, mask) in writes {
            let (function, _) = board.functions()[usize::from(which)];
            // Half of them where there are registers.
            let register = if register < 0x200 { register % 64 } else { register };
            function.write_config(register * 4, value, mask);
            function.read_config(register * 4);
            prop_assert_eq!(board.port(FIXED_PORT), Some(FIXED));
            prop_assert_eq!(board.memory(FIXED_ADDRESS), Some(FIXED));
        }
        let fresh = Board::crowded();
        for ((_, device), (_, other)) in board.functions().into_iter().zip(fresh.functions()) {
            let saved = body(device);
            load(other, &saved).unwrap();
            prop_assert_eq!(body(other), saved.clone());
            for len in 0..saved.len() {
                prop_assert!(load(other, &saved[..len]).is_err());
            }
            load(other, &saved).unwrap();
        }
        prop_assert_eq!(fresh.ports.ranges(), board.ports.ranges());
        for register in 0..64 {
            for ((a, _), (b, _)) in board.functions().into_iter().zip(fresh.functions()) {
                prop_assert_eq!(a.read_config(register * 4), b.read_config(register * 4));
            }
        }
    }

    #[test]
    fn no_state_harms(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let board = Board::crowded();
        for (function, device) in board.functions() {
            let mut whole = body(device);
            let len = whole.len().min(bytes.len());
            whole[..len].copy_from_slice(&bytes[..len]);
            prop_assert!(load(device, &whole).is_ok());
            (0..64).for_each(|n| {
                function.read_config(n * 4);
            });
            prop_assert_eq!(board.port(FIXED_PORT), Some(FIXED));
            prop_assert_eq!(board.memory(FIXED_ADDRESS), Some(FIXED));
        }
    }
}
