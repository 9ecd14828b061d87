//! `cargo lab exec` and `cargo lab shell`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal as _, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use thiserror::Error;

use crate::binaries::{self, Binaries, BuildError};
use crate::boot::{self, BootError, initramfs::modules};
use crate::cache::Cache;
use crate::fetch::{self, Fetch};
use crate::host::{
    CpuFeature, DEFAULT_MEMORY_MIB, Host, IntelCpu, Kernel, Machine, ModuleParameter,
};
use crate::owned::{OwnedChild, OwnedDirectory, RawTerminal, tied};
use crate::plan::{self, Input, Plan};
use crate::session::{self, Broken, Sink};
use crate::setup::{self, SetupError};

/// A command did not run until it ended.
#[derive(Debug, Error)]
pub enum ExecError {
    /// Setup failed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The programs could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The host could not be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The run failed.
    #[error("{broken}\n(the log of the host's kernel: {})", log.display())]
    Broken {
        /// The reason.
        broken: Broken,
        /// The log of the host's kernel.
        log: PathBuf,
    },
    /// A command on this machine failed.
    #[error("{what}: {error}")]
    Here {
        /// The attempted action.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// A command on this machine took too long.
    #[error("no end after {0} s: timed out")]
    TimedOut(u64),
    /// A fetched file could not be copied.
    #[error("cannot copy the files fetched from the host: {0}")]
    Fetch(io::Error),
    /// A file to be fetched could not be read.
    #[error("the command succeeded, but {0} of the files to be fetched could not be read")]
    NotFetched(u32),
    /// The destination of a file is not allowed.
    #[error(
        "--file {0}: on this machine files can only go below the command's directory, so use a relative name"
    )]
    Absolute(String),
}

/// A host and its contents.
#[derive(Debug, Clone, Args)]
pub struct HostOptions {
    /// The host to run on.
    #[arg(long)]
    pub host: Host,
    /// CPUs of an emulated host.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub cpus: u8,
    /// Memory of an emulated host, as 1536M or 2G.
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_MEMORY_MIB, value_parser = parse_mib)]
    pub memory: u32,
    /// Its kernel: 6.12, 6.1, or the newest of the archive's backports.
    #[arg(long, default_value = "6.12")]
    pub kernel: Kernel,
    /// The CPU of the emulated Intel host: ice-lake has exact timers.
    #[arg(long, value_name = "MODEL", default_value = "skylake")]
    pub intel: IntelCpu,
    /// CPU features to remove from the emulated AMD host, by QEMU's name, as sse4.2.
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub without: Vec<CpuFeature>,
    /// A parameter of a KVM module in an emulated host, as kvm_intel.enable_shadow_vmcs=0.
    #[arg(long = "module-param", value_name = "MODULE.NAME=VALUE")]
    pub parameters: Vec<ModuleParameter>,
    /// Parts of the lab's directory to copy into an emulated host, as linux-6.12/vmlinux, qemu, xen, iasl,
    /// net.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub with: Vec<String>,
    /// An image of the lab's directory that an emulated AMD host has as a disk, as debian-1/disk.qcow2: the
    /// first is /dev/vda. What is written to it is lost when the host ends.
    #[arg(long = "disk", value_name = "PART")]
    pub disks: Vec<String>,
    /// A file or directory for the command, put into its directory, or at DST.
    #[arg(long = "file", value_name = "SRC[:DST]")]
    pub files: Vec<String>,
    /// A file or directory to copy out of the host after the command has ended, into the current directory or
    /// to LOCAL.
    #[arg(long = "fetch", value_name = "PATH[:LOCAL]")]
    pub fetch: Vec<Fetch>,
    /// Timeout in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub timeout: u64,
}

fn parse_mib(text: &str) -> Result<u32, String> {
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'M' | 'm')) => (&text[..at], 1),
        Some((at, 'G' | 'g')) => (&text[..at], 1024),
        _ => (text, 1),
    };
    number
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|mib| (128..=65536).contains(mib))
        .ok_or_else(|| "expected a size from 128M to 64G".to_owned())
}

/// The directory a command starts in, in an emulated host.
const HOME: &str = "/root";

impl HostOptions {
    fn files(&self) -> Vec<(PathBuf, String)> {
        self.files
            .iter()
            .map(|text| match text.split_once(':') {
                Some((from, to)) => (PathBuf::from(from), to.to_owned()),
                None => {
                    let from = PathBuf::from(text);
                    let name = from
                        .file_name()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned();
                    (from, name)
                }
            })
            .collect()
    }

    /// The emulated host that these options describe.
    pub fn machine(&self) -> Machine {
        Machine {
            cpus: self.cpus,
            memory_mib: self.memory,
            kernel: self.kernel,
            intel: self.intel,
            without: self.without.clone(),
            parameters: self.parameters.clone(),
            with: self.with.clone(),
            disks: self.disks.clone(),
            files: self
                .files()
                .into_iter()
                .map(|(from, to)| (from, in_home(to)))
                .collect(),
        }
    }
}

fn in_home(path: String) -> String {
    if path.starts_with('/') {
        path
    } else {
        format!("{HOME}/{path}")
    }
}

/// The plan of an emulated host.
pub fn plan(host: Host, machine: &Machine, command: &[String], input: Input) -> Plan {
    let lab = plan::LAB_DIR;
    let environment = BTreeMap::from(
        [
            (
                "PATH",
                format!("/bin:{lab}:{lab}/qemu:{lab}/iasl:{lab}/net"),
            ),
            ("HOME", HOME.to_owned()),
            (
                "TERM",
                std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned()),
            ),
            ("LANG", "C.UTF-8".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
            (plan::LAB_DIR_VARIABLE, lab.to_owned()),
            (plan::LAB_HOST_VARIABLE, host.name().to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    Plan {
        modules: modules(host, machine),
        command: command.to_vec(),
        environment,
        input,
        fetch: Vec::new(),
    }
}

struct PassOn;

impl Sink for PassOn {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

/// Forwards the command's output and stores the archive of fetched files.
struct Receiving<'a> {
    archive: File,
    sink: &'a mut dyn Sink,
}

impl Sink for Receiving<'_> {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.stdout(bytes)
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.stderr(bytes)
    }

    fn fetched(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.archive.write_all(bytes)
    }

    fn overdue(&mut self) -> Option<String> {
        self.sink.overdue()
    }
}

/// Runs a command on a host and forwards its output; returns its exit status.
pub fn exec(options: &HostOptions, command: &[String], interactive: bool) -> Result<u8, ExecError> {
    let input = if interactive {
        Input::Line
    } else {
        Input::Nothing
    };
    run(options, command, input, &mut PassOn)
}

/// Runs a command without input on an emulated host and sends its output to `sink`; returns its exit status.
pub fn exec_into(
    options: &HostOptions,
    command: &[String],
    sink: &mut dyn Sink,
) -> Result<u8, ExecError> {
    run(options, command, Input::Nothing, sink)
}

/// Runs a shell on a host.
pub fn shell(options: &HostOptions, command: &[String]) -> Result<u8, ExecError> {
    let shell = if command.is_empty() {
        vec!["sh".to_owned()]
    } else {
        command.to_vec()
    };
    if !io::stdin().is_terminal() {
        return run(options, &shell, Input::Line, &mut PassOn);
    }
    let (rows, columns) = terminal_size().unwrap_or((24, 80));
    run(
        options,
        &shell,
        Input::Terminal { rows, columns },
        &mut PassOn,
    )
}

/// The size of the terminal, from `stty`.
fn terminal_size() -> Option<(u16, u16)> {
    let output = std::process::Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (rows, columns) = text.trim().split_once(' ')?;
    let size = (rows.parse().ok()?, columns.parse().ok()?);
    // A terminal of unknown size reports 0.
    (size.0 > 0 && size.1 > 0).then_some(size)
}

fn run(
    options: &HostOptions,
    command: &[String],
    input: Input,
    sink: &mut dyn Sink,
) -> Result<u8, ExecError> {
    let cache = Cache::locate().map_err(SetupError::Cache)?;
    setup::ensure(&cache)?;
    let binaries = binaries::build()?;
    if options.host == Host::Here {
        return here(options, command, input, &cache, &binaries);
    }
    let machine = options.machine();
    setup::ensure_parts(&cache, &machine)?;
    let limit = Duration::from_secs(options.timeout);
    let mut plan = plan(options.host, &machine, command, input);
    plan.fetch = options
        .fetch
        .iter()
        .map(|fetch| fetch.path.clone())
        .collect();
    let raw = match input {
        Input::Terminal { .. } => RawTerminal::new().ok(),
        _ => None,
    };
    let mut tries = 1;
    loop {
        let mut booting = boot::boot(
            options.host,
            &machine,
            &plan,
            &cache.held(),
            &binaries,
            &cache.runs(),
        )?;
        let input: Option<session::Input> = match input {
            Input::Nothing => None,
            Input::Line | Input::Terminal { .. } => Some(Box::new(io::stdin())),
        };
        let mut sink = Receiving {
            archive: tempfile::tempfile().map_err(ExecError::Fetch)?,
            sink: &mut *sink,
        };
        let result = session::follow(options.host, &mut booting, input, limit, &mut sink);
        if let Ok(finished) = &result
            && finished.fetched > 0
        {
            sink.archive.rewind().map_err(ExecError::Fetch)?;
            fetch::unpack(&sink.archive, &options.fetch).map_err(ExecError::Fetch)?;
        }
        let broken = match result {
            Ok(finished) if finished.status == 0 && finished.unfetched > 0 => {
                return Err(ExecError::NotFetched(finished.unfetched));
            }
            Ok(finished) if finished.status == 0 => return Ok(0),
            Ok(finished) => {
                drop(raw);
                if let Ok(log) = session::keep_logs(options.host, &booting, &cache.logs()) {
                    eprintln!(
                        "lab: the command ended with {} in the {} lab; the log of the host's kernel: {}",
                        finished.status,
                        options.host,
                        log.display()
                    );
                }
                return Ok(finished.status);
            }
            Err(broken) => broken,
        };
        let log = session::keep_logs(options.host, &booting, &cache.logs())
            .unwrap_or_else(|_| booting.kernel_log.clone());
        if tries == 1 && broken.may_retry() {
            tries += 1;
            eprintln!(
                "lab: {broken} (its log: {}); trying once more",
                log.display()
            );
            continue;
        }
        return Err(ExecError::Broken { broken, log });
    }
}

fn here(
    options: &HostOptions,
    command: &[String],
    input: Input,
    cache: &Cache,
    binaries: &Binaries,
) -> Result<u8, ExecError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| ExecError::Here { what, error }
    };
    let runs = cache.runs();
    let directory =
        OwnedDirectory::new(&runs, "here").map_err(failed(&runs.display().to_string()))?;
    for (from, to) in options.files() {
        let target = directory.path().join(&to);
        if to.starts_with('/') || to.split('/').any(|part| part == "..") {
            return Err(ExecError::Absolute(to));
        }
        copy_all(&from, &target).map_err(failed(&from.display().to_string()))?;
    }
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| failed("no command")(io::ErrorKind::InvalidInput.into()))?;
    let mut child = tied(program).map_err(failed(program))?;
    child.args(arguments).current_dir(directory.path());
    for (name, value) in here_environment(cache, binaries) {
        child.env(name, value);
    }
    if input == Input::Nothing {
        child.stdin(Stdio::null());
    }
    let mut child = OwnedChild::spawn(&mut child).map_err(failed(program))?;
    let deadline = std::time::Instant::now() + Duration::from_secs(options.timeout);
    loop {
        if let Some(status) = child.try_wait().map_err(failed(program))? {
            use std::os::unix::process::ExitStatusExt as _;
            let code = status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal))
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(u8::MAX);
            let mut unfetched = 0;
            for Fetch { path, local } in &options.fetch {
                if let Err(error) = copy_all(&directory.path().join(path), local) {
                    eprintln!("lab: cannot fetch {path}: {error}");
                    unfetched += 1;
                }
            }
            return match code {
                0 if unfetched > 0 => Err(ExecError::NotFetched(unfetched)),
                code => Ok(code),
            };
        }
        if std::time::Instant::now() > deadline && !matches!(input, Input::Terminal { .. }) {
            return Err(ExecError::TimedOut(options.timeout));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Copies a file, or a directory with its contents.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if !from.is_dir() {
        return std::fs::copy(from, to).map(drop);
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy_all(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The environment of a command on this machine, as similar to that of an emulated host as possible.
pub fn here_environment(cache: &Cache, binaries: &Binaries) -> Vec<(&'static str, String)> {
    let held = cache.held();
    let own = binaries.hypernest.parent().unwrap_or(&held);
    let mut path: Vec<PathBuf> = vec![
        own.to_owned(),
        held.clone(),
        held.join("qemu"),
        held.join("iasl"),
        held.join("net"),
    ];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let path: Vec<_> = path.iter().map(|part| part.display().to_string()).collect();
    vec![
        ("PATH", path.join(":")),
        (plan::LAB_DIR_VARIABLE, held.display().to_string()),
        (plan::LAB_HOST_VARIABLE, Host::Here.name().to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, wanted) in [
            ("512", Some(512)),
            ("512M", Some(512)),
            ("2G", Some(2048)),
            ("2g", Some(2048)),
        ] {
            assert_eq!(parse_mib(text).ok(), wanted, "{text}");
        }
        for text in ["", "G", "x", "-1", "64", "99999999999G", "4194304G", "1T"] {
            assert!(parse_mib(text).is_err(), "{text}");
        }
    }
}
