//! The program's environment, as far as an unprivileged program inside can observe it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use l2probe::counts::Counts;
use l2probe::document::{Hypervisor, Place, Trapped, Tsc, Wsl};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::instructions::{Allowed, cpuid, tsc};

/// CPUs that this process may use; the first one if the kernel does not report them.
pub(crate) fn cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return vec![0];
    };
    let cpus: Vec<_> = (0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// All except [`Place::cpuid`], which needs a measurement.
pub(crate) fn look(allowed: Allowed) -> Place {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let interop = Path::new("/proc/sys/fs/binfmt_misc/WSLInterop").exists()
        || std::env::var_os("WSL_DISTRO_NAME").is_some();
    let clock = "/sys/devices/system/clocksource/clocksource0";
    let words = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(format!("{clock}/{file}")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    Place {
        wsl: wsl(&kernel, interop, Path::new("/dev/lxss").exists()),
        kernel,
        cpu_model: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        cpus: cpus().len(),
        clocksource: words("current_clocksource").join(" "),
        clocksources: words("available_clocksource"),
        hypervisor: if allowed.cpuid {
            hypervisor(&|leaf| cpuid(leaf, 0))
        } else {
            None
        },
        cpuid: Trapped::Unknown,
        tsc: Tsc {
            // CPUID 0x80000007, EDX bit 8: the TSC always ticks at one rate.
            invariant: allowed.cpuid
                && cpuid(0x8000_0000, 0)[0] >= 0x8000_0007
                && cpuid(0x8000_0007, 0)[3] & (1 << 8) != 0,
            ..if allowed.tsc { rate() } else { Tsc::default() }
        },
    }
}

/// Detected by the kernel's name, which contains "Microsoft" in both versions. A custom kernel in version 2
/// does not have that name, but can start Windows programs; version 1 has a device of its own.
fn wsl(kernel: &str, interop: bool, lxss: bool) -> Option<Wsl> {
    let kernel = kernel.to_lowercase();
    if kernel.contains("wsl2") {
        return Some(Wsl::Wsl2);
    }
    match (kernel.ends_with("-microsoft"), interop) {
        (true, _) => Some(Wsl::Wsl1),
        (false, true) if lxss => Some(Wsl::Wsl1),
        (false, true) => Some(Wsl::Wsl2),
        (false, false) => None,
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut models = lines.filter(|(name, _)| name.trim() == "model name");
    let model = models.next().map(|(_, model)| model.trim().to_owned());
    model.unwrap_or_default()
}

/// Maximum number of kept leaves from each range of a hypervisor's leaves.
const LEAVES: u32 = 16;

/// Leaves from 0x40000000 on belong to hypervisors; if Hyper-V's come first, KVM's follow at an offset of
/// 0x100.
fn hypervisor(cpuid: &dyn Fn(u32) -> [u32; 4]) -> Option<Hypervisor> {
    const FIRST: u32 = 0x4000_0000;
    // CPUID 1, ECX bit 31: set by hypervisors only.
    let named = cpuid(1)[2] & (1 << 31) != 0;
    let [max, b, c, d] = cpuid(FIRST);
    if !named || max < FIRST {
        return None;
    }
    let text = |registers: &[u32]| {
        let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\0')
            .to_owned()
    };
    let mut leaves = BTreeMap::new();
    for base in [FIRST, FIRST + 0x100] {
        let max = cpuid(base)[0];
        // Otherwise it is not a hypervisor's leaf.
        if (base..base + 0x100).contains(&max) {
            for leaf in base..=max.min(base + LEAVES - 1) {
                leaves.insert(format!("{leaf:#x}"), cpuid(leaf));
            }
        }
    }
    let interface = text(&cpuid(FIRST + 1)[..1]);
    let printable = !interface.is_empty() && interface.chars().all(|c| c.is_ascii_graphic());
    Some(Hypervisor {
        signature: text(&[b, c, d]),
        interface: printable.then_some(interface),
        leaves,
    })
}

/// The rate of the TSC by CLOCK_MONOTONIC_RAW, which NTP does not adjust.
fn rate() -> Tsc {
    const REPEATS: usize = 5;
    const PAUSE: Duration = Duration::from_millis(40);
    let Some(mut last) = pair() else {
        return Tsc::default();
    };
    let mut rates = Vec::new();
    for _ in 0..REPEATS {
        thread::sleep(PAUSE);
        let Some(now) = pair() else { continue };
        let ns = now.1.saturating_sub(last.1).as_nanos();
        if ns > 0 {
            // Both are far below 2^53.
            rates.push(now.0.wrapping_sub(last.0) as f64 / ns as f64 * 1e6);
        }
        last = now;
    }
    rates.sort_by(f64::total_cmp);
    let median = rates.get(rates.len() / 2).copied();
    let khz = median.filter(|&khz| khz > 0.0);
    Tsc {
        khz,
        spread: khz.map_or(0.0, |khz| (rates[rates.len() - 1] - rates[0]) / khz),
        invariant: false,
    }
}

/// The two clocks at one time: of several reads, the one that took the shortest time.
fn pair() -> Option<(u64, Duration)> {
    let looks = (0..10).filter_map(|_| {
        let before = tsc();
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).ok()?;
        let took = tsc().wrapping_sub(before);
        Some((took, before.wrapping_add(took / 2), time.into()))
    });
    let best = looks.min_by_key(|&(took, ..)| took);
    best.map(|(_, tsc, time)| (tsc, time))
}

/// CPUID itself takes 100 to 250 cycles (the published tables of measured instruction timings agree); a VM
/// exit and entry take at least 1,000. A pair of fenced RDTSCs takes 20 to 70.
pub(crate) fn trapped(cpuid: Option<&Counts>, empty: Option<&Counts>) -> Trapped {
    let median = |counts: Option<&Counts>| counts?.quantile(500);
    let Some(cpuid) = median(cpuid) else {
        return Trapped::Unknown;
    };
    // The two clock reads themselves take little time.
    match cpuid.saturating_sub(median(empty).unwrap_or(0)) {
        0..=400 => Trapped::No,
        401..=800 => Trapped::Unknown,
        _ => Trapped::Yes,
    }
}

/// Properties of the environment that affect the figures.
pub(crate) fn notes(place: &Place, allowed: Allowed) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |text: &str| notes.push(text.to_owned());
    if place.wsl == Some(Wsl::Wsl1) {
        note("this is WSL 1, which does not use a virtual machine: no figure is an L2 exit");
    }
    if !allowed.tsc {
        note("RDTSC is disabled here: only kinds timed by the kernel's clock were measured");
    } else if !place.tsc.invariant {
        note("CPUID does not report an invariant TSC: its rate may vary");
    }
    if place.tsc.spread > 0.01 {
        note(
            "the TSC's rate differs by more than 1 % from one estimate to the next: ticks may not be time",
        );
    }
    match (place.cpuid, &place.hypervisor) {
        (Trapped::No, None) => {
            note("CPUID is not virtualized and names no hypervisor: this is not a virtual machine");
        }
        (Trapped::No, Some(_)) => {
            note(
                "a hypervisor is named, but CPUID takes no longer than on the bare CPU: its exits were not \
                 measured",
            );
        }
        (Trapped::Yes, None) => {
            note("CPUID is virtualized by a hypervisor that does not name itself");
        }
        (Trapped::Unknown, _) => note("the time of CPUID does not show whether it is virtualized"),
        (Trapped::Yes, Some(_)) => {}
    }
    if place.clocksource.is_empty() {
        note("the kernel's clock source is not known (no /sys)");
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_subsystems() {
        for (kernel, interop, lxss, wanted) in [
            (
                "5.15.153.1-microsoft-standard-WSL2",
                true,
                false,
                Some(Wsl::Wsl2),
            ),
            (
                "6.6.36-microsoft-standard-WSL2+",
                false,
                false,
                Some(Wsl::Wsl2),
            ),
            ("4.4.0-19041-Microsoft", true, true, Some(Wsl::Wsl1)),
            ("6.12.1-mine", true, false, Some(Wsl::Wsl2)),
            ("6.12.1-mine", false, false, None),
        ] {
            assert_eq!(wsl(kernel, interop, lxss), wanted, "{kernel}");
        }
    }

    #[test]
    fn hypervisors_by_their_leaves() {
        let letters = |text: &str| -> [u32; 3] {
            let mut bytes = [0; 12];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            [word(0), word(4), word(8)]
        };
        let machine = |signature: &'static str, max: u32, interface: u32| {
            move |leaf: u32| match leaf {
                1 => [0, 0, 1 << 31, 0],
                0x4000_0000 => {
                    let [b, c, d] = letters(signature);
                    [max, b, c, d]
                }
                0x4000_0001 => [interface, 0, 0, 0],
                _ => [0; 4],
            }
        };
        let hyperv = hypervisor(&machine("Microsoft Hv", 0x4000_000b, 0x3123_7648)).unwrap();
        assert_eq!(hyperv.signature, "Microsoft Hv");
        assert_eq!(hyperv.interface.as_deref(), Some("Hv#1"));
        assert_eq!(hyperv.leaves.len(), 12);
        let kvm = hypervisor(&machine("KVMKVMKVM", 0x4000_0001, 0x0100_7efb)).unwrap();
        assert_eq!((kvm.signature.as_str(), kvm.interface), ("KVMKVMKVM", None));
        // A wrong maximum leaf is limited.
        let liar = hypervisor(&machine("x", 0x4000_00ff, 0)).unwrap();
        assert_eq!(liar.leaves.len(), 16);
        assert!(hypervisor(&|_| [0; 4]).is_none());
    }

    #[test]
    fn a_long_cpuid_is_trapped() {
        let counts = |value: u64| -> Counts { [value].into_iter().collect() };
        let of = |cpuid, empty| trapped(Some(&counts(cpuid)), Some(&counts(empty)));
        assert_eq!(of(150, 30), Trapped::No);
        assert_eq!(of(1_600, 30), Trapped::Yes);
        assert_eq!(of(70_000, 60), Trapped::Yes);
        assert_eq!(of(600, 30), Trapped::Unknown);
        assert_eq!(trapped(Some(&counts(9_000)), None), Trapped::Yes);
        assert_eq!(trapped(None, Some(&counts(1))), Trapped::Unknown);
    }

    #[test]
    fn what_is_doubtful_is_said() {
        let here = look(crate::instructions::allowed());
        assert!(here.cpus > 0 && !here.kernel.is_empty());
        let said = |place: &Place| {
            notes(
                place,
                Allowed {
                    tsc: true,
                    cpuid: true,
                },
            )
            .join("; ")
        };
        let bare = Place {
            cpuid: Trapped::No,
            ..Place::default()
        };
        assert!(said(&bare).contains("not virtualized"));
        let hidden = Place {
            cpuid: Trapped::Yes,
            ..Place::default()
        };
        assert!(said(&hidden).contains("does not name itself"));
        let old = Place {
            wsl: Some(Wsl::Wsl1),
            ..hidden
        };
        assert!(said(&old).contains("WSL 1"));
    }

    #[test]
    fn the_models_name() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A CPU\n"), "A CPU");
        assert_eq!(cpu_model(""), "");
    }
}
