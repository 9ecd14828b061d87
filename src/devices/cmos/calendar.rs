//! The clock's registers as time, and back: BCD or binary, 12 or 24 hours, in the proleptic Gregorian
//! calendar.

const SECONDS_PER_DAY: i64 = 86_400;

/// The format of the registers: two bits of register B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

/// The registers that contain the time, as the guest sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TimeRegisters {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// 1 = Sunday.
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u8,
    pub(super) century: u8,
}

impl Mode {
    pub(super) fn encode(self, value: u8) -> u8 {
        if self.binary {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(self, value: u8) -> u8 {
        if self.binary {
            value
        } else {
            (value >> 4) * 10 + (value & 0x0f)
        }
    }

    fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { 0x80 } else { 0 };
        let hour = match hour % 12 {
            0 => 12,
            other => other,
        };
        self.encode(hour) | pm
    }

    pub(super) fn decode_hour(self, value: u8) -> u8 {
        if self.hours_24 {
            return self.decode(value);
        }
        let pm = if value & 0x80 != 0 { 12 } else { 0 };
        self.decode(value & 0x7f) % 12 + pm
    }

    pub(super) fn decode_field(self, value: u8) -> u8 {
        self.decode(value)
    }
}

impl TimeRegisters {
    /// The registers at `seconds` since 1970-01-01 00:00:00. Years before 0 and after 9999 saturate.
    pub(super) fn at(seconds: i64, mode: Mode) -> Self {
        let days = seconds.div_euclid(SECONDS_PER_DAY);
        let in_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil(days);
        let year = year.clamp(0, 9999);
        // 1970-01-01 was a Thursday, the fifth day.
        let weekday = (days + 4).rem_euclid(7) + 1;
        Self {
            second: mode.encode(small(in_day % 60)),
            minute: mode.encode(small(in_day / 60 % 60)),
            hour: mode.encode_hour(small(in_day / 3600)),
            weekday: small(weekday),
            day: mode.encode(small(day)),
            month: mode.encode(small(month)),
            year: mode.encode(small(year % 100)),
            century: mode.encode(small(year / 100)),
        }
    }

    /// Seconds since 1970-01-01. Values out of range are clamped.
    pub(super) fn seconds(&self, mode: Mode) -> i64 {
        let field = |value, max: u8| i64::from(mode.decode(value).min(max));
        let year = field(self.century, 99) * 100 + field(self.year, 99);
        let month = field(self.month, 12).max(1);
        let day = field(self.day, 31).max(1).min(days_in_month(year, month));
        let hour = i64::from(mode.decode_hour(self.hour).min(23));
        days_from_civil(year, month, day) * SECONDS_PER_DAY
            + hour * 3600
            + field(self.minute, 59) * 60
            + field(self.second, 59)
    }
}

/// The time of the alarm: a fixed value or any, for each of hour, minute, second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alarm {
    pub(super) hour: Option<u8>,
    pub(super) minute: Option<u8>,
    pub(super) second: Option<u8>,
}

impl Alarm {
    /// The first match after `seconds`; `None` if there is none, as for hour 77.
    pub(super) fn after(self, seconds: i64) -> Option<i64> {
        let differs = |want: Option<u8>, is: i64| want.is_some_and(|want| i64::from(want) != is);
        let last = seconds.checked_add(SECONDS_PER_DAY)?;
        let mut at = seconds + 1;
        // At most 24 + 60 + 60 steps: each skips to the next hour, minute or second.
        while at <= last {
            let in_day = at.rem_euclid(SECONDS_PER_DAY);
            if differs(self.hour, in_day / 3600) {
                at += 3600 - in_day % 3600;
            } else if differs(self.minute, in_day / 60 % 60) {
                at += 60 - in_day % 60;
            } else if differs(self.second, in_day % 60) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }
}

fn small(value: i64) -> u8 {
    // Every caller's value is a calendar field below 100.
    u8::try_from(value).unwrap_or(0)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to January 1 of `year`.
fn days_to_year(year: i64) -> i64 {
    let before = year - 1;
    let leap_days = |y: i64| y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    (year - 1970) * 365 + leap_days(before) - leap_days(1969)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let months: i64 = (1..month).map(|m| days_in_month(year, m)).sum();
    days_to_year(year) + months + day - 1
}

/// (year, month, day) of the day `days` after 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    // An estimate that is at most one year off: 146097 days in 400 years.
    let mut year = 1970 + days.saturating_mul(400).div_euclid(146_097);
    while days < days_to_year(year) {
        year -= 1;
    }
    while days >= days_to_year(year + 1) {
        year += 1;
    }
    let mut rest = days - days_to_year(year);
    let mut month = 1;
    while rest >= days_in_month(year, month) {
        rest -= days_in_month(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BCD_24: Mode = Mode {
        binary: false,
        hours_24: true,
    };

    #[test]
    fn known_moments() {
        for (seconds, date, time, weekday) in [
            (0, (0x19, 0x70, 0x01, 0x01), (0x00, 0x00, 0x00), 5),
            (951_868_799, (0x20, 0x00, 0x02, 0x29), (0x23, 0x59, 0x59), 3),
            (
                1_709_210_096,
                (0x20, 0x24, 0x02, 0x29),
                (0x12, 0x34, 0x56),
                5,
            ),
            (
                4_107_542_400,
                (0x21, 0x00, 0x03, 0x01),
                (0x00, 0x00, 0x00),
                2,
            ),
            (-1, (0x19, 0x69, 0x12, 0x31), (0x23, 0x59, 0x59), 4),
        ] {
            let r = TimeRegisters::at(seconds, BCD_24);
            assert_eq!((r.century, r.year, r.month, r.day), date, "{seconds}");
            assert_eq!((r.hour, r.minute, r.second), time, "{seconds}");
            assert_eq!(r.weekday, weekday, "{seconds}");
            assert_eq!(r.seconds(BCD_24), seconds);
        }
    }

    #[test]
    fn twelve_hour_mode() {
        let mode = Mode {
            binary: false,
            hours_24: false,
        };
        for (hour, register) in [
            (0, 0x12),
            (1, 0x01),
            (11, 0x11),
            (12, 0x92),
            (13, 0x81),
            (23, 0x91),
        ] {
            assert_eq!(mode.encode_hour(hour), register);
            assert_eq!(mode.decode_hour(register), hour);
        }
    }

    #[test]
    fn alarms_match_within_a_day() {
        let alarm = |hour, minute, second| Alarm {
            hour,
            minute,
            second,
        };
        for (alarm, from, at) in [
            (alarm(None, None, None), 10, Some(11)),
            (alarm(None, None, Some(5)), 5, Some(65)),
            (alarm(Some(1), Some(2), Some(3)), 0, Some(3723)),
            (alarm(Some(1), Some(2), Some(3)), 3723, Some(3723 + 86_400)),
            (alarm(Some(0), None, Some(0)), 3599, Some(86_400)),
            (alarm(Some(77), None, None), 0, None),
            (alarm(None, Some(99), None), 0, None),
        ] {
            assert_eq!(alarm.after(from), at, "{alarm:?} from {from}");
        }
    }

    proptest! {
        #[test]
        fn registers_and_seconds_agree(
            seconds in -60_000_000_000_i64..250_000_000_000,
            binary: bool,
            hours_24: bool,
        ) {
            let mode = Mode { binary, hours_24 };
            prop_assert_eq!(TimeRegisters::at(seconds, mode).seconds(mode), seconds);
        }

        #[test]
        fn any_registers_are_some_time(bytes: [u8; 8], binary: bool, hours_24: bool) {
            let [second, minute, hour, weekday, day, month, year, century] = bytes;
            let registers = TimeRegisters { second, minute, hour, weekday, day, month, year, century };
            let mode = Mode { binary, hours_24 };
            let seconds = registers.seconds(mode);
            prop_assert_eq!(TimeRegisters::at(seconds, mode).seconds(mode), seconds);
        }
    }
}
