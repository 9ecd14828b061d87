//! MSI-X: the table of messages, the pending bits, and when a message leaves (PCI Local Bus 3.0, 6.8.2).
//!
//! While MSI-X is disabled, signals are ignored. While it is enabled, a vector's message is sent if neither
//! the function nor the vector is masked, the function is a bus master (a message is a memory write), and the
//! address is that of an interrupt. Otherwise its pending bit is set, and the message is sent once these
//! hold.

use super::caps::{Capabilities, NoRoom};
use crate::irq::Msi;
use crate::state::{Decoder, Encoder, StateError};

/// The capability's id.
pub const CAPABILITY: u8 = 0x11;
/// The most vectors that the table size field holds.
pub const MAX_VECTORS: u16 = 2048;

const ENTRY: u64 = 16;
/// Vector control: the only bit that is not reserved.
const VECTOR_MASKED: u32 = 1;

// Message control, the upper half of the capability's first register.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// Where messages go: a vector each.
pub trait Messages {
    /// From now on `vector` stands for `message`; for `None` it must not be delivered.
    fn route(&mut self, vector: usize, message: Option<Msi>);

    /// Delivers the message of `vector`, which has one.
    fn signal(&mut self, vector: usize);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
}

impl Entry {
    const RESET: Self = Self {
        address: 0,
        data: 0,
        masked: true,
    };

    fn dword(&self, register: u64) -> u32 {
        let bytes = self.address.to_le_bytes();
        let [low, high] = [0, 4].map(|at| {
            let dword = bytes[at..].first_chunk();
            dword.map_or(0, |b| u32::from_le_bytes(*b))
        });
        match register {
            0 => low,
            1 => high,
            2 => self.data,
            _ => self.masked.into(),
        }
    }

    fn set_dword(&mut self, register: u64, value: u32) {
        const HIGH: u64 = 0xffff_ffff_0000_0000;
        match register {
            // Bits 1:0 are 0: a message is an aligned dword.
            0 => self.address = (self.address & HIGH) | u64::from(value & !3),
            1 => self.address = (self.address & !HIGH) | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.masked = value & VECTOR_MASKED != 0,
        }
    }
}

/// The vectors of one function.
#[derive(Debug)]
pub struct Msix<M> {
    entries: Vec<Entry>,
    pending: Vec<bool>,
    /// What `messages` was told last.
    routed: Vec<Option<Msi>>,
    enabled: bool,
    function_masked: bool,
    bus_master: bool,
    messages: M,
}

impl<M: Messages> Msix<M> {
    /// `vectors` of them, at most [`MAX_VECTORS`], all masked.
    pub fn new(vectors: u16, messages: M) -> Self {
        let vectors = usize::from(vectors.min(MAX_VECTORS));
        Self {
            entries: vec![Entry::RESET; vectors],
            pending: vec![false; vectors],
            routed: vec![None; vectors],
            enabled: false,
            function_masked: false,
            bus_master: false,
            messages,
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        self.entries.len() as u64 * ENTRY
    }

    /// Bytes of the pending bit array: whole quadwords.
    pub fn pending_len(&self) -> u64 {
        self.entries.len().div_ceil(64) as u64 * 8
    }

    /// Adds the capability: the table at offset `table` of BAR `bar`, the pending bits at `pending`, both
    /// multiples of 8.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn add_capability(
        &self,
        caps: &mut Capabilities,
        bar: u8,
        table: u32,
        pending: u32,
    ) -> Result<u16, NoRoom> {
        let size = u16::try_from(self.entries.len()).unwrap_or(MAX_VECTORS);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&size.saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        caps.add(CAPABILITY, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Whether the driver uses it; then the function must not use its pin.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The capability's first register is now `register`.
    pub fn set_control(&mut self, register: u32) {
        let control = u16::try_from(register >> 16).unwrap_or(0);
        self.enabled = control & ENABLE != 0;
        self.function_masked = control & FUNCTION_MASK != 0;
        if !self.enabled {
            self.pending.fill(false);
        }
        self.update_all();
    }

    /// Whether the function may write memory.
    pub fn set_bus_master(&mut self, on: bool) {
        if self.bus_master != on {
            self.bus_master = on;
            self.update_all();
        }
    }

    /// The function has an interrupt for `vector`. Without MSI-X, and without such a vector, nothing happens.
    pub fn signal(&mut self, vector: usize) {
        if !self.enabled {
            return;
        }
        let Some(pending) = self.pending.get_mut(vector) else {
            return;
        };
        *pending = true;
        self.send(vector);
    }

    /// Reads the table from `offset` on.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let entry = usize::try_from(at / ENTRY).ok();
            if let Some(entry) = entry.and_then(|n| self.entries.get(n)) {
                let dword = entry.dword(at % ENTRY / 4).to_le_bytes();
                *byte = dword[usize::try_from(at % 4).unwrap_or(0)];
            }
        }
    }

    /// Writes the table at `offset`: one or two aligned dwords, as software must (6.8.2); others are ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Ok(vector) = usize::try_from(offset / ENTRY) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(vector) else {
            return;
        };
        let (dwords, _) = data.as_chunks::<4>();
        for (register, dword) in (offset % ENTRY / 4..).zip(dwords) {
            entry.set_dword(register, u32::from_le_bytes(*dword));
        }
        self.update(vector);
    }

    /// Reads the pending bits from `offset` on. Writes to them are ignored.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).ok().and_then(|at| at.checked_mul(8));
            if let Some(first) = first.filter(|_| at < self.pending_len()) {
                let bits = self.pending.iter().skip(first).take(8);
                *byte = bits.rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
            }
        }
    }

    /// What `vector` may deliver now.
    fn message(&self, vector: usize) -> Option<Msi> {
        let entry = self.entries.get(vector)?;
        let message = Msi {
            address: entry.address,
            data: entry.data,
        };
        let allowed = self.enabled && self.bus_master && !self.function_masked && !entry.masked;
        // A write to another address is no interrupt: it is not made, and the vector stays pending.
        (allowed && message.is_interrupt()).then_some(message)
    }

    fn update_all(&mut self) {
        for vector in 0..self.entries.len() {
            self.update(vector);
        }
    }

    fn update(&mut self, vector: usize) {
        let message = self.message(vector);
        if self.routed[vector] != message {
            self.routed[vector] = message;
            self.messages.route(vector, message);
        }
        if self.pending[vector] {
            self.send(vector);
        }
    }

    /// Sends what is pending, if it may leave.
    fn send(&mut self, vector: usize) {
        if self.routed[vector].is_some() {
            self.pending[vector] = false;
            self.messages.signal(vector);
        }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.entries.fill(Entry::RESET);
        self.pending.fill(false);
        self.enabled = false;
        self.function_masked = false;
        self.bus_master = false;
        self.update_all();
    }

    /// Writes down the table and the pending bits. The rest is in configuration space.
    pub fn save(&self, to: &mut Encoder) {
        to.u64(self.entries.len() as u64);
        for (entry, pending) in self.entries.iter().zip(&self.pending) {
            to.u64(entry.address);
            to.u32(entry.data);
            to.bool(entry.masked);
            to.bool(*pending);
        }
    }

    /// Takes over what was saved. Nothing is sent before [`Msix::set_control`] and [`Msix::set_bus_master`]
    /// allow it.
    ///
    /// # Errors
    /// If something is missing, or cannot be.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        const ITEM: &str = "number of vectors";
        self.reset();
        let count = from.count(ITEM, 14)?;
        if count != self.entries.len() {
            let why = format!("{count}, but this function has {}", self.entries.len());
            return Err(from.invalid(ITEM, why));
        }
        for (entry, pending) in self.entries.iter_mut().zip(&mut self.pending) {
            *entry = Entry {
                address: from.u64("message address")? & !3,
                data: from.u32("message data")?,
                masked: from.bool("vector mask")?,
            };
            *pending = from.bool("pending bit")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What became of the vectors' messages, in order.
    #[derive(Debug, Default)]
    struct Log {
        routes: Vec<Option<Msi>>,
        sent: Vec<(usize, Msi)>,
    }

    impl Messages for Log {
        fn route(&mut self, vector: usize, message: Option<Msi>) {
            self.routes.resize(self.routes.len().max(vector + 1), None);
            assert_ne!(self.routes[vector], message, "told twice");
            self.routes[vector] = message;
        }

        fn signal(&mut self, vector: usize) {
            let message = self.routes[vector].expect("a message without a route");
            assert!(message.is_interrupt());
            self.sent.push((vector, message));
        }
    }

    const ENABLED: u32 = 0x8000_0000;
    const MASKED: u32 = 0x4000_0000;

    fn msix(vectors: u16) -> Msix<Log> {
        Msix::new(vectors, Log::default())
    }

    fn message(data: u32) -> Msi {
        Msi {
            address: 0xfee0_1000,
            data,
        }
    }

    fn set(msix: &mut Msix<Log>, vector: u64, data: u32, masked: bool) {
        for (register, value) in [(0, 0xfee0_1000), (4, 0), (8, data), (12, masked.into())] {
            msix.write_table(vector * 16 + register, &u32::to_le_bytes(value));
        }
    }

    fn sent(msix: &mut Msix<Log>) -> Vec<usize> {
        let sent = std::mem::take(&mut msix.messages.sent);
        sent.into_iter().map(|(vector, _)| vector).collect()
    }

    fn pending(msix: &Msix<Log>) -> u64 {
        let mut bits = [0xff; 8];
        msix.read_pending(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn a_message_waits_for_every_mask() {
        let mut m = msix(3);
        set(&mut m, 2, 0x41, false);
        m.signal(2);
        assert_eq!((sent(&mut m), pending(&m)), (vec![], 0), "MSI-X is off");
        m.set_control(ENABLED | MASKED);
        m.signal(2);
        assert_eq!((sent(&mut m), pending(&m)), (vec![], 4));
        m.set_control(ENABLED);
        assert_eq!((sent(&mut m), pending(&m)), (vec![], 4), "not a bus master");
        m.set_bus_master(true);
        assert_eq!(m.messages.sent, [(2, message(0x41))]);
        assert_eq!((sent(&mut m), pending(&m)), (vec![2], 0));
        set(&mut m, 2, 0x42, true);
        m.signal(2);
        m.signal(2);
        assert_eq!((sent(&mut m), pending(&m)), (vec![], 4));
        set(&mut m, 2, 0x43, false);
        assert_eq!(
            m.messages.sent,
            [(2, message(0x43))],
            "once, and the new one"
        );
        m.signal(3);
        m.signal(usize::MAX);
        assert_eq!(sent(&mut m), [2], "there is no vector 3");
    }

    #[test]
    fn what_was_pending_is_gone_once_msix_is_off() {
        let mut m = msix(1);
        m.set_bus_master(true);
        m.set_control(ENABLED | MASKED);
        set(&mut m, 0, 1, false);
        m.signal(0);
        assert_eq!(pending(&m), 1);
        m.set_control(0);
        m.set_control(ENABLED);
        assert_eq!((sent(&mut m), pending(&m)), (vec![], 0));
        m.reset();
        assert_eq!(m.messages.routes, [None]);
    }

    #[test]
    fn messages_elsewhere_than_to_an_apic_are_no_interrupts() {
        for (address, want) in [
            (0xfee0_0000, true),
            (0xfeef_f00c, true),
            (0x0000_0100_fee0_0000, true),
            (0xffff_ff00_fee0_0000, true),
            (0, false),
            (0xfed0_0000, false),
            (0xfef0_0000, false),
            (0x0000_0001_fee0_0000, false),
            (0x0000_0080_fee0_0000, false),
        ] {
            let mut m = msix(1);
            m.set_bus_master(true);
            m.set_control(ENABLED);
            m.write_table(0, &u64::to_le_bytes(address));
            m.write_table(8, &[0; 8]);
            m.signal(0);
            assert_eq!(sent(&mut m).len(), usize::from(want), "{address:#x}");
        }
    }

    #[test]
    fn the_table_is_written_by_dwords_and_quadwords_and_read_in_any_way() {
        let mut m = msix(2);
        m.write_table(16, &0x1122_3344_fee0_5567_u64.to_le_bytes());
        m.write_table(24, &0x0000_0000_cafe_f00d_u64.to_le_bytes());
        let mut data = [0xee; 20];
        m.read_table(14, &mut data);
        assert_eq!(data[..2], [0, 0]);
        assert_eq!(data[2..10], 0x1122_3344_fee0_5564_u64.to_le_bytes());
        assert_eq!(data[10..14], 0xcafe_f00d_u32.to_le_bytes());
        assert_eq!(data[14..], [0, 0, 0, 0, 0xee, 0xee], "past the end");
        for (offset, data) in [
            (16, vec![1]),
            (18, vec![1; 4]),
            (20, vec![1; 8]),
            (16, vec![1; 2]),
        ] {
            m.write_table(offset, &data);
        }
        let mut again = [0xee; 20];
        m.read_table(14, &mut again);
        assert_eq!(again, data);
    }

    #[test]
    fn the_capability_tells_where_the_table_is() {
        let mut caps = Capabilities::default();
        assert_eq!(msix(3).add_capability(&mut caps, 2, 0, 0x800), Ok(0x40));
        assert_eq!(caps.read(0x40), 0x0002_0011);
        assert_eq!(
            (caps.read(0x44), caps.read(0x48)),
            (0x0000_0002, 0x0000_0802)
        );
        caps.write(0x40, u32::MAX, u32::MAX);
        assert_eq!(caps.read(0x40), 0xc002_0011);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Control(u32),
        Master(bool),
        Signal(usize),
        Table(u64, Vec<u8>),
        Read(u64, usize),
        Reset,
    }

    fn step() -> impl Strategy<Value = Step> {
        let data = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..=8),
            any::<bool>().prop_map(|masked| u32::from(masked).to_le_bytes().to_vec()),
            Just(0xfee0_0000_u64.to_le_bytes().to_vec()),
        ];
        prop_oneof![
            any::<u32>().prop_map(Step::Control),
            any::<bool>().prop_map(Step::Master),
            (0..80_usize).prop_map(Step::Signal),
            (0..80 * 16_u64, data.clone()).prop_map(|(at, data)| Step::Table(at, data)),
            (0..80 * 4_u64, data).prop_map(|(at, data)| Step::Table(at * 4, data)),
            (any::<u64>(), 0..9_usize).prop_map(|(at, len)| Step::Read(at, len)),
            (0..1300_u64, 0..9_usize).prop_map(|(at, len)| Step::Read(at, len)),
            Just(Step::Reset),
        ]
    }

    proptest! {
        #[test]
        fn any_accesses_keep_what_is_pending_until_it_may_leave(
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let mut m = msix(70);
            let mut control = 0;
            for step in steps {
                match step {
                    Step::Control(value) => {
                        control = value;
                        m.set_control(value);
                    }
                    Step::Master(on) => m.set_bus_master(on),
                    Step::Signal(vector) => m.signal(vector),
                    Step::Table(at, data) => m.write_table(at, &data),
                    Step::Read(at, len) => {
                        let mut data = vec![0; len];
                        m.read_table(at, &mut data);
                        m.read_pending(at, &mut data);
                    }
                    Step::Reset => {
                        control = 0;
                        m.reset();
                    }
                }
                for vector in 0..70 {
                    prop_assert_eq!(m.routed[vector], m.message(vector));
                    prop_assert!(!(m.pending[vector] && m.message(vector).is_some()));
                }
            }
            let mut e = Encoder::new();
            m.save(&mut e);
            let body = e.into_body();
            let mut loaded = msix(70);
            loaded.load(&mut Decoder::new("s", 1, &body)).unwrap();
            loaded.set_bus_master(m.bus_master);
            loaded.set_control(control);
            prop_assert_eq!(&loaded.entries, &m.entries);
            prop_assert_eq!(&loaded.pending, &m.pending);
            prop_assert_eq!(&loaded.routed, &m.routed);
            prop_assert!(loaded.messages.sent.is_empty());
            msix(3).load(&mut Decoder::new("s", 1, &body)).unwrap_err();
        }
    }
}
