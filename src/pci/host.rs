//! Configuration accesses: ports CF8..CFF and the ECAM window, decoded to a function, a register and bytes of
//! it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::reset_control::ResetControl;
use super::{ConfigSpace, DevFn, HostBridge, PciFunction};
use crate::bus::{LockedDevice, Region};
use crate::life::GuestEvents;
use crate::state::{Decoder, Encoder, StateError};

/// Ports CF8..CFF.
pub const CONFIG_PORTS: Region = Region(0);
/// The ECAM window.
pub const ECAM: Region = Region(1);

/// How many ports configuration mechanism 1 takes.
pub const PORTS: u64 = 8;
const ADDRESS_OFFSET: u64 = 0;
/// The reset control register, inside the address register's four bytes.
const RESET_OFFSET: u64 = 1;
const DATA_OFFSET: u64 = 4;

// CONFIG_ADDRESS (PCI Local Bus 3.0, 3.2.2.3.2).
const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// Bytes of configuration space of one function in ECAM.
const ECAM_FUNCTION: u64 = 4096;
const FUNCTIONS: u64 = 256;

/// The root complex, on both buses: one lock guards what they reach.
pub struct PciHost {
    address: u32,
    reset_control: ResetControl,
    /// Of the chipset: their state is part of this one's.
    functions: Vec<Option<Box<dyn PciFunction>>>,
    /// Of devices, which are saved by themselves.
    devices: Vec<Option<Arc<dyn ConfigSpace>>>,
}

/// A function at its place.
enum Function<'a> {
    Chipset(&'a mut dyn PciFunction),
    Device(&'a dyn ConfigSpace),
}

impl Function<'_> {
    fn read_config(&mut self, offset: u16) -> u32 {
        match self {
            Self::Chipset(function) => function.read_config(offset),
            Self::Device(function) => function.read_config(offset),
        }
    }

    fn write_config(&mut self, offset: u16, value: u32, mask: u32) {
        match self {
            Self::Chipset(function) => function.write_config(offset, value, mask),
            Self::Device(function) => function.write_config(offset, value, mask),
        }
    }
}

impl PciHost {
    /// With nothing on bus 0.
    pub fn empty(events: GuestEvents) -> Self {
        Self {
            address: 0,
            reset_control: ResetControl::new(events),
            functions: (0..FUNCTIONS).map(|_| None).collect(),
            devices: (0..FUNCTIONS).map(|_| None).collect(),
        }
    }

    /// With the host bridge alone on bus 0.
    pub fn new(events: GuestEvents) -> Self {
        let mut host = Self::empty(events);
        host.insert(DevFn::HOST_BRIDGE, Box::new(HostBridge::default()));
        host
    }

    /// Puts `function` into its slot; returns what was there.
    pub fn insert(
        &mut self,
        at: DevFn,
        function: Box<dyn PciFunction>,
    ) -> Option<Box<dyn PciFunction>> {
        self.functions[at.index()].replace(function)
    }

    /// Puts a device's function into its place, where no other is.
    pub fn plug(&mut self, at: DevFn, device: Arc<dyn ConfigSpace>) {
        self.devices[at.index()] = Some(device);
    }

    /// `bus` and `devfn` to the function there.
    fn function(&mut self, bus: u64, devfn: u64) -> Option<Function<'_>> {
        let index = usize::try_from(devfn).ok().filter(|_| bus == 0)?;
        if let Some(function) = self.functions.get_mut(index)? {
            return Some(Function::Chipset(function.as_mut()));
        }
        self.devices.get(index)?.as_deref().map(Function::Device)
    }

    /// Where an access leads: bus, device and function, offset in the function's configuration space.
    fn decode(&self, region: Region, at: u64) -> Option<Target> {
        if region == ECAM {
            return Some(Target {
                bus: at / (ECAM_FUNCTION * FUNCTIONS),
                devfn: at / ECAM_FUNCTION % FUNCTIONS,
                offset: at % ECAM_FUNCTION,
            });
        }
        let byte = at
            .checked_sub(DATA_OFFSET)
            .filter(|byte| *byte < PORTS - DATA_OFFSET)?;
        (self.address & ADDRESS_ENABLE != 0).then(|| Target {
            bus: u64::from(self.address >> 16 & 0xff),
            devfn: u64::from(self.address >> 8 & 0xff),
            offset: u64::from(self.address & 0xfc) + byte,
        })
    }

    fn read_function(&mut self, target: &Target, data: &mut [u8]) {
        let Some(mut function) = self.function(target.bus, target.devfn) else {
            return;
        };
        for part in target.registers(data.len()) {
            let register = function.read_config(part.register).to_le_bytes();
            data[part.bytes.clone()]
                .copy_from_slice(&register[part.first..part.first + part.bytes.len()]);
        }
    }

    fn write_function(&mut self, target: &Target, data: &[u8]) {
        let Some(mut function) = self.function(target.bus, target.devfn) else {
            return;
        };
        for part in target.registers(data.len()) {
            let (mut value, mut mask) = ([0; 4], [0; 4]);
            let range = part.first..part.first + part.bytes.len();
            value[range.clone()].copy_from_slice(&data[part.bytes]);
            mask[range].fill(0xff);
            function.write_config(
                part.register,
                u32::from_le_bytes(value),
                u32::from_le_bytes(mask),
            );
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Target {
    bus: u64,
    devfn: u64,
    offset: u64,
}

/// The part of an access that falls into one register.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    register: u16,
    /// First byte within the register.
    first: usize,
    /// Which bytes of the access.
    bytes: Range<usize>,
}

impl Target {
    /// Splits an access of `len` bytes at register boundaries, and cuts it off at the end of configuration
    /// space.
    fn registers(&self, len: usize) -> impl Iterator<Item = Part> {
        // Offsets are below 4096, accesses at most 8 bytes.
        let start = usize::try_from(self.offset).unwrap_or(4096);
        let end = (start + len).min(4096);
        (start / 4..end.div_ceil(4)).filter_map(move |index| {
            let from = start.max(index * 4);
            let to = end.min(index * 4 + 4);
            Some(Part {
                register: u16::try_from(index * 4).ok()?,
                first: from - index * 4,
                bytes: from - start..to - start,
            })
        })
    }
}

impl LockedDevice for PciHost {
    fn name(&self) -> &str {
        "pci-host"
    }

    fn reset(&mut self) {
        self.address = 0;
        self.reset_control.reset();
        for function in self.functions.iter_mut().flatten() {
            function.reset();
        }
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        if let Some(target) = self.decode(region, offset) {
            self.read_function(&target, data);
        } else if (region, offset) == (CONFIG_PORTS, ADDRESS_OFFSET)
            && let Ok(dword) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            *dword = self.address.to_le_bytes();
        } else if (region, offset) == (CONFIG_PORTS, RESET_OFFSET)
            && let [byte] = data
        {
            *byte = self.reset_control.read();
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        if let Some(target) = self.decode(region, offset) {
            self.write_function(&target, data);
        } else if (region, offset) == (CONFIG_PORTS, ADDRESS_OFFSET)
            && let Ok(dword) = <[u8; 4]>::try_from(data)
        {
            self.address = u32::from_le_bytes(dword) & ADDRESS_BITS;
        } else if (region, offset) == (CONFIG_PORTS, RESET_OFFSET)
            && let [byte] = data
        {
            self.reset_control.write(*byte);
        }
    }

    fn save(&self, to: &mut Encoder) {
        to.u32(self.address);
        self.reset_control.save(to);
        to.u64(self.functions.iter().flatten().count() as u64);
        for (place, function) in (0..=u8::MAX).zip(&self.functions) {
            if let Some(function) = function {
                let mut body = Encoder::new();
                function.save(&mut body);
                to.u8(place);
                to.bytes(&body.into_body());
            }
        }
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.address = from.u32("address")? & ADDRESS_BITS;
        self.reset_control.load(from)?;
        let count = from.count("number of functions", 9)?;
        let expected = self.functions.iter().flatten().count();
        if count != expected {
            let why = format!("{count}, but this machine has {expected}");
            return Err(from.invalid("number of functions", why));
        }
        let mut next = 0;
        for _ in 0..count {
            let place = from.u8("place of a function")?;
            let Some(Some(function)) = self.functions.get_mut(usize::from(place)) else {
                let why = format!("this machine has none at {place:#04x}");
                return Err(from.invalid("place of a function", why));
            };
            if place < next {
                return Err(from.invalid("place of a function", "out of order"));
            }
            next = place.saturating_add(1);
            let body = from.bytes("function")?;
            let mut body = Decoder::new(from.section(), from.version(), body);
            function.load(&mut body)?;
            body.finish()?;
        }
        Ok(())
    }
}

impl fmt::Debug for PciHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciHost")
            .field("address", &self.address)
            .field("functions", &self.functions.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{
        accesses, assert_comes_back, hostile, inb, inl, inw, load, outb, outl, outw, replay, saved,
    };
    use crate::life::channel;
    use crate::life::{GuestEvent, Inbox};
    use proptest::prelude::*;

    /// Where a guest finds the window.
    const ECAM: u64 = 0xe000_0000;

    /// The root complex at a guest's addresses.
    struct Host(PciHost);

    impl Host {
        fn place(addr: u64) -> (Region, u64) {
            match addr.checked_sub(ECAM) {
                Some(offset) => (super::ECAM, offset),
                None => (CONFIG_PORTS, addr - 0xcf8),
            }
        }

        fn insert(&mut self, at: DevFn, function: Box<dyn PciFunction>) {
            assert!(self.0.insert(at, function).is_none());
        }
    }

    impl LockedDevice for Host {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn reset(&mut self) {
            self.0.reset();
        }
        fn read(&mut self, _region: Region, addr: u64, data: &mut [u8]) {
            let (region, offset) = Self::place(addr);
            self.0.read(region, offset, data);
        }
        fn write(&mut self, _region: Region, addr: u64, data: &[u8]) {
            let (region, offset) = Self::place(addr);
            self.0.write(region, offset, data);
        }
        fn save(&self, to: &mut Encoder) {
            self.0.save(to);
        }
        fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
            self.0.load(from)
        }
    }

    fn host() -> (Host, Inbox) {
        let (guest, _, events) = channel();
        (Host(PciHost::new(guest)), events)
    }

    fn by_ports(host: &mut Host, bdf: u32, offset: u32) -> u32 {
        outl(host, 0xcf8, ADDRESS_ENABLE | bdf << 8 | offset);
        inl(host, 0xcfc)
    }

    /// A function that remembers all 4096 bytes.
    struct Ram(Vec<u32>);

    impl PciFunction for Ram {
        fn read_config(&mut self, offset: u16) -> u32 {
            self.0[usize::from(offset / 4)]
        }

        fn write_config(&mut self, offset: u16, value: u32, mask: u32) {
            let register = &mut self.0[usize::from(offset / 4)];
            *register = (*register & !mask) | (value & mask);
        }

        fn reset(&mut self) {
            self.0.fill(0);
        }

        fn save(&self, to: &mut Encoder) {
            self.0.iter().for_each(|register| to.u32(*register));
        }

        fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
            for register in &mut self.0 {
                *register = from.u32("register")?;
            }
            Ok(())
        }
    }

    #[test]
    fn the_bridge_is_seen_both_ways() {
        let (mut h, _) = host();
        for (offset, want) in [
            (0x00, 0x0d57_8086),
            (0x04, 0x0000_0006),
            (0x08, 0x0600_0000),
            (0x0c, 0),
            (0x10, 0),
            (0x34, 0),
            (0x3c, 0),
        ] {
            assert_eq!(by_ports(&mut h, 0, offset), want, "offset {offset:#x}");
            assert_eq!(inl(&mut h, ECAM + u64::from(offset)), want);
        }
        assert_eq!(inl(&mut h, ECAM + 0x100), 0, "no extended capabilities");
    }

    #[test]
    fn empty_slots_read_all_ones() {
        let (mut h, _) = host();
        for bdf in [0x0001, 0x0008, 0x00ff, 0x0100, 0xffff] {
            assert_eq!(by_ports(&mut h, bdf, 0), 0xffff_ffff, "{bdf:#x}");
            assert_eq!(inl(&mut h, ECAM + (u64::from(bdf) << 12)), 0xffff_ffff);
            outl(&mut h, ECAM + (u64::from(bdf) << 12), 0);
        }
    }

    #[test]
    fn sizing_the_bridges_bars_finds_none() {
        let (mut h, _) = host();
        for bar in (0x10..0x28).step_by(4).chain([0x30]) {
            outl(&mut h, ECAM + bar, 0xffff_ffff);
            assert_eq!(inl(&mut h, ECAM + bar), 0);
        }
        outw(&mut h, ECAM + 4, 0);
        assert_eq!(inw(&mut h, ECAM + 4), 0x0006, "hard-wired");
        outl(&mut h, ECAM + 0x3c, 0xffff_ffff);
        assert_eq!(inl(&mut h, ECAM + 0x3c), 0xff, "only the scratch byte");
        h.reset();
        assert_eq!(inl(&mut h, ECAM + 0x3c), 0);
    }

    /// Linux's test for mechanism 1 and against mechanism 2 (arch/x86/pci/direct.c).
    #[test]
    fn linux_finds_mechanism_1_and_not_2() {
        let (mut h, events) = host();
        outb(&mut h, 0xcfb, 0x01);
        let before = inl(&mut h, 0xcf8);
        outl(&mut h, 0xcf8, 0x8000_0000);
        assert_eq!(inl(&mut h, 0xcf8), 0x8000_0000);
        outl(&mut h, 0xcf8, before);
        outb(&mut h, 0xcfb, 0x00);
        outb(&mut h, 0xcf8, 0x00);
        outb(&mut h, 0xcfa, 0x00);
        assert_eq!((inb(&mut h, 0xcf8), inb(&mut h, 0xcfa)), (0xff, 0xff));
        assert!(events.take_guest_events().is_empty());
    }

    #[test]
    fn the_reset_register_is_a_byte_inside_the_address_register() {
        let (mut h, events) = host();
        // A dword there is an address, whatever its second byte.
        outl(&mut h, 0xcf8, 0x8000_0600);
        assert!(events.take_guest_events().is_empty());
        assert_eq!(inb(&mut h, 0xcf9), 0);
        outw(&mut h, 0xcf9, 0x0606);
        assert!(events.take_guest_events().is_empty());
        outb(&mut h, 0xcf9, 0x06);
        assert!(matches!(
            events.take_guest_events()[..],
            [GuestEvent::Reset { .. }]
        ));
        assert_eq!(inb(&mut h, 0xcf9), 0x06);
        assert_eq!(inl(&mut h, 0xcf8), 0x8000_0600, "the address is untouched");
        h.reset();
        assert_eq!(inl(&mut h, 0xcf8), 0);
        assert_eq!(inb(&mut h, 0xcf9), 0);
    }

    #[test]
    fn the_data_port_needs_the_enable_bit() {
        let (mut h, _) = host();
        outl(&mut h, 0xcf8, 0);
        assert_eq!(inl(&mut h, 0xcfc), 0xffff_ffff);
    }

    #[test]
    fn every_width_and_place_reaches_the_right_bytes() {
        let (mut h, _) = host();
        let at = DevFn::new(3, 1).unwrap();
        h.insert(at, Box::new(Ram(vec![0; 1024])));
        let ecam = ECAM + (0x19 << 12);
        outl(&mut h, ecam + 0x40, 0x4433_2211);
        outb(&mut h, ecam + 0x42, 0xaa);
        assert_eq!(inl(&mut h, ecam + 0x40), 0x44aa_2211);
        assert_eq!(by_ports(&mut h, 0x19, 0x40), 0x44aa_2211);
        assert_eq!(inw(&mut h, 0xcfe), 0x44aa);
        outw(&mut h, 0xcfd, 0xbbcc);
        assert_eq!(inl(&mut h, ecam + 0x40), 0x44bb_cc11);
        // Eight bytes are two registers.
        h.write(Region::ONLY, ecam + 0xffc - 4, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(inl(&mut h, ecam + 0xffc), 0x0807_0605);
        // Past the end there is nothing, also not the next function.
        let mut data = [0xff; 8];
        h.read(Region::ONLY, ecam + 0xffc, &mut data);
        assert_eq!(data, [5, 6, 7, 8, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn places_out_of_range_do_not_exist() {
        assert!(DevFn::new(32, 0).is_none());
        assert!(DevFn::new(0, 8).is_none());
        assert_eq!(DevFn::new(0, 0), Some(DevFn::HOST_BRIDGE));
    }

    #[test]
    fn another_set_of_functions_is_refused() {
        let (mut two, _) = host();
        let at = DevFn::new(3, 1).unwrap();
        two.insert(at, Box::new(Ram(vec![5; 2])));
        let body = saved(&two);
        let (mut one, _) = host();
        let error = load(&mut one, &body).unwrap_err().to_string();
        assert!(error.contains("this machine has 1"), "{error}");
        let (mut other, _) = host();
        other.insert(DevFn::new(3, 2).unwrap(), Box::new(Ram(vec![5; 2])));
        let error = load(&mut other, &body).unwrap_err().to_string();
        assert!(error.contains("none at 0x19"), "{error}");
        let (mut same, _) = host();
        same.insert(at, Box::new(Ram(vec![0; 2])));
        assert_comes_back(&two, &mut same);
    }

    proptest! {
        #[test]
        fn it_comes_back_after_any_accesses(ports in accesses(PORTS + 4), mmio in accesses(0x3000)) {
            let (mut h, _) = host();
            replay(&mut h.0, super::ECAM, mmio);
            replay(&mut h.0, CONFIG_PORTS, ports);
            let (mut fresh, events) = host();
            assert_comes_back(&h, &mut fresh);
            prop_assert!(events.take_guest_events().is_empty(), "a restore is no reset");
        }

        #[test]
        fn no_state_harms(body in hostile(), ports in accesses(PORTS + 4)) {
            let (mut h, _) = host();
            body.load_into(&mut h);
            replay(&mut h.0, CONFIG_PORTS, ports);
        }

        #[test]
        fn no_access_sequence_panics(ports in accesses(PORTS + 4), mmio in accesses(0x3000)) {
            let (mut h, _) = host();
            replay(&mut h.0, CONFIG_PORTS, ports);
            replay(&mut h.0, super::ECAM, mmio.clone());
            let end = (256 << 20) - 0x2000;
            let at_end = mmio.into_iter().map(|(write, at, data)| (write, end + at, data));
            replay(&mut h.0, super::ECAM, at_end.collect());
        }
    }
}
