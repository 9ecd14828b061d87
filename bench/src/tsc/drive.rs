//! Runs and moves the guest by means of the `hypernest` command alone.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use hypernest::cpuid::CpuVendor;
use hypernest::kvm::host::KvmFacts;
use hypernest_nested::tsc::Clock;

use super::analyse::{AcrossMoves, Doings, Moved};
use super::args::Args;
use super::model::{GuestKind, Way};
use super::record::Record;
use super::vm::{Stopwatch, VmError, Vms};
use super::{TscError, file, linux};

/// The record of the guest and of the moves.
pub(super) struct Measured {
    pub(super) record: Record,
    pub(super) doings: Doings,
}

/// KVM does not scale the TSC for a frequency that is closer, in ppm (`tsc_tolerance_ppm`).
const SAME_FREQUENCY: f64 = 250.0;

/// The files of one measurement.
struct Site {
    directory: tempfile::TempDir,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
}

impl Site {
    fn new(args: &Args, vendor: CpuVendor) -> Result<Self, TscError> {
        let directory = tempfile::tempdir().map_err(file("cannot make a directory"))?;
        let (kernel, initrd) = match args.guest {
            GuestKind::Micro => {
                let kernel = directory.path().join("guest");
                std::fs::write(&kernel, hypernest_guest::GUEST)
                    .map_err(file(format!("cannot write {}", kernel.display())))?;
                (kernel, None)
            }
            GuestKind::Linux | GuestKind::LinuxL2 => {
                let initrd = directory.path().join("initrd");
                (linux::files(args, vendor, &initrd)?, Some(initrd))
            }
        };
        Ok(Self {
            directory,
            kernel,
            initrd,
        })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Prints the end of the guest's output on its serial port in each VM.
    fn show_consoles(&self) {
        const LINES: usize = 40;
        let files = std::fs::read_dir(self.directory.path());
        let mut paths: Vec<_> = files
            .into_iter()
            .flatten()
            .flatten()
            .map(|f| f.path())
            .collect();
        paths.retain(|path| path.extension().is_some_and(|kind| kind == "console"));
        paths.sort();
        for path in paths {
            let bytes = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = text.lines().collect();
            let name = path.file_stem().unwrap_or_default().display().to_string();
            for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
                eprintln!("{name}: {}", crate::report::plain(line));
            }
        }
    }
}

/// Runs the guest, with moves between hosts of `frequencies` (in kHz).
pub(super) fn measure(
    args: &Args,
    host: &KvmFacts,
    frequencies: &[u32],
) -> Result<Measured, TscError> {
    let site = Site::new(args, host.vendor())?;
    let measured = measure_at(&site, args, host, frequencies);
    let well = measured
        .as_ref()
        .is_ok_and(|measured| measured.record.anew.is_empty());
    if !well {
        site.show_consoles();
    }
    measured
}

fn measure_at(
    site: &Site,
    args: &Args,
    host: &KvmFacts,
    frequencies: &[u32],
) -> Result<Measured, TscError> {
    let khz = frequencies.first().copied().or(host.tsc_khz);
    let khz = f64::from(khz.ok_or(TscError::NoFrequency)?);
    let watch = Stopwatch::start();
    let mut vms = Vms::new(&args.hypernest(), site.directory.path(), watch);
    let created = Created {
        khz,
        scaled: frequencies.first().copied(),
        hv: enlightenments(args, host),
    };
    vms.start(&run_words(args, site, &vms.next_name(), &created))?;
    let vcpus = usize::try_from(args.vcpus).unwrap_or(usize::MAX);
    let patience = args.stuck_after();
    vms.until("report of each vCPU", patience, |record| {
        record.vcpus() >= vcpus
    })?;
    let hello = vms.record().hello.unwrap_or_default();
    let mut doings = Doings {
        began: 0,
        khz,
        moves: Vec::new(),
        expects_acks: hello.emulation && !args.no_ack && args.may_reenlighten(),
        clocks: match args.clock.as_deref() {
            Some("pause") => AcrossMoves::Pause,
            _ => AcrossMoves::Continue,
        },
    };
    let mut tsc_khz = if hello.tsc_hz == 0 {
        khz
    } else {
        hello.tsc_hz as f64 / 1e3
    };
    settle(args, &mut vms, tsc_khz)?;
    for number in 1..=args.moves {
        eprintln!("move {number} of {}", args.moves);
        let target = match frequencies {
            [] => None,
            list => Some(list[number as usize % list.len()]),
        };
        let started = watch.now();
        move_guest(args, &mut vms, site, target)?;
        vms.until_left(patience)?;
        let run = vms.current();
        vms.until("report after a move", patience, |record| {
            record.first.contains_key(&run)
        })?;
        let target = target.map(f64::from);
        doings.moves.push(Moved {
            started,
            resumed: vms.first_byte().unwrap_or(started),
            khz: target,
        });
        if let Some(target) = target.filter(|target| {
            doings.expects_acks && (target / tsc_khz - 1.0).abs() * 1e6 > SAME_FREQUENCY
        }) {
            // A missing acknowledgement is a failure in the report.
            let acked = |record: &Record| record.acks.iter().any(|ack| ack.run == run);
            let long = Args::ticks(args.ack_after_us, tsc_khz)
                + Args::ticks(args.between_ms.max(100) * 1000, tsc_khz);
            vms.until("acknowledgement", patience, |record| {
                acked(record) || ran_for(record, run) > long
            })?;
            if acked(vms.record()) {
                tsc_khz = target;
            }
        }
        settle(args, &mut vms, tsc_khz)?;
    }
    Ok(Measured {
        record: vms.finish(),
        doings,
    })
}

/// Ticks of the TSC since the first sample of `run`.
fn ran_for(record: &Record, run: usize) -> u64 {
    let tsc = Clock::Tsc.index();
    match (record.first.get(&run), record.latest) {
        (Some(first), Some(latest)) => latest.now[tsc].saturating_sub(first.now[tsc]),
        _ => 0,
    }
}

/// Lets the guest run for a while.
fn settle(args: &Args, vms: &mut Vms, khz: f64) -> Result<(), VmError> {
    let tsc = Clock::Tsc.index();
    let from = vms.record().latest.map_or(0, |sample| sample.now[tsc]);
    let ticks = Args::ticks(args.between_ms * 1000, khz);
    vms.until("reports", args.stuck_after(), |record| {
        let now = record.latest.map_or(0, |sample| sample.now[tsc]);
        // A TSC that stepped back is far ahead in this arithmetic, and ends the wait.
        now.wrapping_sub(from) >= ticks
    })
}

/// Parameters of the guest's creation.
struct Created {
    /// The frequency of its TSC.
    khz: f64,
    /// The frequency, if it differs from the host's.
    scaled: Option<u32>,
    /// Its enlightenments.
    hv: String,
}

/// The requested enlightenments, or those that provide every clock and notify of other frequencies.
fn enlightenments(args: &Args, host: &KvmFacts) -> String {
    let all_clocks = match (&host.hv_cpuid, args.nested()) {
        (None, _) => "none",
        (Some(_), true) if host.vendor() == CpuVendor::Amd => "nested,-evmcs",
        (Some(_), true) => "nested",
        (Some(_), false) => "windows,reenlightenment",
    };
    args.hv.clone().unwrap_or_else(|| all_clocks.to_owned())
}

/// `hypernest run …`.
fn run_words(args: &Args, site: &Site, name: &str, created: &Created) -> Vec<String> {
    let mut words = words(&["run", "--name", name, "--kernel"]);
    words.push(site.kernel.display().to_string());
    words.push("--cmdline".to_owned());
    words.push(match args.guest {
        GuestKind::Micro => micro_line(args, created.khz),
        GuestKind::Linux | GuestKind::LinuxL2 => linux::line(args),
    });
    words.extend(["--memory".to_owned(), args.memory().to_owned()]);
    words.extend(["--cpus".to_owned(), args.vcpus.to_string()]);
    if let Some(initrd) = &site.initrd {
        words.extend(["--initrd".to_owned(), initrd.display().to_string()]);
    }
    words.push(format!("--hv={}", created.hv));
    if args.nested() {
        words.push("--nested".to_owned());
    }
    if let Some(khz) = created.scaled {
        words.extend(["--tsc-khz".to_owned(), khz.to_string()]);
    }
    words.extend(local(args, site, name));
    words
}

/// The command line of the guest program.
pub(super) fn micro_line(args: &Args, khz: f64) -> String {
    let ack_after = if args.no_ack {
        "never".to_owned()
    } else {
        Args::ticks(args.ack_after_us, khz).to_string()
    };
    format!(
        "tsc cpus={} beat={} counter-every={} reenlighten={} ack-after={ack_after}",
        args.vcpus,
        Args::ticks(args.beat_us, khz).max(1),
        args.counter_every,
        args.reenlighten.name()
    )
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The arguments that depend on the host and not on the guest.
fn local(args: &Args, site: &Site, name: &str) -> Vec<String> {
    let console = format!("file:{}", site.path(&format!("{name}.console")));
    match args.guest {
        GuestKind::Micro => words(&["--serial", "none", "--debugcon", "stdio"]),
        // A Linux program may not write to ports, or may lose access when QEMU's CPU emulation intervenes.
        GuestKind::Linux | GuestKind::LinuxL2 => {
            words(&["--serial", &console, "--serial2", "stdio"])
        }
    }
}

/// The arguments for the destination.
fn arrival(args: &Args, site: &Site, name: &str, khz: Option<u32>) -> Vec<String> {
    let mut words = local(args, site, name);
    for (flag, value) in [
        ("--tsc-khz", khz.map(|khz| khz.to_string())),
        ("--clock", args.clock.clone()),
        ("--on-tsc-change", args.on_tsc_change.clone()),
    ] {
        if let Some(value) = value {
            words.extend([flag.to_owned(), value]);
        }
    }
    words
}

fn move_guest(args: &Args, vms: &mut Vms, site: &Site, khz: Option<u32>) -> Result<(), VmError> {
    let (old, new) = (vms.name().to_owned(), vms.next_name());
    match args.by {
        Way::Save => {
            let snapshot = site.path("snapshot");
            vms.command(&["save", &old, &snapshot, "--then", "stop"])?;
            let mut restore = words(&["restore", &snapshot, "--name", &new]);
            restore.extend(arrival(args, site, &new, khz));
            vms.start(&restore)
        }
        Way::Migrate => {
            let socket = site.path(&format!("{new}.incoming"));
            let address = format!("unix:{socket}");
            let mut incoming = words(&["run", "--incoming", &address, "--name", &new]);
            incoming.extend(arrival(args, site, &new, khz));
            vms.start(&incoming)?;
            wait_for(&PathBuf::from(&socket), args.stuck_after())?;
            let migrated = vms.command(&["migrate", &old, &address]);
            // A destination that refuses the VM says why.
            migrated.map_err(|error| vms.end_of_destination().unwrap_or(error))
        }
    }
}

/// Time from the creation of a socket until it accepts connections.
const LISTEN: Duration = Duration::from_millis(20);

/// Waits until a process accepts connections at `socket`.
fn wait_for(socket: &std::path::Path, patience: Duration) -> Result<(), VmError> {
    let start = Instant::now();
    while !socket.exists() {
        if start.elapsed() > patience {
            return Err(VmError::Stuck {
                wanted: "socket of the VM that waits for a migration",
                seconds: patience.as_secs(),
                said: String::new(),
            });
        }
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(LISTEN);
    Ok(())
}
