//! `hypernest migrate`: migrates a running VM to another process.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::control::TIMEOUT;
use super::status::describe_migration;
use super::{CliError, ExitStatus, to_stderr};
use crate::api::{self, ApiError, ControlRequest, RunDirs, call};
use crate::config::parse_size;
use crate::machine::{Migrate, Status};
use crate::sys::{Role, spawn_scoped};

/// Interval of progress reports.
const STEP: Duration = Duration::from_millis(500);
/// Polling interval while waiting for the end of the VM's process here.
const PAUSE: Duration = Duration::from_millis(5);

/// Migrate a running VM to another process, started by `hypernest run --incoming ADDRESS` on this or another
/// host
///
/// Returns when the VM runs at the destination; its process here then exits. If the migration fails, the VM
/// continues here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VM's name
    name: String,

    /// The destination: unix:PATH, tcp:HOST:PORT, exec:COMMAND, or fd:N of the VM's process
    #[arg(value_name = "ADDRESS", required_unless_present = "cancel")]
    to: Option<String>,

    /// Cancel the migration in progress: the VM continues here
    #[arg(long, conflicts_with = "to")]
    cancel: bool,

    /// Maximum downtime in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    downtime_ms: u64,

    /// Maximum bytes per second until the guest is stopped; K, M and G are powers of 1024 [default:
    /// unlimited]
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<String>,

    /// Number of connections: 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: u16,

    /// Compress pages
    #[arg(long)]
    zstd: bool,

    #[command(flatten)]
    security: SecurityArgs,

    /// Show progress on stderr
    #[arg(long)]
    progress: bool,

    /// Show progress as lines of JSON
    #[arg(long, conflicts_with = "progress")]
    json: bool,
}

/// The protection of a TCP connection.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SecurityArgs {
    /// This end's certificate (PEM), for tcp:
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// The CA that must have issued the other end's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// No TLS, for tcp: within one host
    #[arg(long)]
    pub plaintext: bool,
}

impl SecurityArgs {
    /// The first of these flags that was given, if any.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        [
            ("--tls-cert", self.tls_cert.is_some()),
            ("--tls-key", self.tls_key.is_some()),
            ("--tls-ca", self.tls_ca.is_some()),
            ("--plaintext", self.plaintext),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

/// Requests the migration, and waits for its end.
///
/// # Errors
/// If there is no such VM, or it cannot be migrated.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let dirs = RunDirs::of_user();
    let Some(to) = args.to.clone().filter(|_| !args.cancel) else {
        call(&dirs, &args.name, &ControlRequest::CancelMigration {})?;
        return Ok(ExitStatus::DONE);
    };
    let bandwidth = args.bandwidth.as_deref().map(parse_size).transpose();
    let bandwidth = bandwidth.map_err(|why| CliError::Argument {
        flag: "--bandwidth",
        why,
    })?;
    let security = &args.security;
    let absolute = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
    let request = ControlRequest::Migrate(Box::new(Migrate {
        to: here(to)?,
        downtime_ms: args.downtime_ms,
        bandwidth,
        connections: args.connections,
        zstd: args.zstd,
        tls_cert: absolute(&security.tls_cert)?,
        tls_key: absolute(&security.tls_key)?,
        tls_ca: absolute(&security.tls_ca)?,
        plaintext: security.plaintext,
    }));
    if !args.progress && !args.json {
        let last = call(&dirs, &args.name, &request)?;
        wait_until_gone(&dirs, &args.name, last.as_deref())?;
        return Ok(ExitStatus::DONE);
    }
    std::thread::scope(|scope| {
        let (done, over) = channel::<()>();
        let shown = spawn_scoped(scope, Role::Progress, || {
            let over = over;
            while over.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                if let Ok(status) = api::status(&dirs, &args.name) {
                    show(&status, args);
                }
            }
        });
        let shown = shown.map_err(CliError::ProgressThread)?;
        let moved = call(&dirs, &args.name, &request);
        drop(done);
        // The panic hook has reported a panic of that thread.
        let _panicked = shown.join();
        match moved {
            Ok(last) => {
                // The last line is the result, which the VM's process sends as it exits.
                last.iter().for_each(|status| show(status, args));
                wait_until_gone(&dirs, &args.name, last.as_deref())?;
                Ok(ExitStatus::DONE)
            }
            Err(e) => {
                if let Ok(status) = api::status(&dirs, &args.name) {
                    show(&status, args);
                }
                Err(e.into())
            }
        }
    })
}

/// Waits until the VM's process here is no longer listed: until then `list` would show the VM twice.
fn wait_until_gone(dirs: &RunDirs, name: &str, last: Option<&Status>) -> Result<(), CliError> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match api::status(dirs, name) {
            Err(ApiError::NoSuchVm { .. }) => return Ok(()),
            // Another VM already has its name.
            Ok(status) if last.is_some_and(|last| last.pid != status.pid) => return Ok(()),
            _ if Instant::now() >= deadline => {
                return Err(CliError::NotGone {
                    name: name.to_owned(),
                });
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn show(status: &Status, args: &Args) {
    let Some(migration) = &status.migration else {
        return;
    };
    if !args.json {
        to_stderr(&describe_migration(migration));
    } else if let Ok(json) = serde_json::to_string(migration) {
        // The reader may have closed the pipe; the migration continues.
        let _gone = writeln!(std::io::stdout(), "{json}");
    }
}

/// The VM's working directory differs from this one.
fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::Path {
        path: path.to_owned(),
        source,
    })
}

/// A path in an address is relative to this working directory.
fn here(to: String) -> Result<String, CliError> {
    match to.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => {
            Ok(format!("unix:{}", absolute(Path::new(path))?.display()))
        }
        _ => Ok(to),
    }
}
