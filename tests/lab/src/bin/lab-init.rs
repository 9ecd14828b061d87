//! The init of a lab host: loads KVM, runs one command, reports its status, powers off.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hypernest_lab::fetch;
use hypernest_lab::plan::{self, Input, Plan};
use hypernest_lab::wire::{self, Decoder, Finished, Kind};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios;
use nix::unistd::{Pid, chdir, chroot};

/// The status of a run in which the lab itself failed.
const LAB_FAILED: u8 = 125;

/// The directory in which the command starts.
const HOME: &str = "/root";

type Line = Arc<Mutex<File>>;

fn main() {
    let ready = leave_first_mount().and_then(|()| mount_all());
    match ready.and_then(|()| open_line()) {
        Ok(line) => {
            let finished = run(&line).unwrap_or_else(|error| {
                say(&line, Kind::Note, error.to_string().as_bytes());
                Finished {
                    status: LAB_FAILED,
                    stdout: 0,
                    stderr: 0,
                    fetched: 0,
                    unfetched: 0,
                }
            });
            let report = serde_json::to_vec(&finished).unwrap_or_default();
            say(&line, Kind::Finished, &report);
            let line = line.lock().unwrap_or_else(PoisonError::into_inner);
            // A power-off drops data that is still in the port.
            let _ = termios::tcdrain(&*line);
        }
        Err(error) => eprintln!("lab-init: {error}"),
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn context(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Makes the root directory a mount other than the kernel's first one, from which no process can leave by
/// `pivot_root` (pivot_root(2)), as passt does to isolate itself.
fn leave_first_mount() -> io::Result<()> {
    const OVER: &str = "/root";
    let none = None::<&str>;
    let change = |what: &'static str, result: nix::Result<()>| {
        result.map_err(|errno| context(what)(errno.into()))
    };
    std::fs::create_dir_all(OVER).map_err(context(OVER))?;
    let bound = mount(Some("/"), OVER, none, MsFlags::MS_BIND, none);
    change("mount / once more", bound)?;
    change("chdir to that mount", chdir(OVER))?;
    let moved = mount(Some("."), "/", none, MsFlags::MS_MOVE, none);
    change("move that mount to /", moved)?;
    change("chroot to it", chroot("."))
}

fn mount_all() -> io::Result<()> {
    std::fs::create_dir_all("/root").map_err(context("/root"))?;
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
    ] {
        if !target.starts_with("/sys/") {
            std::fs::create_dir_all(target).map_err(context(target))?;
        }
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|errno| context(format!("mount {target}"))(errno.into()))?;
    }
    Ok(())
}

/// Opens the second serial port in raw mode.
fn open_line() -> io::Result<Line> {
    let line = File::options()
        .read(true)
        .write(true)
        .open("/dev/ttyS1")
        .map_err(context("/dev/ttyS1"))?;
    // The C library's own functions for the speed cannot be linked statically through their Rust bindings.
    let status = Command::new("/lab/busybox")
        .args(["stty", "115200", "raw", "-echo", "clocal", "-crtscts"])
        .stdin(line.try_clone()?)
        .status()
        .map_err(context("/lab/busybox"))?;
    if !status.success() {
        return Err(io::Error::other("stty could not set up /dev/ttyS1"));
    }
    Ok(Arc::new(Mutex::new(line)))
}

fn say(line: &Line, kind: Kind, payload: &[u8]) {
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    // If this fails there is no other output.
    let _ = wire::send(&mut *line, kind, payload);
}

fn run(line: &Line) -> io::Result<Finished> {
    let release = std::fs::read("/proc/sys/kernel/osrelease").unwrap_or_default();
    say(line, Kind::Hello, release.trim_ascii());
    let plan = std::fs::read(plan::PATH).map_err(context(plan::PATH))?;
    let plan: Plan = serde_json::from_slice(&plan).map_err(context_json)?;
    wait_for_refined_tsc();
    for module in &plan.modules {
        load(module).map_err(context(&module.path))?;
    }
    say(line, Kind::Started, &[]);

    let (mut child, terminal) = spawn(&plan)?;
    let mut outputs = Vec::new();
    if let Some(terminal) = &terminal {
        let from = File::from(terminal.try_clone()?);
        outputs.push(forward(from, Kind::Stdout, line));
    }
    if let Some(stdout) = child.stdout.take() {
        outputs.push(forward(stdout, Kind::Stdout, line));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.push(forward(stderr, Kind::Stderr, line));
    }
    let input: Option<Box<dyn Write + Send>> = match (terminal, child.stdin.take()) {
        (Some(terminal), _) => Some(Box::new(File::from(terminal))),
        (None, Some(stdin)) => Some(Box::new(stdin)),
        (None, None) => None,
    };
    if let Some(input) = input {
        let reader = line
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_clone()?;
        let line = Arc::clone(line);
        thread::spawn(move || take_input(reader, input, &line));
    }

    let status = child.wait()?;
    // Processes that the command left running would keep its output open.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let mut totals = [0, 0];
    for output in outputs {
        if let Ok((kind, bytes)) = output.join() {
            totals[usize::from(kind == Kind::Stderr)] += bytes;
        }
    }
    let (fetched, unfetched) = send_fetched(&plan.fetch, line)?;
    Ok(Finished {
        status: code(status),
        stdout: totals[0],
        stderr: totals[1],
        fetched,
        unfetched,
    })
}

/// Sends the files that are to be fetched; returns the bytes sent and how many files could not be read.
fn send_fetched(wanted: &[String], line: &Line) -> io::Result<(u64, u32)> {
    if wanted.is_empty() {
        return Ok((0, 0));
    }
    // Absolute names are unchanged.
    let paths: Vec<_> = wanted
        .iter()
        .map(|path| Path::new(HOME).join(path))
        .collect();
    let mut sent = FetchedFrames { line, bytes: 0 };
    let failed = fetch::pack(
        &paths,
        BufWriter::with_capacity(wire::MAX_PAYLOAD, &mut sent),
    )?;
    for why in &failed {
        say(line, Kind::Note, why.as_bytes());
    }
    Ok((sent.bytes, u32::try_from(failed.len()).unwrap_or(u32::MAX)))
}

/// Sends the data written to it as frames.
struct FetchedFrames<'a> {
    line: &'a Line,
    bytes: u64,
}

impl Write for FetchedFrames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(self.line, Kind::Fetched, bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn context_json(error: serde_json::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", plan::PATH))
}

/// Waits until the kernel has the final frequency of its TSC, about two seconds after boot. If the TSC is not
/// invariant, KVM permanently uses the kernel's frequency at the time when KVM is loaded (`kvm_timer_init`),
/// and hypernest refuses to run VMs if that was a first estimate.
fn wait_for_refined_tsc() {
    const MOST: Duration = Duration::from_secs(20);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let started = Instant::now();
    while !tsc_is_final(&cpu, &clocksources()) && started.elapsed() < MOST {
        thread::sleep(Duration::from_millis(50));
    }
}

fn clocksources() -> String {
    const AVAILABLE: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    std::fs::read_to_string(AVAILABLE).unwrap_or_default()
}

/// The kernel offers `tsc` in place of `tsc-early` once it has refined the frequency, or has abandoned the
/// attempt (`tsc_refine_calibration_work`).
fn tsc_is_final(cpuinfo: &str, clocksources: &str) -> bool {
    let invariant = cpuinfo
        .split_whitespace()
        .any(|flag| flag == "constant_tsc");
    let mut names = clocksources.split_whitespace();
    invariant || names.clone().any(|name| name == "tsc") || !names.any(|name| name == "tsc-early")
}

fn load(module: &plan::Module) -> io::Result<()> {
    let file = File::open(&module.path)?;
    let parameters = CString::new(module.parameters.as_str())?;
    finit_module(&file, &parameters, ModuleInitFlags::empty())?;
    Ok(())
}

/// Starts the command; if it has a terminal, the result includes the terminal's near end.
fn spawn(plan: &Plan) -> io::Result<(Child, Option<OwnedFd>)> {
    let (program, arguments) = plan
        .command
        .split_first()
        .ok_or_else(|| io::Error::other("no command"))?;
    let mut command = if matches!(plan.input, Input::Terminal { .. }) {
        // A terminal becomes the controlling one only for the leader of a new session.
        let mut command = Command::new("/lab/busybox");
        command.arg0("setsid").args(["-c", program]);
        command
    } else {
        Command::new(program)
    };
    command
        .args(arguments)
        .env_clear()
        .envs(&plan.environment)
        .current_dir(HOME);
    let terminal = match plan.input {
        Input::Nothing => {
            command.stdin(Stdio::null());
            None
        }
        Input::Line => {
            command.stdin(Stdio::piped());
            None
        }
        Input::Terminal { rows, columns } => {
            let size = nix::pty::Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let pair = nix::pty::openpty(Some(&size), None)?;
            command
                .stdin(pair.slave.try_clone()?)
                .stdout(pair.slave.try_clone()?)
                .stderr(pair.slave);
            Some(pair.master)
        }
    };
    if terminal.is_none() {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let child = command.spawn().map_err(context(program))?;
    Ok((child, terminal))
}

fn forward(
    mut from: impl Read + Send + 'static,
    kind: Kind,
    line: &Line,
) -> thread::JoinHandle<(Kind, u64)> {
    let line = Arc::clone(line);
    thread::spawn(move || {
        let mut bytes = 0;
        let mut buffer = [0; wire::MAX_PAYLOAD];
        // A terminal whose other end is closed gives EIO instead of an end of file.
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            say(&line, kind, &buffer[..read]);
            bytes += read as u64;
        }
        (kind, bytes)
    })
}

fn take_input(mut from: File, input: Box<dyn Write + Send>, line: &Line) {
    let mut input = Some(input);
    let mut decoder = Decoder::default();
    let mut buffer = [0; 64];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        decoder.push(&buffer[..read]);
        while let Ok(Some(frame)) = decoder.next_frame() {
            match frame.kind {
                Kind::Stdin => {
                    if let Some(to) = &mut input
                        && to.write_all(&frame.payload).is_err()
                    {
                        input = None;
                    }
                    say(line, Kind::Taken, &[]);
                }
                Kind::StdinEnd => input = None,
                _ => {}
            }
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(i32::from(LAB_FAILED));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::tsc_is_final;

    #[test]
    fn a_first_guess_of_the_tsc_is_waited_out() {
        for (cpu, clocks, last) in [
            ("flags : fpu tsc", "tsc-early hpet acpi_pm", false),
            ("flags : fpu tsc", "tsc hpet acpi_pm", true),
            ("flags : fpu tsc", "hpet acpi_pm", true),
            ("flags : fpu constant_tsc", "tsc-early", true),
        ] {
            assert_eq!(tsc_is_final(cpu, clocks), last, "{cpu:?} {clocks:?}");
        }
    }
}
