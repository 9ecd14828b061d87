//! The mistakes on the command line of `tsc`, which are found before anything runs.

use std::path::Path;

use super::args::{ACK_AFTER_US, Args, COUNTER_EVERY, Frequency, Reenlighten};
use super::linux;
use super::model::{GuestKind, Way};
use crate::program;
use crate::usage::{self, Usage};

impl Args {
    /// Fails with all mistakes.
    pub(super) fn check(&self) -> Result<(), Usage> {
        let mut mistakes = usage::of_vm(&self.vm_flags());
        // Each is the value of a --tsc-khz of hypernest.
        for frequency in &self.tsc_khz {
            if let Frequency::Khz(khz) = frequency {
                mistakes.extend(usage::of_vm(&[("tsc-khz", &khz.to_string())]));
            }
        }
        mistakes.extend(self.unused());
        if self.runs() {
            mistakes.extend(self.missing());
        }
        Usage::check(mistakes)
    }

    /// Whether a guest is run.
    fn runs(&self) -> bool {
        self.by_hand.is_none() && self.captured.is_empty()
    }

    /// The flags that are passed on to `hypernest`.
    fn vm_flags(&self) -> Vec<(&str, &str)> {
        let mut flags = vec![("memory", self.memory())];
        let kernel = self.linux.kernel.as_deref().and_then(Path::to_str);
        for (name, value) in [
            ("hv", self.hv.as_deref()),
            ("clock", self.clock.as_deref()),
            ("on-tsc-change", self.on_tsc_change.as_deref()),
            ("kernel", kernel),
        ] {
            flags.extend(value.map(|value| (name, value)));
        }
        flags
    }

    /// Flags that would have no effect.
    fn unused(&self) -> Vec<String> {
        let mut unused = Vec::new();
        let mut refuse = |flags: &[(&str, bool)], why: &str| {
            let given = flags.iter().filter(|(_, given)| *given);
            unused.extend(given.map(|(flag, _)| format!("{flag}: {why}")));
        };
        let of_moves = [
            ("--clock", self.clock.is_some()),
            ("--on-tsc-change", self.on_tsc_change.is_some()),
            ("--by migrate", self.by == Way::Migrate),
        ];
        let linux = &self.linux;
        let of_linux = [
            ("--kernel", linux.kernel.is_some()),
            ("--probe", linux.probe.is_some()),
            ("--modules", !linux.modules.is_empty()),
            ("--append", !linux.append.is_empty()),
        ];
        let of_micro = [
            ("--no-ack", self.no_ack),
            ("--ack-after-us", self.ack_after_us != ACK_AFTER_US),
            ("--counter-every", self.counter_every != COUNTER_EVERY),
            ("--reenlighten", self.reenlighten != Reenlighten::Emulate),
        ];
        if self.guest == GuestKind::Micro {
            let why = "only a Linux guest has it: give --guest linux or linux-l2 as well, or leave it out";
            refuse(&of_linux, why);
        } else {
            let why = "only the guest micro has it: leave it out, or --guest";
            refuse(&of_micro, why);
        }
        if self.by_hand.is_some() {
            let why =
                "--by-hand only writes the guest micro, which you move yourself: leave it out";
            refuse(&of_moves, why);
            refuse(
                &[
                    ("--guest", self.guest != GuestKind::Micro),
                    ("--moves", self.moves > 0),
                    ("--tsc-khz", !self.tsc_khz.is_empty()),
                ],
                why,
            );
        } else if self.captured.is_empty() && self.moves == 0 {
            let why = "it says how the guest is moved, and it is not moved: give --moves N as well";
            refuse(&of_moves, why);
        }
        let used = u32::try_from(self.tsc_khz.len()).unwrap_or(u32::MAX);
        if self.runs() && used > self.moves.saturating_add(1) {
            unused.push(format!(
                "--tsc-khz: the guest is created with the first of the {used} frequencies, and each move \
                 takes the next one, but --moves is {}: give --moves {} or more",
                self.moves,
                used - 1
            ));
        }
        unused
    }

    /// Programs and files that are needed and do not exist.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        match &self.hypernest {
            None => missing.extend(program::no_hypernest(Some("--hypernest FILE"))),
            Some(program) if linux::on_path(program).is_file() => {}
            Some(program) => missing.push(format!(
                "--hypernest: there is no program {}",
                program.display()
            )),
        }
        if self.guest == GuestKind::Micro {
            return missing;
        }
        if linux::kernel(&self.linux).is_none() {
            missing.push(no_kernel(self.guest));
        }
        match &self.linux.probe {
            Some(probe) if !probe.is_file() => {
                missing.push(format!("--probe: there is no file {}", probe.display()));
            }
            None if program::find(linux::PROBE).is_none() => missing.push(format!(
                "{} is neither beside this program nor on the PATH: build it by `{}`, and name it by --probe \
                 FILE",
                linux::PROBE,
                "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p tscprobe --target \
                 x86_64-unknown-linux-gnu"
            )),
            Some(_) | None => {}
        }
        let modules = self.linux.modules.iter();
        missing.extend(
            modules
                .filter(|module| !module.is_file())
                .map(|module| format!("--modules: there is no file {}", module.display())),
        );
        missing
    }
}

/// The mistake of a user who names no kernel.
pub(super) fn no_kernel(guest: GuestKind) -> String {
    let which = match guest {
        GuestKind::LinuxL2 => "a vmlinux with KVM's modules in modules/ beside it",
        _ => "a bzImage or vmlinux with a driver of serial ports built in",
    };
    format!(
        "--guest {} needs a kernel: give --kernel FILE, {which}; {}",
        guest.name(),
        usage::kernel_of_lab("linux-6.12/vmlinux")
    )
}

#[cfg(test)]
mod tests {
    use super::super::{TscError, run};
    use super::*;
    use crate::WRONG_USE;
    use crate::usage::Line;
    use clap::Parser as _;

    fn args(line: &str) -> Args {
        Line::<Args>::parse_from(line.split_whitespace()).args
    }

    #[test]
    fn mistakes_are_found_before_anything_runs_and_all_at_once() {
        for (line, wanted) in [
            (
                "tsc --moves 1 --clock foo --on-tsc-change bar --hv foo --memory 1Q",
                &[
                    "--clock: ",
                    "continue or pause",
                    "--on-tsc-change: ",
                    "auto, scale, reenlighten or refuse",
                    "--hv: ",
                    "--memory: ",
                ][..],
            ),
            ("tsc --clock pause", &["--clock: it says how", "--moves N"]),
            ("tsc --on-tsc-change scale", &["--on-tsc-change: it says"]),
            ("tsc --by migrate", &["--by migrate: it says how"]),
            (
                "tsc --tsc-khz 1.2x,1.0x",
                &["of the 2 frequencies", "--moves is 0", "--moves 1 or more"],
            ),
            (
                "tsc --moves 1 --tsc-khz 1.2x,1.0x,0.7x",
                &["--moves 2 or more"],
            ),
            ("tsc --tsc-khz 1", &["--tsc-khz: "]),
            (
                "tsc --kernel Cargo.toml --append quiet",
                &["--kernel: only a Linux", "--append: only a Linux"],
            ),
            (
                "tsc --guest linux --no-ack --kernel /nowhere/k --probe /nowhere/probe --modules /nowhere/m",
                &[
                    "--no-ack: only the guest micro",
                    "--kernel: ",
                    "--probe: there is no file /nowhere/probe",
                    "--modules: there is no file /nowhere/m",
                ],
            ),
            (
                "tsc --hypernest /nowhere/hypernest",
                &["there is no program /nowhere/hypernest"],
            ),
            (
                "tsc --by-hand dir --guest linux --moves 1 --tsc-khz 5000000 --clock pause",
                &[
                    "--guest: --by",
                    "--moves: --by",
                    "--tsc-khz: --by",
                    "--clock: --by",
                ],
            ),
        ] {
            let error = run(&args(line)).unwrap_err();
            assert!(matches!(error, TscError::Usage(_)), "{line}: {error}");
            assert_eq!(error.code(), WRONG_USE, "{line}");
            let text = error.to_string();
            for part in wanted {
                assert!(text.contains(part), "{line}: {part:?} is not in\n{text}");
            }
        }
    }

    #[test]
    fn what_has_an_effect_is_no_mistake() {
        for line in [
            "tsc",
            "tsc --tsc-khz 1.2x",
            "tsc --moves 2 --tsc-khz 1.2x,1.0x,2400000 --clock pause --on-tsc-change scale --by migrate",
            "tsc --by-hand dir --hv none --no-ack",
            "tsc --captured a,b --guest linux",
        ] {
            assert_eq!(args(line).unused(), [""; 0], "{line}");
            assert_eq!(usage::of_vm(&args(line).vm_flags()), [""; 0], "{line}");
        }
    }

    #[test]
    fn a_missing_kernel_is_explained() {
        let text = no_kernel(GuestKind::Linux);
        for part in [
            "--guest linux",
            "--kernel FILE",
            "bzImage",
            "cargo lab setup",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(no_kernel(GuestKind::LinuxL2).contains("modules/ beside it"));
    }
}
