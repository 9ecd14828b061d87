//! Mistakes on the command line. They are found before the host is looked at and before anything is measured,
//! and reported together.

use std::fmt;

use hypernest::config::{self, ConfigError, Flags, HostLimits};
use hypernest_lab::plan::LAB_DIR_VARIABLE;

/// All mistakes of a command line; at least one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usage(Vec<String>);

impl Usage {
    /// A single mistake.
    pub(crate) fn of(mistake: String) -> Self {
        Self(vec![mistake])
    }

    /// Fails if there are mistakes.
    pub(crate) fn check(mistakes: Vec<String>) -> Result<(), Self> {
        match mistakes.is_empty() {
            true => Ok(()),
            false => Err(Self(mistakes)),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing was done, because the command line is wrong:")?;
        self.0
            .iter()
            .try_for_each(|mistake| write!(f, "\n  - {mistake}"))
    }
}

impl std::error::Error for Usage {}

/// The mistakes in `flags`, by name and value, which are passed on to `hypernest run`.
pub(crate) fn of_vm(flags: &[(&str, &str)]) -> Vec<String> {
    let mut flags = flags.to_vec();
    if !flags.iter().any(|(name, _)| *name == "kernel") {
        // A VM needs one; only its existence is checked.
        flags.push(("kernel", "/proc/self/exe"));
    }
    match config::build(None, &Flags::from_pairs(flags), HostLimits::read()) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid(problems)) => problems.iter().map(ToString::to_string).collect(),
        Err(other) => vec![crate::chain(&other)],
    }
}

/// The way to get a kernel; `path` is where the lab has it.
pub(crate) fn kernel_of_lab(path: &str) -> String {
    format!(
        "`cargo lab setup` in the source tree fetches one, {path} in ~/.cache/hypernest/lab (with \
         {LAB_DIR_VARIABLE} set to that directory it is the default)"
    )
}

/// The mistake of a user of `what` who names no directory with a kernel and its modules.
pub(crate) fn no_kernel_directory(what: &str) -> String {
    format!(
        "{what} needs a kernel: give --kernel DIR, with vmlinux and, in modules/, those of KVM; {}",
        kernel_of_lab("linux-6.12")
    )
}

/// A command line of a command with these arguments, for tests.
#[cfg(test)]
#[derive(Debug, clap::Parser)]
pub(crate) struct Line<A: clap::Args> {
    #[command(flatten)]
    pub(crate) args: A,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_with_the_remedy() {
        let mistakes = of_vm(&[("clock", "foo"), ("hv", "hv-evmc"), ("memory", "1Q")]);
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        let text = Usage::check(mistakes).unwrap_err().to_string();
        for part in [
            "\n  - --clock: ",
            "continue or pause",
            "\n  - --hv: ",
            "did you mean `hv-evmcs`",
            "\n  - --memory: ",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_eq!(of_vm(&[("clock", "pause"), ("hv", "none")]), [""; 0]);
        assert_eq!(of_vm(&[("kernel", "/nowhere")]).len(), 1);
        assert_eq!(Usage::check(Vec::new()), Ok(()));
        let text = no_kernel_directory("--l1 linux");
        assert!(text.contains("--kernel DIR") && text.contains("cargo lab setup"));
    }
}
