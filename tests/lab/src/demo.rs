//! `cargo lab demo`: the gain of an enlightened VMCS, measured on this machine if possible, else in the Intel
//! lab.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use thiserror::Error;

use crate::binaries::{self, Binaries, BuildError};
use crate::cache::Cache;
use crate::exec::{self, ExecError, HostOptions, here_environment};
use crate::host::{DEFAULT_MEMORY_MIB, Host, IntelCpu, Kernel};
use crate::owned::{OwnedChild, tied};
use crate::progress::Steps;
use crate::session::Sink;
use crate::setup::{self, SetupError};

/// The demonstration failed.
#[derive(Debug, Error)]
pub enum DemoError {
    /// Setup.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The programs.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The lab.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A program on this machine, or its files.
    #[error("{what}: {error}")]
    Here {
        /// The attempted action.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

/// The measurement on any host: the matrix of the micro-hypervisor, and a stock Linux for comparison.
const MEASUREMENT: [&str; 3] = ["l2-exit", "--l1", "micro,linux"];
/// Arguments for the Intel lab. The host there already contains L1's kernel, so its modules are of that
/// kernel. Time passes slowly there: a Linux finishes within a second of it, and idle time is skipped. The
/// emulator counts instructions, so few samples are enough. Interrupts between two vCPUs are left out: on one
/// host CPU they depend on the scheduler's time slices.
const IN_THE_LAB: [&str; 18] = [
    "--modes",
    "classic,classic+shadow,evmcs,evmcs+emsr,evmcs+direct-flush",
    "--json",
    "--host-modules",
    "/modules",
    "--rounds",
    "1",
    "--cpus",
    "1",
    "--samples",
    "100",
    "--max-cycles",
    "2",
    "--stuck-after",
    "1",
    "--timeout",
    "6",
    "--append",
];
/// Parameters that make L1 start faster in an emulator, as for the lab's hosts. They are part of the report.
const L1_PARAMETERS: &str =
    "mitigations=off no_timer_check tsc=reliable cryptomgr.notests audit=0 nokaslr";

/// Passed on to hypernest-bench.
const EXPLAIN: &str = "--explain";

/// Measures, shows the table (with `explain` also the rule of each answer), and writes the files into `out`.
/// The result is the exit status.
pub fn demo(out: &Path, explain: bool) -> Result<u8, DemoError> {
    let start = Instant::now();
    eprintln!(
        "lab: the demo takes about 2 min on two cores, and 3 min more the first time: it then fetches \
         emulators and kernels \
         (0.4 GB in the user's cache) and builds the programs (0.5 GB in target/lab)"
    );
    let mut steps = Steps::new(
        "lab demo",
        &[
            ("emulators and kernels", 1),
            ("building the programs", 5),
            ("measuring", 110),
        ],
    );
    let cache = Cache::locate().map_err(SetupError::Cache)?;
    steps.begin();
    setup::ensure(&cache)?;
    steps.begin();
    let binaries = binaries::build()?;
    steps.begin();
    let here = Here {
        cache: &cache,
        binaries: &binaries,
    };
    let status = match here.lack()? {
        None => {
            eprintln!("lab: measuring on this machine");
            let mut arguments = MEASUREMENT.map(OsStr::new).to_vec();
            arguments.extend(["--out".as_ref(), out.as_os_str()]);
            arguments.extend(explain.then_some(OsStr::new(EXPLAIN)));
            here.run(&arguments)?
        }
        Some(why) => {
            eprintln!("lab: this machine cannot measure it, so the Intel lab does\n{why}");
            in_the_lab(&here, out, explain)?
        }
    };
    drop(steps);
    eprintln!("lab: took {} s", start.elapsed().as_secs());
    Ok(status)
}

fn in_the_lab(here: &Here<'_>, out: &Path, explain: bool) -> Result<u8, DemoError> {
    let options = HostOptions {
        host: Host::Intel,
        cpus: 1,
        memory: DEFAULT_MEMORY_MIB,
        kernel: Kernel::default(),
        intel: IntelCpu::default(),
        without: Vec::new(),
        parameters: Vec::new(),
        with: ["vmlinux", "modules"]
            .map(|part| format!("{}/{part}", Kernel::default().directory()))
            .to_vec(),
        disks: Vec::new(),
        files: Vec::new(),
        fetch: Vec::new(),
        timeout: 900,
    };
    let command: Vec<_> = ["hypernest-bench"]
        .into_iter()
        .chain(MEASUREMENT)
        .chain(IN_THE_LAB)
        .chain([L1_PARAMETERS])
        .map(str::to_owned)
        .collect();
    let mut kept = Kept::default();
    let status = exec::exec_into(&options, &command, &mut kept)?;
    if kept.stdout.is_empty() {
        // The command has printed the reason.
        return Ok(status);
    }
    let failed = |error| DemoError::Here {
        what: "cannot keep the lab's report",
        error,
    };
    let mut report = tempfile::NamedTempFile::new().map_err(failed)?;
    report.write_all(&kept.stdout).map_err(failed)?;
    let mut arguments: Vec<&OsStr> = vec![
        "report".as_ref(),
        report.path().as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
    ];
    arguments.extend(explain.then_some(OsStr::new(EXPLAIN)));
    let shown = here.run(&arguments)?;
    Ok(if shown == 0 { status } else { shown })
}

/// Stores the report and shows the progress.
#[derive(Debug, Default)]
struct Kept {
    stdout: Vec<u8>,
}

impl Sink for Kept {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdout.extend(bytes);
        Ok(())
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

/// `hypernest-bench` on this machine.
struct Here<'a> {
    cache: &'a Cache,
    binaries: &'a Binaries,
}

impl Here<'_> {
    fn bench(&self) -> Result<std::process::Command, DemoError> {
        let mut command = tied(&self.binaries.bench).map_err(cannot_run)?;
        command
            .envs(here_environment(self.cache, self.binaries))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// The reason why this machine cannot offer an enlightened VMCS; `None` if it can.
    fn lack(&self) -> Result<Option<String>, DemoError> {
        let mut command = self.bench()?;
        command.args(["l2-exit", "--dry-run", "--modes", "evmcs"]);
        let output = OwnedChild::output(&mut command).map_err(cannot_run)?;
        let said = String::from_utf8_lossy(&output.stderr);
        Ok((!output.status.success()).then(|| said.trim_end().to_owned()))
    }

    fn run(&self, arguments: &[&OsStr]) -> Result<u8, DemoError> {
        let mut command = self.bench()?;
        command.args(arguments);
        let status = OwnedChild::spawn(&mut command)
            .and_then(|mut child| child.wait())
            .map_err(cannot_run)?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.unwrap_or(u8::MAX))
    }
}

fn cannot_run(error: io::Error) -> DemoError {
    DemoError::Here {
        what: "cannot run hypernest-bench",
        error,
    }
}
