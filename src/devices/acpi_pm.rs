//! ACPI fixed hardware: PM1a event and control blocks, the power management timer, general purpose events.
//!
//! The machine is always in ACPI mode (FADT: SMI_CMD = 0), so SCI_EN is hard-wired to one. The reset register
//! is not here: the FADT refers to the reset control register at 0xcf9.

use std::sync::Arc;
use std::time::Duration;

use super::clock::{Clock, Timed};
use super::io_thread::Waker;
use crate::bus::{LockedDevice, Region};
use crate::irq::IrqLine;
use crate::life::{GuestEvent, GuestEvents};
use crate::state::{Decoder, Encoder, StateError};

/// Offset of the PM1a event block: status and enable, two bytes each.
pub const PM1_EVENT: u64 = 0x00;
/// Offset of the PM1a control block, two bytes.
pub const PM1_CONTROL: u64 = 0x04;
/// Offset of the timer, four bytes.
pub const TIMER: u64 = 0x08;
/// Offset of general purpose event block 0: status and enable, two bytes each.
pub const GPE0: u64 = 0x20;
/// Length of all blocks.
pub const LEN: u64 = 0x24;

/// The blocks: region, offset from the PM1 event block, length. A region's number is its offset.
pub const BLOCKS: [(Region, u64, u64); 4] = [
    (Region(0x00), PM1_EVENT, 4),
    (Region(0x04), PM1_CONTROL, 2),
    (Region(0x08), TIMER, 4),
    (Region(0x20), GPE0, 4),
];

/// `offset` within `region`, counted from the PM1 event block.
fn from_event_block(region: Region, offset: u64) -> u64 {
    u64::from(region.0).saturating_add(offset)
}

/// PM timer frequency (ACPI 6.5, 4.8.3.3).
pub const TIMER_HZ: u64 = 3_579_545;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

// PM1 status and enable bits (ACPI 6.5, tables 4.11 and 4.12).
const TIMER_EVENT: u16 = 1 << 0;
const GLOBAL_EVENT: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC_EVENT: u16 = 1 << 10;
const ENABLE_BITS: u16 = TIMER_EVENT | GLOBAL_EVENT | POWER_BUTTON | SLEEP_BUTTON | RTC_EVENT;

// PM1 control bits (ACPI 6.5, table 4.13).
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The fixed hardware of one machine.
#[derive(Debug)]
pub struct AcpiPm {
    sleep_type_s5: u16,
    sci: IrqLine,
    events: GuestEvents,
    clock: Arc<dyn Clock>,
    waker: Waker,
    status: u16,
    enable: u16,
    sleep_type: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// The number of changes of the timer's carry bit until the guest last cleared the timer's status.
    carries_seen: u64,
    sci_high: bool,
}

impl AcpiPm {
    /// `sleep_type_s5` is the value in the DSDT's `\_S5`. `waker` is called when the guest enables an
    /// interrupt at the timer's overflow.
    pub fn new(
        sleep_type_s5: u8,
        sci: IrqLine,
        events: GuestEvents,
        clock: Arc<dyn Clock>,
        waker: Waker,
    ) -> Self {
        let mut device = Self {
            sleep_type_s5: u16::from(sleep_type_s5),
            sci,
            events,
            clock,
            waker,
            status: 0,
            enable: 0,
            sleep_type: 0,
            gpe_status: 0,
            gpe_enable: 0,
            carries_seen: 0,
            sci_high: false,
        };
        device.carries_seen = device.carries();
        device
    }

    /// The user pressed the power button: the guest's operating system decides how to react.
    pub fn power_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.update();
    }

    /// Raises general purpose event `bit` (0..=15).
    pub fn raise_gpe(&mut self, bit: u8) {
        self.gpe_status |= 1_u16.checked_shl(u32::from(bit)).unwrap_or(0);
        self.update();
    }

    /// Whether the guest has enabled the power button's event, so that pressing it can have an effect.
    pub fn listens_to_power_button(&self) -> bool {
        self.enable & POWER_BUTTON != 0
    }

    fn ticks(&self) -> u64 {
        let ticks = self.clock.monotonic().as_nanos() * u128::from(TIMER_HZ) / NANOS_PER_SECOND;
        // Overflows after 160,000 years.
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The number of changes of bit 31 of the 32-bit timer.
    fn carries(&self) -> u64 {
        self.ticks() >> 31
    }

    fn wants_interrupt(&self) -> bool {
        self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0
    }

    fn update(&mut self) {
        if self.carries() != self.carries_seen {
            self.status |= TIMER_EVENT;
        }
        let high = self.wants_interrupt();
        if high != self.sci_high {
            self.sci_high = high;
            self.sci.set(high);
        }
    }

    fn read_byte(&self, offset: u64) -> Option<u8> {
        let (register, first): (u32, u64) = match offset {
            0x00..=0x01 => (self.status.into(), 0x00),
            0x02..=0x03 => (self.enable.into(), 0x02),
            0x04..=0x05 => ((self.sleep_type | SCI_ENABLE).into(), 0x04),
            0x20..=0x21 => (self.gpe_status.into(), 0x20),
            0x22..=0x23 => (self.gpe_enable.into(), 0x22),
            _ => return None,
        };
        Some(register.to_le_bytes()[usize::from(offset != first)])
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        // The byte at its position in a 16-bit register, and the mask of the other one.
        let (value, keep) = if offset & 1 == 0 {
            (u16::from(value), 0xff00)
        } else {
            (u16::from(value) << 8, 0x00ff)
        };
        match offset {
            0x00..=0x01 => {
                self.status &= !value;
                if value & TIMER_EVENT != 0 {
                    self.carries_seen = self.carries();
                }
            }
            0x02..=0x03 => {
                let before = self.enable;
                self.enable = (before & keep) | (value & ENABLE_BITS);
                if self.enable & !before & TIMER_EVENT != 0 {
                    self.waker.wake();
                }
            }
            0x04..=0x05 => {
                self.sleep_type = (self.sleep_type & keep) | (value & SLEEP_TYPE_MASK);
                // Write-only. Sleep states other than S5 do not exist here: the DSDT defines none.
                if value & SLEEP_ENABLE != 0
                    && self.sleep_type >> SLEEP_TYPE_SHIFT == self.sleep_type_s5
                {
                    self.events.report(GuestEvent::PowerOff);
                }
            }
            0x20..=0x21 => self.gpe_status &= !value,
            0x22..=0x23 => self.gpe_enable = (self.gpe_enable & keep) | value,
            _ => {}
        }
    }
}

impl LockedDevice for AcpiPm {
    fn name(&self) -> &str {
        "acpi-pm"
    }

    /// The timer continues, since it is a clock.
    fn reset(&mut self) {
        self.status = 0;
        self.enable = 0;
        self.sleep_type = 0;
        self.gpe_status = 0;
        self.gpe_enable = 0;
        self.carries_seen = self.carries();
        self.update();
    }

    // The registers may be accessed byte by byte (ACPI 6.5, 4.8.1.1); the timer's bytes are read at one
    // moment.
    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        self.update();
        let offset = from_event_block(region, offset);
        // 32 bits wide (FADT: TMR_VAL_EXT); a 24-bit reader ignores the rest.
        let timer = self.ticks().to_le_bytes();
        for (byte, offset) in data.iter_mut().zip(offset..) {
            let value = match offset {
                0x08..=0x0b => usize::try_from(offset - TIMER).ok().map(|i| timer[i]),
                _ => self.read_byte(offset),
            };
            if let Some(value) = value {
                *byte = value;
            }
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        // An overflow that this write is not meant to clear must be in the status before it.
        self.update();
        let offset = from_event_block(region, offset);
        for (byte, offset) in data.iter().zip(offset..) {
            self.write_byte(offset, *byte);
        }
        self.update();
    }

    // The timer reads the devices' clock, which is saved beside the devices.
    fn save(&self, to: &mut Encoder) {
        to.u16(self.status);
        to.u16(self.enable);
        to.u16(self.sleep_type);
        to.u16(self.gpe_status);
        to.u16(self.gpe_enable);
        to.u64(self.carries_seen);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.status = from.u16("PM1 status")? & ENABLE_BITS;
        self.enable = from.u16("PM1 enable")? & ENABLE_BITS;
        self.sleep_type = from.u16("sleep type")? & SLEEP_TYPE_MASK;
        self.gpe_status = from.u16("GPE status")?;
        self.gpe_enable = from.u16("GPE enable")?;
        let carries = from.u64("timer carries")?;
        if carries > self.carries() {
            return Err(from.invalid("timer carries", format!("{carries} are still to come")));
        }
        self.carries_seen = carries;
        self.sci_high = self.wants_interrupt();
        self.sci.set(self.sci_high);
        self.waker.wake();
        Ok(())
    }
}

impl Timed for AcpiPm {
    fn until_due(&self) -> Option<Duration> {
        if self.enable & TIMER_EVENT == 0 || self.status & TIMER_EVENT != 0 {
            return None;
        }
        let left = (self.carries_seen + 1)
            .saturating_mul(1 << 31)
            .saturating_sub(self.ticks());
        let nanos = u128::from(left) * NANOS_PER_SECOND / u128::from(TIMER_HZ);
        // Rounded up, so that the overflow has happened when the time has passed.
        Some(
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
                + Duration::from_micros(1),
        )
    }

    fn tick(&mut self) {
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::io_thread::IoThread;
    use crate::devices::testing::{
        HandClock, LineRecorder, accesses, assert_comes_back, hostile, inb, inl, inw, outb, outl,
        outw, replay,
    };
    use crate::life::{Inbox, channel};
    use proptest::prelude::*;

    struct Bench {
        pm: AcpiPm,
        sci: Arc<LineRecorder>,
        clock: Arc<HandClock>,
        events: Inbox,
    }

    fn bench() -> Bench {
        let (sci, line) = LineRecorder::line();
        let (guest, handle, events) = channel();
        let clock = HandClock::at_wall(Duration::ZERO);
        let io = IoThread::new(handle).unwrap();
        let pm = AcpiPm::new(5, line, guest, clock.clone(), io.waker());
        Bench {
            pm,
            sci,
            clock,
            events,
        }
    }

    #[test]
    fn the_power_button_raises_sci_until_it_is_cleared() {
        let mut b = bench();
        b.pm.power_button();
        assert!(!b.sci.high(), "not enabled");
        assert!(!b.pm.listens_to_power_button());
        outw(&mut b.pm, 2, POWER_BUTTON);
        assert!(b.pm.listens_to_power_button());
        assert!(b.sci.high());
        assert_eq!(inw(&mut b.pm, PM1_EVENT), POWER_BUTTON);
        outw(&mut b.pm, PM1_EVENT, TIMER_EVENT);
        assert!(b.sci.high(), "another bit was cleared");
        outb(&mut b.pm, 1, 0x01);
        assert!(!b.sci.high());
        assert_eq!(inw(&mut b.pm, PM1_EVENT), 0);
    }

    #[test]
    fn general_purpose_events_work_alike() {
        let mut b = bench();
        outw(&mut b.pm, GPE0 + 2, 1 << 9);
        b.pm.raise_gpe(9);
        assert!(b.sci.high());
        assert_eq!(inl(&mut b.pm, GPE0), (1 << 25) | (1 << 9));
        outw(&mut b.pm, GPE0, 1 << 9);
        assert!(!b.sci.high());
        b.pm.raise_gpe(200);
        assert_eq!(inw(&mut b.pm, GPE0), 0);
    }

    #[test]
    fn s5_powers_off_and_other_states_do_not() {
        let mut b = bench();
        assert_eq!(inw(&mut b.pm, 4), SCI_ENABLE);
        outw(&mut b.pm, 4, 5 << 10);
        assert!(b.events.take_guest_events().is_empty(), "SLP_EN not set");
        outw(&mut b.pm, 4, SLEEP_ENABLE | (3 << 10));
        assert!(b.events.take_guest_events().is_empty(), "S3 does not exist");
        outw(&mut b.pm, 4, SLEEP_ENABLE | (5 << 10) | SCI_ENABLE);
        assert_eq!(b.events.take_guest_events(), [GuestEvent::PowerOff]);
        assert_eq!(
            inw(&mut b.pm, 4),
            (5 << 10) | SCI_ENABLE,
            "SLP_EN reads as zero"
        );
        outb(&mut b.pm, 5, 0x34);
        assert_eq!(b.events.take_guest_events(), [GuestEvent::PowerOff]);
    }

    #[test]
    fn the_timer_counts_at_its_frequency() {
        let mut b = bench();
        for (advance, ticks) in [
            (Duration::ZERO, 0_u32),
            (Duration::from_secs(1), 3_579_545),
            (Duration::from_micros(1), 3_579_548),
            // 2^32 ticks take 1199.86 s.
            (Duration::from_secs(1199), 486_707),
        ] {
            b.clock.advance(advance);
            assert_eq!(inl(&mut b.pm, TIMER), ticks);
        }
        outl(&mut b.pm, TIMER, 0);
        assert_eq!(inl(&mut b.pm, TIMER), 486_707, "read-only");
        assert_eq!(inb(&mut b.pm, TIMER + 1), 0x6d);
    }

    #[test]
    fn the_timers_carry_interrupts_when_enabled() {
        let mut b = bench();
        assert_eq!(b.pm.until_due(), None);
        outw(&mut b.pm, 2, TIMER_EVENT);
        let due = b.pm.until_due().unwrap();
        assert_eq!(due.as_secs(), 599);
        b.clock.advance(due - Duration::from_millis(1));
        b.pm.tick();
        assert!(!b.sci.high());
        b.clock.advance(Duration::from_millis(1));
        b.pm.tick();
        assert!(b.sci.high());
        assert_eq!(b.pm.until_due(), None);
        outw(&mut b.pm, PM1_EVENT, TIMER_EVENT);
        assert!(!b.sci.high());
        assert_eq!(b.pm.until_due().unwrap().as_secs(), 599);
    }

    #[test]
    fn reset_clears_all_but_the_timer() {
        let mut b = bench();
        b.clock.advance(Duration::from_secs(700));
        outw(&mut b.pm, 2, ENABLE_BITS);
        b.pm.power_button();
        outw(&mut b.pm, 4, 3 << 10);
        let timer = inl(&mut b.pm, TIMER);
        b.pm.reset();
        assert!(!b.sci.high());
        assert_eq!(inl(&mut b.pm, PM1_EVENT), 0);
        assert_eq!(inw(&mut b.pm, 4), SCI_ENABLE);
        assert_eq!(inl(&mut b.pm, TIMER), timer);
    }

    #[test]
    fn a_restored_one_drives_its_line_and_knows_what_was_seen() {
        let mut b = bench();
        b.clock.advance(Duration::from_secs(700));
        outw(&mut b.pm, 2, POWER_BUTTON);
        b.pm.power_button();
        let mut restored = bench();
        restored.clock.advance(Duration::from_secs(700));
        assert_comes_back(&b.pm, &mut restored.pm);
        assert!(restored.sci.high());
        assert_eq!(
            inw(&mut restored.pm, PM1_EVENT),
            POWER_BUTTON | TIMER_EVENT,
            "the carry after 600 s was not cleared"
        );
    }

    proptest! {
        #[test]
        fn it_comes_back_after_any_accesses(seq in accesses(LEN + 8), skip in 0_u64..10_000) {
            let (mut b, mut fresh) = (bench(), bench());
            for bench in [&b, &fresh] {
                bench.clock.advance(Duration::from_secs(skip));
            }
            replay(&mut b.pm, Region::ONLY, seq);
            assert_comes_back(&b.pm, &mut fresh.pm);
            prop_assert_eq!(b.sci.high(), fresh.sci.high());
        }

        #[test]
        fn no_state_harms(body in hostile(), seq in accesses(LEN + 8), skip in 0_u64..10_000) {
            let mut b = bench();
            b.clock.advance(Duration::from_secs(skip));
            body.load_into(&mut b.pm);
            b.pm.until_due();
            replay(&mut b.pm, Region::ONLY, seq);
            b.pm.tick();
        }

        #[test]
        fn no_access_sequence_panics(seq in accesses(LEN + 8), skip in 0_u64..10_000) {
            let mut b = bench();
            b.clock.advance(Duration::from_secs(skip));
            replay(&mut b.pm, Region::ONLY, seq);
            b.pm.until_due();
        }
    }
}
