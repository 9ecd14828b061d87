//! Boots a Linux as L1 with the agent as its init, and collects its report.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hypernest::config::{ConfigError, Flags, HostLimits, build};
use hypernest::machine::{ExitCounters, Machine, MachineError, Outcome};
use hypernest_lab::cpio::Writer;
use thiserror::Error;

use super::modes::{self, Boot};
use crate::exit_port::{ExitPort, ResetWatch};
use crate::initramfs::wants_interpreter;
use crate::kvm_module::Vendor;
use crate::l1_agent::MODULES;
use crate::l2::run_at_most;
use crate::wire::{self, Message, Unreadable};
use crate::{FAILED, HOST, WRONG_USE};

/// Errors of a boot of L1.
#[derive(Debug, Error)]
pub(crate) enum L1Error {
    /// A file operation failed.
    #[error("{what}")]
    File {
        /// The operation and its file.
        what: String,
        source: io::Error,
    },
    /// The agent is not a static program.
    #[error(
        "{} needs a dynamic linker, which L1 does not have: build hypernest-bench statically (RUSTFLAGS='-C \
         target-feature=+crt-static' with an explicit --target), or name a static one by --agent",
        .0.display()
    )]
    Dynamic(PathBuf),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl L1Error {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Dynamic(_) | Self::Config(_) => WRONG_USE,
            Self::Machine(error) if error.is_host() => HOST,
            _ => FAILED,
        }
    }
}

fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> L1Error {
    let what = what.into();
    move |source| L1Error::File { what, source }
}

/// Parameters that all boots share.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The ELF kernel.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// L1's RAM, as for `--memory`.
    pub(crate) memory: String,
    /// Additional words for L1's command line.
    pub(crate) append: String,
    /// Rounds for each mode.
    pub(crate) rounds: usize,
    /// The agent's arguments other than the modes.
    pub(crate) agent: String,
    /// The timeout of a boot.
    pub(crate) limit: Duration,
}

/// The result of a boot.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// L1's messages.
    pub(crate) messages: Vec<Message>,
    /// The error, if L1 did not report that it was done.
    pub(crate) broken: Option<String>,
    /// A user interrupted the run.
    pub(crate) interrupted: bool,
    /// L1's console.
    pub(crate) console: String,
    /// L1's command line.
    pub(crate) command_line: String,
}

/// L1's command line without the agent's arguments.
fn command_line(append: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 rdinit=/init {append}")
        .trim_end()
        .to_owned()
}

/// Boots L1 and waits until it ends.
pub(crate) fn boot(setup: &Setup, boot: &Boot, directory: &Path) -> Result<Report, L1Error> {
    let mut modes: Vec<_> = boot
        .modes
        .iter()
        .map(|&m| modes::of_linux(m).name())
        .collect();
    modes.dedup();
    let command_line = command_line(&setup.append);
    let flags = [
        ("name", "l1".to_owned()),
        ("kernel", setup.kernel.display().to_string()),
        ("initrd", setup.initrd.display().to_string()),
        (
            "cmdline",
            format!(
                "{command_line} -- l1-agent --modes {} {}",
                modes.join(","),
                setup.agent
            ),
        ),
        ("memory", setup.memory.clone()),
        ("nested", "true".to_owned()),
        ("hv", boot.hv.to_owned()),
    ];
    let ran = run(&flags, directory, setup.limit)?;
    let messages = wire::parse(&ran.results)?;
    let done = messages.contains(&Message::Done);
    Ok(Report {
        messages,
        broken: (!done).then(|| ran.how_it_ended(setup.limit)),
        interrupted: ran.interrupted(),
        console: ran.console,
        command_line,
    })
}

/// An L1 that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    outcome: Outcome,
    in_time: bool,
    reset: bool,
    /// The output on its first serial port.
    pub(crate) console: String,
    /// The output on its second serial port.
    pub(crate) results: String,
}

impl Ran {
    /// Whether a user interrupted it.
    pub(crate) fn interrupted(&self) -> bool {
        self.outcome == Outcome::Killed && self.in_time && !self.reset
    }

    /// The reason, for an L1 that ended before it was done.
    pub(crate) fn how_it_ended(&self, limit: Duration) -> String {
        match &self.outcome {
            Outcome::Failed(report) => format!("L1 could not continue: {report}"),
            _ if !self.in_time => format!("L1 was stopped after {} s", limit.as_secs()),
            Outcome::Killed if self.reset => "L1 crashed and reset itself".to_owned(),
            Outcome::Killed => "a signal ended L1".to_owned(),
            Outcome::PowerOff => "L1 powered off before it reported that it was done".to_owned(),
            Outcome::Crashed | Outcome::DebugExit(_) | Outcome::Moved => "L1 crashed".to_owned(),
        }
    }
}

/// Runs L1 with `flags`, and with files in `directory` at its serial ports, until it ends.
pub(crate) fn run(
    flags: &[(&str, String)],
    directory: &Path,
    limit: Duration,
) -> Result<Ran, L1Error> {
    let (console, results) = (directory.join("console"), directory.join("results"));
    let ports = [("serial", &console), ("serial2", &results)]
        .map(|(port, path)| (port, format!("file:{}", path.display())));
    // A second boot would not be the run that is measured.
    let stop = [("on-triple-fault", "stop".to_owned())];
    let flags = flags.iter().chain(&ports).chain(&stop);
    let flags = Flags::from_pairs(flags.map(|(key, value)| (*key, value.as_str())));
    let config = build(None, &flags, HostLimits::read())?.config;
    let counters = ExitCounters::default();
    let resets = Arc::new(ResetWatch::default());
    let port = ExitPort::new(&counters, &resets).at_its_place();
    let mut machine = Machine::new(config, &[port])?;
    machine.count_exits(&counters);
    resets.of(machine.handle());
    let (outcome, in_time) = run_at_most(machine, limit)?;
    let text = |path: &Path, what: &str| {
        let bytes = fs::read(path).map_err(file(what))?;
        Ok::<_, L1Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ran {
        outcome,
        in_time,
        reset: resets.saw_reset(),
        console: text(&console, "L1's console")?,
        results: text(&results, "L1's report")?,
    })
}

/// Writes L1's initramfs: the agent as init, and KVM's modules.
pub(crate) fn write_initrd(
    to: &Path,
    agent: &Path,
    modules: &Path,
    vendor: Vendor,
) -> Result<(), L1Error> {
    let bytes = fs::read(agent).map_err(file(format!("cannot read {}", agent.display())))?;
    if wants_interpreter(&bytes) {
        return Err(L1Error::Dynamic(agent.to_owned()));
    }
    let name = to.display().to_string();
    let out = File::create(to).map_err(file(format!("cannot create {name}")))?;
    let mut archive = Writer::new(BufWriter::new(out));
    archive
        .file("init", 0o755, &bytes)
        .map_err(file(format!("cannot write {name}")))?;
    for module in ["irqbypass.ko", "kvm.ko", vendor.file()] {
        let from = modules.join(module);
        archive
            .copy(&format!("{MODULES}/{module}"), &from)
            .map_err(file(format!(
                "cannot copy {} (modules must be there uncompressed)",
                from.display()
            )))?;
    }
    // The console of init's own messages before it has mounted a file system.
    archive
        .character_device("dev/console", 5, 1)
        .and_then(|()| archive.finish())
        .map_err(file(format!("cannot write {name}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_room_for_more() {
        assert!(command_line("").ends_with("rdinit=/init"));
        assert!(command_line("a=b").ends_with(" a=b"));
    }
}
