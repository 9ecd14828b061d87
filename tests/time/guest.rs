//! A guest in this process that takes part in a change of its TSC's frequency, and KVM's parameters of its
//! clocks.

use std::error::Error;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypernest::config::{Flags, HostLimits, build};
use hypernest::kvm::tsc;
use hypernest::life::{MachineHandle, Request};
use hypernest::machine::{Machine, MachineError, Outcome, Running};
use hypernest::time::HostTsc;
use hypernest::time::ratio::Ratio;
use hypernest::time::switch::{SwitchStep, Switched};
use hypernest::units::{TscKhz, VpIndex};
use tempfile::TempDir;

type Failure = Box<dyn Error>;

/// The timeout by the host's own clock.
const PATIENCE: Duration = Duration::from_secs(90);

/// The relation of a vCPU's TSC to the host's, as KVM reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) khz: TscKhz,
    pub(crate) offset: u64,
    ratio: Ratio,
}

impl Frame {
    /// The guest's TSC when the host's is `host_tsc`.
    pub(crate) fn guest_tsc(&self, host_tsc: u64) -> u64 {
        self.ratio.guest_tsc(host_tsc, self.offset)
    }

    /// The host's TSC when the guest's is `guest_tsc`.
    pub(crate) fn host_tsc(&self, guest_tsc: u64) -> u64 {
        let scaled = guest_tsc.wrapping_sub(self.offset);
        let (mut low, mut high) = (0u64, 1u64 << 56);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.ratio.scale(middle) < scaled {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// A guest that runs the program `reenlighten`.
pub(crate) struct Guest {
    handle: MachineHandle,
    thread: Option<JoinHandle<Result<Outcome, MachineError>>>,
    said: PathBuf,
    _dir: TempDir,
}

impl Guest {
    /// Starts it with `cpus` vCPUs at `khz`, without these steps of the switch, and waits until it has opted
    /// in.
    pub(crate) fn start(
        khz: TscKhz,
        cpus: u32,
        arguments: &str,
        left_out: &[SwitchStep],
    ) -> Result<Self, Failure> {
        let dir = TempDir::with_prefix("time")?;
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("guest"), hypernest_guest::GUEST)?;
        let (kernel, said) = (path("guest"), path("said"));
        let flags = Flags::from_pairs([
            ("name", "time"),
            ("kernel", kernel.to_str().ok_or("not UTF-8")?),
            (
                "cmdline",
                &format!("reenlighten cpus={cpus} moves=2 {arguments}"),
            ),
            ("memory", "32M"),
            ("cpus", &cpus.to_string()),
            ("hv", "all,-hv-tsc-invariant"),
            ("serial", "none"),
            ("debugcon", &format!("file:{}", said.display())),
            ("debug-exit", ""),
            ("tsc-khz", &khz.0.to_string()),
        ]);
        let config = build(None, &flags, HostLimits::default())?.config;
        let mut machine = Machine::new(config, &[])?;
        machine.leave_out(left_out.to_vec());
        let handle = machine.handle();
        let thread = std::thread::spawn(move || machine.run());
        let guest = Self {
            handle,
            thread: Some(thread),
            said,
            _dir: dir,
        };
        guest.line("ready")?;
        Ok(guest)
    }

    /// Waits for the first line that begins with `start`, and returns it.
    pub(crate) fn line(&self, start: &str) -> Result<String, Failure> {
        let begun = Instant::now();
        loop {
            let said = self.said()?;
            let line = said
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .find(|line| line.starts_with(start));
            if let Some(line) = line {
                return Ok(line.trim_end().to_owned());
            }
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || begun.elapsed() > PATIENCE {
                return Err(format!("the guest did not print {start:?}, but:\n{said}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its whole output.
    pub(crate) fn said(&self) -> Result<String, Failure> {
        let said = std::fs::read(&self.said).unwrap_or_default();
        // The first byte only shows that it runs.
        Ok(String::from_utf8_lossy(&said)
            .trim_start_matches('\0')
            .to_owned())
    }

    /// The parameters of each vCPU's TSC, as KVM reports them.
    pub(crate) fn frames(&self) -> Result<Vec<Frame>, Failure> {
        let frames = self.handle.run_on_main(|running| {
            let host = running.machine().host_tsc();
            let vps: Vec<_> = running.cycle().vcpus().vps().collect();
            vps.into_iter()
                .map(|vp| frame(running, vp, host))
                .collect::<Result<Vec<_>, String>>()
        })?;
        Ok(frames?)
    }

    /// Notifies it of a move.
    pub(crate) fn move_it(&self) -> Result<(), Failure> {
        let told = self
            .handle
            .run_on_main(|running| running.reenlighten().map_err(|e| e.to_string()))?;
        Ok(told?)
    }

    /// The result of the last switch.
    pub(crate) fn last_switch(&self) -> Result<Option<Switched>, Failure> {
        Ok(self
            .handle
            .run_on_main(|running| running.machine().last_switch().cloned())?)
    }

    /// Waits until it ends, and returns its output.
    pub(crate) fn end(mut self) -> Result<String, Failure> {
        self.line("done")?;
        let thread = self.thread.take().ok_or("it has ended before")?;
        let outcome = thread
            .join()
            .map_err(|_| "the machine's thread panicked")??;
        if outcome != Outcome::DebugExit(0) {
            return Err(format!("the guest ended with {outcome:?}").into());
        }
        self.said()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.request(Request::Kill);
            let _ended = thread.join();
        }
    }
}

fn frame(running: &Running<'_>, vp: VpIndex, host: HostTsc) -> Result<Frame, String> {
    let read = running
        .cycle()
        .vcpus()
        .on_vcpu(vp, |fd| Ok((tsc::khz(fd)?, tsc::tsc_offset(fd)?)));
    let (khz, offset) = read
        .map_err(|e| e.to_string())?
        .map_err(|e: hypernest::kvm::KvmError| e.to_string())?;
    let ratio = host
        .ratio(khz)
        .ok_or_else(|| format!("{khz} cannot be on this host"))?;
    Ok(Frame { khz, offset, ratio })
}

/// The number or numbers after `name=` in a line.
pub(crate) fn numbers(line: &str, name: &str) -> Result<Vec<i128>, Failure> {
    let value = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .ok_or_else(|| format!("no {name} in {line:?}"))?;
    let parsed: Result<Vec<i128>, _> = value.split(',').map(str::parse).collect();
    Ok(parsed.map_err(|e| format!("{name} in {line:?}: {e}"))?)
}

/// The only number after `name=`.
pub(crate) fn number(line: &str, name: &str) -> Result<i128, Failure> {
    let numbers = numbers(line, name)?;
    numbers
        .first()
        .copied()
        .ok_or_else(|| format!("no {name} in {line:?}").into())
}
