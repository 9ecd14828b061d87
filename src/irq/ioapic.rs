//! The I/O APIC in user space, for the split irqchip (KVM has the local APICs, we have this).
//!
//! What the machine has to do for it:
//! * `KVM_CAP_SPLIT_IRQCHIP` with [`PINS`] reserved routes, before any vCPU exists.
//! * [`MsiSink::send`] is `KVM_SIGNAL_MSI`.
//! * [`MsiSink::routes_changed`] is `KVM_SET_GSI_ROUTING`: entry *n* becomes the MSI route of GSI *n*, the
//!   other routes stay ([`Routes`](super::Routes)). KVM never delivers through these; it reads from them
//!   which vectors are level-triggered, and only for those leaves with `KVM_EXIT_IOAPIC_EOI` when a local
//!   APIC gets the EOI (`kvm_scan_ioapic_routes`).
//! * [`IoApic::eoi`] is called upon that exit.
//! * [`IoApicMmio`] is placed at 0xfec00000; [`IoApic`] is the [`IrqSink`] of the devices' lines.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::{IrqSink, Msi};
use crate::bus::{LockedDevice, Region, lock};
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gsi;

/// Interrupt inputs.
pub const PINS: usize = 24;

/// Highest pin, and version 0x20: with an EOI register. KVM's local APICs offer directed EOI with a
/// user-space I/O APIC (`kvm_apic_set_version`), and a guest that uses it needs the register.
const VERSION: u32 = 23 << 16 | 0x20;
const _: () = assert!(PINS == 24);

// Registers (82093AA data sheet, 3.1; the EOI register: ICH9 data sheet, 13.5).
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_REDIRECTION: u8 = 0x10;

const ID_BITS: u32 = 0x0f00_0000;

// Redirection table entry.
const VECTOR: u64 = 0xff;
const DELIVERY_SHIFT: u32 = 8;
const DELIVERY_EXTINT: u64 = 7;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
/// All but delivery status, remote IRR and the reserved bits.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

// MSI (Intel SDM 3A, 11.11).
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_ASSERT: u32 = 1 << 14;
const MSI_LEVEL: u32 = 1 << 15;

/// How the I/O APIC reaches the local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers one interrupt message now.
    fn send(&self, msi: Msi);

    /// The messages that the pins would send have changed; `None` for a pin that sends none.
    fn routes_changed(&self, routes: &[Option<Msi>; PINS]);
}

/// The I/O APIC.
pub struct IoApic {
    state: Mutex<State>,
    msi: Arc<dyn MsiSink>,
}

#[derive(Clone, Debug)]
struct State {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// The level of each input, a bit per pin.
    inputs: u32,
    routes: [Option<Msi>; PINS],
}

impl State {
    fn power_on() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; PINS],
            inputs: 0,
            routes: [None; PINS],
        }
    }
}

/// The message of a redirection entry; `None` for ExtINT, which asks a PIC that is not there.
fn message(entry: u64) -> Option<Msi> {
    let delivery = entry >> DELIVERY_SHIFT & 7;
    if delivery == DELIVERY_EXTINT {
        return None;
    }
    let logical = if entry & LOGICAL != 0 { MSI_LOGICAL } else { 0 };
    // Vector and delivery mode stand at the same bits in both formats; assert is always set, as for every
    // level-triggered message that is sent.
    let data = u32::try_from(entry & (VECTOR | 7 << DELIVERY_SHIFT)).ok()?;
    let level = if entry & LEVEL != 0 { MSI_LEVEL } else { 0 };
    Some(Msi {
        address: MSI_ADDRESS | entry >> DESTINATION_SHIFT << MSI_DESTINATION_SHIFT | logical,
        data: data | level | MSI_ASSERT,
    })
}

impl IoApic {
    /// All pins masked.
    pub fn new(msi: Arc<dyn MsiSink>) -> Self {
        Self {
            state: Mutex::new(State::power_on()),
            msi,
        }
    }

    /// A local APIC got the EOI for `vector`: level-triggered pins with it may interrupt again, and do if
    /// still driven.
    pub fn eoi(&self, vector: u8) {
        let mut state = lock(&self.state);
        let mut freed = 0_u32;
        for (pin, entry) in state.entries.iter_mut().enumerate() {
            if *entry & REMOTE_IRR != 0 && *entry & VECTOR == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                freed |= 1 << pin;
            }
        }
        if freed != 0 {
            self.publish(&mut state);
            for pin in (0..PINS).filter(|pin| freed & 1 << pin != 0) {
                self.service_level(&mut state, pin);
            }
        }
    }

    /// Sends the message of a level-triggered pin that is driven and whose last interrupt is done.
    fn service_level(&self, state: &mut State, pin: usize) {
        let entry = state.entries[pin];
        if entry & LEVEL != 0
            && entry & (MASKED | REMOTE_IRR) == 0
            && state.inputs & 1 << pin != 0
            && let Some(message) = message(entry)
        {
            state.entries[pin] |= REMOTE_IRR;
            self.msi.send(message);
        }
    }

    /// Tells of changed routes. A masked pin keeps its route while its interrupt is in service, or the EOI
    /// would not arrive.
    fn publish(&self, state: &mut State) {
        let mut routes = [None; PINS];
        for (route, entry) in routes.iter_mut().zip(state.entries) {
            if entry & MASKED == 0 || entry & REMOTE_IRR != 0 {
                *route = message(entry);
            }
        }
        if routes != state.routes {
            state.routes = routes;
            self.msi.routes_changed(&routes);
        }
    }

    fn read_window(&self) -> u32 {
        let state = lock(&self.state);
        match state.select {
            INDEX_ID | INDEX_ARBITRATION => state.id,
            INDEX_VERSION => VERSION,
            select => match redirection(select) {
                Some((pin, true)) => (state.entries[pin] >> 32) as u32,
                Some((pin, false)) => (state.entries[pin] & 0xffff_ffff) as u32,
                None => 0xffff_ffff,
            },
        }
    }

    fn write_window(&self, value: u32) {
        let mut state = lock(&self.state);
        if state.select == INDEX_ID {
            state.id = value & ID_BITS;
            return;
        }
        let Some((pin, high)) = redirection(state.select) else {
            return;
        };
        let (value, half) = if high {
            (u64::from(value) << 32, 0xffff_ffff_0000_0000)
        } else {
            (u64::from(value), 0x0000_0000_ffff_ffff)
        };
        let writable = WRITABLE & half;
        let mut entry = (state.entries[pin] & !writable) | (value & writable);
        if entry & LEVEL == 0 {
            // Remote IRR has no meaning for edges; software switches to edge and back to clear it.
            entry &= !REMOTE_IRR;
        }
        state.entries[pin] = entry;
        // Before delivery, so that KVM knows of the EOI to watch for.
        self.publish(&mut state);
        self.service_level(&mut state, pin);
    }

    fn save(&self, to: &mut Encoder) {
        let state = lock(&self.state);
        to.u8(state.select);
        to.u32(state.id);
        to.u32(state.inputs);
        state.entries.iter().for_each(|entry| to.u64(*entry));
    }

    /// The routes are told anew to a VM that has none yet.
    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let mut loaded = State {
            select: from.u8("register index")?,
            id: from.u32("ID")? & ID_BITS,
            inputs: from.u32("inputs")? & ((1 << PINS) - 1),
            ..State::power_on()
        };
        for entry in &mut loaded.entries {
            *entry = from.u64("redirection entry")?;
            if *entry & !(WRITABLE | REMOTE_IRR) != 0 || *entry & (LEVEL | REMOTE_IRR) == REMOTE_IRR
            {
                return Err(from.invalid("redirection entry", format!("{entry:#x} cannot be")));
            }
        }
        let mut state = lock(&self.state);
        *state = loaded;
        self.publish(&mut state);
        Ok(())
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        let routes = state.routes;
        // The inputs are the devices' and stay as driven.
        let inputs = state.inputs;
        *state = State {
            inputs,
            routes,
            ..State::power_on()
        };
        self.publish(&mut state);
    }
}

/// The pin that a register index belongs to, and whether it is the entry's upper half.
fn redirection(select: u8) -> Option<(usize, bool)> {
    let index = usize::from(select.checked_sub(INDEX_REDIRECTION)?);
    (index / 2 < PINS).then_some((index / 2, index % 2 == 1))
}

impl IrqSink for IoApic {
    fn set_level(&self, gsi: Gsi, high: bool) {
        let Some(pin) = usize::try_from(gsi.0).ok().filter(|pin| *pin < PINS) else {
            return;
        };
        let mut state = lock(&self.state);
        let rises = high && state.inputs & 1 << pin == 0;
        if high {
            state.inputs |= 1 << pin;
        } else {
            state.inputs &= !(1 << pin);
        }
        let entry = state.entries[pin];
        if entry & LEVEL != 0 {
            self.service_level(&mut state, pin);
        } else if rises
            && entry & MASKED == 0
            && let Some(message) = message(entry)
        {
            // An edge at a masked pin is lost (82093AA data sheet, 3.2.4, interrupt mask).
            self.msi.send(message);
        }
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic")
            .field("state", &*lock(&self.state))
            .finish_non_exhaustive()
    }
}

/// The I/O APIC's registers as a device on the MMIO bus.
#[derive(Debug)]
pub struct IoApicMmio {
    ioapic: Arc<IoApic>,
}

impl IoApicMmio {
    /// Those of `ioapic`.
    pub fn new(ioapic: Arc<IoApic>) -> Self {
        Self { ioapic }
    }
}

impl LockedDevice for IoApicMmio {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn reset(&mut self) {
        self.ioapic.reset();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(lock(&self.ioapic.state).select),
            IOWIN => self.ioapic.read_window(),
            _ => return,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    // Registers are 32 bits wide; a narrower write is extended by zeros, as KVM's own I/O APIC does.
    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (byte, value) in bytes.iter_mut().zip(data) {
            *byte = *value;
        }
        match offset {
            IOREGSEL => lock(&self.ioapic.state).select = bytes[0],
            IOWIN => self.ioapic.write_window(u32::from_le_bytes(bytes)),
            EOI => self.ioapic.eoi(bytes[0]),
            _ => {}
        }
    }

    fn save(&self, to: &mut Encoder) {
        self.ioapic.save(to);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.ioapic.load(from)
    }
}

#[cfg(test)]
mod tests;
