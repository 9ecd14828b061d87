//! The real-time clock (MC146818) and its battery-backed RAM.
//!
//! The time is the host's UTC plus the guest's offset: it needs no tick and follows the host. Interrupts
//! (periodic, alarm, update ended) come from the I/O thread; without them enabled, flags are computed when
//! the guest reads.

mod calendar;
mod nvram;

pub use nvram::MemorySizes;

use std::sync::Arc;
use std::time::Duration;

use self::calendar::{Alarm, Mode, TimeRegisters};
use super::clock::{Clock, Timed};
use super::io_thread::Waker;
use crate::bus::{LockedDevice, Region};
use crate::irq::IrqLine;
use crate::state::{Decoder, Encoder, StateError};

/// The ports.
pub const PORTS: u64 = 2;
const INDEX: u64 = 0;
const DATA: u64 = 1;

// Registers (MC146818A data sheet; the century is at the usual position, to which ACPI's FADT refers).
const SECOND: u8 = 0x00;
const SECOND_ALARM: u8 = 0x01;
const MINUTE: u8 = 0x02;
const MINUTE_ALARM: u8 = 0x03;
const HOUR: u8 = 0x04;
const HOUR_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
/// The register with the century, for the FADT.
pub const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// 32.768 kHz time base, 1024 Hz periodic rate.
const A_POWER_ON: u8 = 0x26;

const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE_ENDED: u8 = 1 << 4;
const B_SQUARE_WAVE: u8 = 1 << 3;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;

/// Register C's flags are at the positions of register B's enable bits.
const INTERRUPTS: u8 = B_PERIODIC | B_ALARM | B_UPDATE_ENDED;
const C_REQUEST: u8 = 1 << 7;

/// The battery is in order.
const D_VALID: u8 = 1 << 7;

/// An alarm register with both top bits set matches everything.
const ALARM_ANY: u8 = 0xc0;

/// Times further than this from 1970, in seconds, cannot be set by a guest: 34,000 years.
const FAR: u64 = 1 << 40;

/// "Update in progress" reads as set for this long before the second changes: 244 us warning and the 1984 us
/// of the update itself.
const UPDATE_WINDOW: Duration = Duration::from_micros(244 + 1984);

/// The clock and its RAM.
#[derive(Debug)]
pub struct Cmos {
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    waker: Waker,
    index: u8,
    /// All registers. Those of the time are used only while register B's SET bit stops the clock.
    ram: [u8; 128],
    /// The guest's clock minus the host's, in seconds.
    offset: i64,
    flags: u8,
    /// The second (guest time) up to which flags are computed.
    seen: i64,
    /// The time (monotonic) at which the periodic flag was last due.
    period_start: Duration,
    line_high: bool,
}

impl Cmos {
    /// Creates it with the RAM content that firmware leaves on this machine.
    pub fn new(
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        waker: Waker,
        memory: MemorySizes,
        vcpus: u32,
    ) -> Self {
        let mut ram = nvram::initial(memory, vcpus);
        ram[usize::from(A)] = A_POWER_ON;
        ram[usize::from(B)] = B_24_HOURS;
        let mut cmos = Self {
            irq,
            clock,
            waker,
            index: 0,
            ram,
            offset: 0,
            flags: 0,
            seen: 0,
            period_start: Duration::ZERO,
            line_high: false,
        };
        cmos.seen = cmos.now();
        cmos.period_start = cmos.clock.monotonic();
        cmos
    }

    fn b(&self) -> u8 {
        self.ram[usize::from(B)]
    }

    fn stopped(&self) -> bool {
        self.b() & B_SET != 0
    }

    fn mode(&self) -> Mode {
        Mode {
            binary: self.b() & B_BINARY != 0,
            hours_24: self.b() & B_24_HOURS != 0,
        }
    }

    fn host_seconds(&self) -> i64 {
        i64::try_from(self.clock.wall().as_secs()).unwrap_or(i64::MAX)
    }

    /// The guest's time in seconds.
    fn now(&self) -> i64 {
        self.host_seconds().saturating_add(self.offset)
    }

    fn until_next_second(&self) -> Duration {
        Duration::from_secs(1).saturating_sub(Duration::from_nanos(
            self.clock.wall().subsec_nanos().into(),
        ))
    }

    /// The periodic rate (data sheet, table 5), for a 32.768 kHz time base.
    fn period(&self) -> Option<Duration> {
        let rate = match self.ram[usize::from(A)] & 0x0f {
            0 => return None,
            // These two select 256 and 128 Hz, like 8 and 9.
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        Some(Duration::from_nanos((1_000_000_000 << (rate - 1)) / 32_768))
    }

    fn alarm(&self) -> Alarm {
        let mode = self.mode();
        let register = |index: u8| {
            let value = self.ram[usize::from(index)];
            (value & ALARM_ANY != ALARM_ANY).then_some(value)
        };
        Alarm {
            hour: register(HOUR_ALARM).map(|v| mode.decode_hour(v)),
            minute: register(MINUTE_ALARM).map(|v| mode.decode_field(v)),
            second: register(SECOND_ALARM).map(|v| mode.decode_field(v)),
        }
    }

    /// Sets the flags for the time since the last call.
    fn advance(&mut self) {
        if !self.stopped() {
            let now = self.now();
            if now > self.seen {
                self.flags |= B_UPDATE_ENDED;
                if self.alarm().after(self.seen).is_some_and(|at| at <= now) {
                    self.flags |= B_ALARM;
                }
            }
            self.seen = now;
        }
        let monotonic = self.clock.monotonic();
        match self.period() {
            Some(period) => {
                let elapsed = monotonic.saturating_sub(self.period_start);
                if elapsed >= period {
                    self.flags |= B_PERIODIC;
                    // Keeps the phase: back to the last multiple of the period.
                    let into = elapsed.as_nanos() % period.as_nanos();
                    let into = Duration::from_nanos(u64::try_from(into).unwrap_or(0));
                    self.period_start = monotonic.saturating_sub(into);
                }
            }
            None => self.period_start = monotonic,
        }
        self.drive();
    }

    fn requests(&self) -> bool {
        self.flags & self.b() & INTERRUPTS != 0
    }

    fn drive(&mut self) {
        let high = self.requests();
        if high != self.line_high {
            self.line_high = high;
            self.irq.set(high);
        }
    }

    /// The time registers: running, or as they are while stopped.
    fn time(&self) -> TimeRegisters {
        if !self.stopped() {
            return TimeRegisters::at(self.now(), self.mode());
        }
        let register = |index: u8| self.ram[usize::from(index)];
        TimeRegisters {
            second: register(SECOND),
            minute: register(MINUTE),
            hour: register(HOUR),
            weekday: register(WEEKDAY),
            day: register(DAY),
            month: register(MONTH),
            year: register(YEAR),
            century: register(CENTURY),
        }
    }

    fn store_time(&mut self, time: TimeRegisters) {
        for (index, value) in [
            (SECOND, time.second),
            (MINUTE, time.minute),
            (HOUR, time.hour),
            (WEEKDAY, time.weekday),
            (DAY, time.day),
            (MONTH, time.month),
            (YEAR, time.year),
            (CENTURY, time.century),
        ] {
            self.ram[usize::from(index)] = value;
        }
    }

    /// The guest's clock continues from the content of the registers.
    fn start_from(&mut self, time: TimeRegisters) {
        self.offset = time
            .seconds(self.mode())
            .saturating_sub(self.host_seconds());
        self.seen = self.now();
    }

    fn read_data(&mut self) -> u8 {
        match self.index {
            SECOND => self.time().second,
            MINUTE => self.time().minute,
            HOUR => self.time().hour,
            WEEKDAY => self.time().weekday,
            DAY => self.time().day,
            MONTH => self.time().month,
            YEAR => self.time().year,
            CENTURY => self.time().century,
            A => {
                let updating = !self.stopped() && self.until_next_second() <= UPDATE_WINDOW;
                self.ram[usize::from(A)] | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            C => {
                self.advance();
                let request = if self.requests() { C_REQUEST } else { 0 };
                let value = self.flags | request;
                self.flags = 0;
                self.drive();
                // The next interrupt must be scheduled.
                if request != 0 {
                    self.waker.wake();
                }
                value
            }
            D => D_VALID,
            index => self.ram[usize::from(index)],
        }
    }

    fn write_data(&mut self, value: u8) {
        let index = usize::from(self.index);
        // Flags up to now depend on the old settings.
        self.advance();
        match self.index {
            SECOND | MINUTE | HOUR | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                if self.stopped() {
                    self.ram[index] = value;
                } else {
                    let running = self.time();
                    self.store_time(running);
                    self.ram[index] = value;
                    let time = self.stopped_time();
                    self.start_from(time);
                }
            }
            A => {
                self.ram[index] = value & !A_UPDATE_IN_PROGRESS;
                self.waker.wake();
            }
            B => self.write_b(value),
            C | D => {}
            SECOND_ALARM | MINUTE_ALARM | HOUR_ALARM => {
                self.ram[index] = value;
                self.waker.wake();
            }
            _ => self.ram[index] = value,
        }
    }

    /// The time registers in RAM.
    fn stopped_time(&mut self) -> TimeRegisters {
        let b = self.b();
        self.ram[usize::from(B)] = b | B_SET;
        let time = self.time();
        self.ram[usize::from(B)] = b;
        time
    }

    fn write_b(&mut self, value: u8) {
        let was_stopped = self.stopped();
        // Stopping the clock also disables the update interrupt.
        let value = if value & B_SET != 0 {
            value & !B_UPDATE_ENDED
        } else {
            value
        };
        if value & B_SET != 0 && !was_stopped {
            let time = self.time();
            self.store_time(time);
        }
        let resumed = was_stopped && value & B_SET == 0;
        let time = self.time();
        self.ram[usize::from(B)] = value;
        if resumed {
            self.start_from(time);
        }
        self.drive();
        self.waker.wake();
    }
}

impl LockedDevice for Cmos {
    fn name(&self) -> &str {
        "cmos"
    }

    /// Interrupts are disabled; time and RAM are battery-backed and stay.
    fn reset(&mut self) {
        self.index = 0;
        self.ram[usize::from(B)] &= !(INTERRUPTS | B_SQUARE_WAVE);
        self.flags = 0;
        self.drive();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..) {
            // The index port is write-only.
            if offset == DATA {
                *byte = self.read_data();
            }
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        for (byte, offset) in data.iter().zip(offset..) {
            match offset {
                // Bit 7 masks NMIs; nothing here raises any.
                INDEX => self.index = byte & 0x7f,
                DATA => self.write_data(*byte),
                _ => {}
            }
        }
    }

    // The guest's time is the host's plus an offset, so it continues while the VM does not exist.
    fn save(&self, to: &mut Encoder) {
        to.u8(self.index);
        to.array(&self.ram);
        to.i64(self.offset);
        to.u8(self.flags);
        to.i64(self.seen);
        to.u64(u64::try_from(self.period_start.as_nanos()).unwrap_or(u64::MAX));
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.index = from.u8("index")? & 0x7f;
        self.ram = from.array("registers")?;
        self.offset = from.i64("offset")?;
        self.flags = from.u8("flags")? & INTERRUPTS;
        self.seen = from.i64("last look")?;
        self.period_start = Duration::from_nanos(from.u64("period")?);
        for (item, value) in [("offset", self.offset), ("last look", self.seen)] {
            if value.unsigned_abs() > FAR {
                return Err(from.invalid(item, format!("no guest can set {value} s")));
            }
        }
        if self.period_start > self.clock.monotonic() {
            return Err(from.invalid("period", "begins in the future"));
        }
        self.ram[usize::from(A)] &= !A_UPDATE_IN_PROGRESS;
        self.line_high = self.requests();
        self.irq.set(self.line_high);
        self.waker.wake();
        Ok(())
    }
}

impl Timed for Cmos {
    fn until_due(&self) -> Option<Duration> {
        let wanted = self.b() & INTERRUPTS & !self.flags;
        let periodic = (wanted & B_PERIODIC != 0)
            .then(|| self.period())
            .flatten()
            .map(|period| (self.period_start + period).saturating_sub(self.clock.monotonic()));
        let second =
            (wanted & B_UPDATE_ENDED != 0 && !self.stopped()).then(|| self.until_next_second());
        let alarm = (wanted & B_ALARM != 0 && !self.stopped())
            .then(|| self.alarm().after(self.seen))
            .flatten()
            .map(|at| {
                let whole = u64::try_from(at.saturating_sub(self.now()).saturating_sub(1));
                self.until_next_second() + Duration::from_secs(whole.unwrap_or(0))
            });
        [periodic, second, alarm].into_iter().flatten().min()
    }

    fn tick(&mut self) {
        self.advance();
    }
}

#[cfg(test)]
mod tests;
