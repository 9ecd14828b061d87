//! hv-crash: the crash report of a guest (TLFS, "Partition Properties": "Guest Crash Enlightenment").

use super::hypercall::GuestBytes;
use super::msr;
use super::partition::WriteOutcome;
use crate::state::{Decoder, Encoder, StateError};
use crate::units::{Gpa, Msr};

/// The content of HV_X64_MSR_CRASH_P0..P4, and the message if the guest supplied one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HypervCrash {
    /// P0..P4.
    pub params: [u64; 5],
    /// The text at address P3 with length P4, if the guest set the message bit.
    pub message: Option<String>,
}

/// CTL: the guest reports a crash; reads as 1, since hypernest accepts reports.
const NOTIFY: u64 = 1 << 63;
/// CTL: P3 and P4 are the address and the length of a message. Reads as 1, since hypernest accepts
/// messages; Linux sends one only if it reads this bit.
const MESSAGE: u64 = 1 << 62;
/// A message is at most one page.
const MAX_MESSAGE: u64 = 4096;

/// The crash registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CrashState {
    params: [u64; 5],
}

impl CrashState {
    pub(super) fn rdmsr(&self, msr: Msr) -> Option<u64> {
        match msr {
            msr::CRASH_CTL => Some(NOTIFY | MESSAGE),
            _ => self.params.get(Self::index(msr)?).copied(),
        }
    }

    pub(super) fn wrmsr(&mut self, msr: Msr, value: u64) -> WriteOutcome {
        if msr == msr::CRASH_CTL {
            return if value & NOTIFY != 0 {
                WriteOutcome::Crash(CrashReport {
                    params: self.params,
                    has_message: value & MESSAGE != 0,
                })
            } else {
                WriteOutcome::Done
            };
        }
        match Self::index(msr).and_then(|i| self.params.get_mut(i)) {
            Some(param) => {
                *param = value;
                WriteOutcome::Done
            }
            None => WriteOutcome::GeneralProtection,
        }
    }

    pub(super) fn save(&self, to: &mut Encoder) {
        for param in self.params {
            to.u64(param);
        }
    }

    pub(super) fn load(from: &mut Decoder<'_>) -> Result<Self, StateError> {
        let mut loaded = Self::default();
        for param in &mut loaded.params {
            *param = from.u64("crash parameter")?;
        }
        Ok(loaded)
    }

    fn index(msr: Msr) -> Option<usize> {
        usize::try_from(msr.0.checked_sub(msr::CRASH_P0.0)?).ok()
    }
}

/// A crash as the guest reported it; its message is still in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// P0..P4.
    pub params: [u64; 5],
    /// The guest set the message bit: P3 and P4 are the address and length.
    pub has_message: bool,
}

impl CrashReport {
    /// For a crash that KVM reports by KVM_SYSTEM_EVENT_CRASH: a guest can reach KVM's own crash registers
    /// when hv-crash is off. The message bit is unknown then.
    pub fn from_kvm(params: [u64; 5]) -> Self {
        Self {
            params,
            has_message: false,
        }
    }

    /// Reads the message. Unreadable parts are omitted; control characters are replaced, so that a guest
    /// cannot control the terminal of a log reader.
    pub fn read(&self, memory: &impl GuestBytes) -> HypervCrash {
        let message = self.has_message.then(|| self.message(memory)).flatten();
        HypervCrash {
            params: self.params,
            message,
        }
    }

    fn message(&self, memory: &impl GuestBytes) -> Option<String> {
        let [_, _, _, address, length] = self.params;
        let length = usize::try_from(length.min(MAX_MESSAGE)).ok()?;
        let mut bytes = vec![0; length];
        if length == 0 || !memory.read(Gpa(address), &mut bytes) {
            return None;
        }
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(length);
        Some(clean(&String::from_utf8_lossy(&bytes[..end])))
    }
}

fn clean(text: &str) -> String {
    let shown: String = text
        .chars()
        .filter(|c| *c != '\r')
        .map(|c| match c {
            '\n' => c,
            '\t' => ' ',
            // Besides C0 and C1: characters that change the text direction, and line separators that
            // terminals treat differently.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                '\u{fffd}'
            }
            c => c,
        })
        .collect();
    shown.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hypercall::tests::Ram;
    use super::*;

    fn report(address: u64, length: u64) -> CrashReport {
        CrashReport {
            params: [0xef, 1, 2, address, length],
            has_message: true,
        }
    }

    #[test]
    fn control_register_reports_and_shows_what_it_accepts() {
        let mut state = CrashState::default();
        assert_eq!(state.rdmsr(msr::CRASH_CTL), Some(0xc000_0000_0000_0000));
        for (i, value) in [0xef, 1, 2, 0x5000, 9].into_iter().enumerate() {
            let number = Msr(0x4000_0100 + u32::try_from(i).unwrap());
            assert_eq!(state.wrmsr(number, value), WriteOutcome::Done);
            assert_eq!(state.rdmsr(number), Some(value));
        }
        assert_eq!(state.wrmsr(msr::CRASH_CTL, 0), WriteOutcome::Done);
        for (ctl, has_message) in [
            (1 << 63, false),
            (1 << 63 | 1 << 62, true),
            (u64::MAX, true),
        ] {
            assert_eq!(
                state.wrmsr(msr::CRASH_CTL, ctl),
                WriteOutcome::Crash(CrashReport {
                    params: [0xef, 1, 2, 0x5000, 9],
                    has_message,
                })
            );
        }
    }

    #[test]
    fn messages_are_bounded_and_clean() {
        let mut ram = Ram::new(0x4000);
        ram.write_at(
            0x1000,
            b"Kernel panic\r\n\x1b[2Jnot \xffsyncing\x07\n\0never shown",
        );
        let crash = report(0x1000, 100).read(&ram);
        assert_eq!(crash.params, [0xef, 1, 2, 0x1000, 100]);
        assert_eq!(
            crash.message.as_deref(),
            Some("Kernel panic\n\u{fffd}[2Jnot \u{fffd}syncing\u{fffd}")
        );
        // Truncated in the middle, by the length.
        assert_eq!(
            report(0x1000, 6).read(&ram).message.as_deref(),
            Some("Kernel")
        );
        let mut ram = Ram::new(0x4000);
        ram.write_at(0, &[b'x'; 0x3000]);
        for length in [4096, 4097, u64::MAX] {
            assert_eq!(report(0, length).read(&ram).message.unwrap().len(), 4096);
        }
    }

    #[test]
    fn unreadable_message_is_omitted() {
        let ram = Ram::new(0x1000);
        for (address, length) in [
            (0x1000, 1),
            (0xfff, 2),
            (u64::MAX, 1),
            (u64::MAX - 1, 4096),
            (0, 0),
        ] {
            assert_eq!(report(address, length).read(&ram).message, None);
        }
        let silent = CrashReport {
            has_message: false,
            ..report(0, 100)
        };
        assert_eq!(silent.read(&ram).message, None);
        assert_eq!(CrashReport::from_kvm([1; 5]).read(&ram).params, [1; 5]);
    }

    proptest! {
        #[test]
        fn no_message_carries_control_characters(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut ram = Ram::new(0x1000);
            ram.write_at(0, &bytes);
            let message = report(0, bytes.len() as u64).read(&ram).message.unwrap_or_default();
            prop_assert!(message.chars().all(|c| c == '\n' || !c.is_control()));
        }
    }
}
