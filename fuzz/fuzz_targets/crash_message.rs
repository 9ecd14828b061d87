//! Crash messages in guest memory.
#![no_main]

use hypernest::hyperv::{CrashReport, GuestBytes};
use hypernest::units::Gpa;
use libfuzzer_sys::fuzz_target;

struct Ram<'a>(&'a [u8]);

impl GuestBytes for Ram<'_> {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        let Ok(start) = usize::try_from(gpa.0) else {
            return false;
        };
        let source = start
            .checked_add(bytes.len())
            .and_then(|end| self.0.get(start..end));
        source.is_some_and(|source| {
            bytes.copy_from_slice(source);
            true
        })
    }

    fn write(&self, _gpa: Gpa, _bytes: &[u8]) -> bool {
        false
    }
}

fuzz_target!(|input: ([u64; 5], &[u8])| {
    let (params, ram) = input;
    let report = CrashReport {
        params,
        has_message: true,
    };
    if let Some(message) = report.read(&Ram(ram)).message {
        assert!(message.chars().all(|c| c == '\n' || !c.is_control()));
    }
});
