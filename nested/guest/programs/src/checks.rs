//! Checks that a program makes of its hypervisor, one line each:
//! `ok NAME`, `FAIL NAME: DETAIL`, or `absent NAME: WHY` if the hypervisor does not support it.

use core::fmt;

use crate::args::Args;
use crate::text::Text;
use crate::{Exit, say};

/// Why a check did not succeed.
pub(crate) enum Stop {
    Absent(Text),
    Failed(Text),
}

impl From<Text> for Stop {
    fn from(text: Text) -> Self {
        Self::Failed(text)
    }
}

pub(crate) type Check = Result<(), Stop>;

/// A failed check's detail.
macro_rules! failed {
    ($($argument:tt)*) => {
        $crate::checks::Stop::Failed($crate::text::Text::new(format_args!($($argument)*)))
    };
}
pub(crate) use failed;

/// Checks that `found` equals `wanted`.
pub(crate) fn equal<T: PartialEq + fmt::LowerHex>(what: &str, found: T, wanted: T) -> Check {
    if found == wanted {
        Ok(())
    } else {
        Err(failed!("{what}: {found:#x} instead of {wanted:#x}"))
    }
}

/// Prints the result of each check, and counts.
pub(crate) struct Tally<'a> {
    required: &'a str,
    ok: u32,
    failed: u32,
    absent: u32,
}

impl<'a> Tally<'a> {
    /// `require=` lists the checks that must not be absent: names, or `all`.
    pub(crate) fn new(args: &Args<'a>) -> Self {
        Self {
            required: args.value("require").unwrap_or(""),
            ok: 0,
            failed: 0,
            absent: 0,
        }
    }

    /// Prints the last line; returns the exit code.
    pub(crate) fn verdict(&self, program: &str) -> Exit {
        say!(
            "{program}: {} ok, {} failed, {} absent",
            self.ok,
            self.failed,
            self.absent
        );
        if self.failed == 0 {
            Exit::Done
        } else {
            Exit::Failed
        }
    }

    pub(crate) fn note(&mut self, name: &dyn fmt::Display, result: Check) {
        match result {
            Ok(()) => {
                self.ok += 1;
                say!("ok {name}");
            }
            Err(Stop::Failed(detail)) => {
                self.failed += 1;
                say!("FAIL {name}: {detail}");
            }
            Err(Stop::Absent(reason)) if self.requires(name) => {
                self.failed += 1;
                say!("FAIL {name}: required, but {reason}");
            }
            Err(Stop::Absent(reason)) => {
                self.absent += 1;
                say!("absent {name}: {reason}");
            }
        }
    }

    fn requires(&self, name: &dyn fmt::Display) -> bool {
        let is_name =
            |required: &str| required == "all" || Text::new(format_args!("{name}")) == *required;
        self.required.split(',').any(is_name)
    }
}
