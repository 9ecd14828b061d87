//! The environment of a measurement: all properties that affect the figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hypernest::kvm::host::HostCaps;
use hypernest_lab::host::Host;
use hypernest_lab::plan::LAB_HOST_VARIABLE;

use crate::report::Environment;

/// The lab host's name, if this is one.
pub(crate) fn lab() -> Option<Host> {
    std::env::var(LAB_HOST_VARIABLE)
        .ok()
        .and_then(|name| Host::from_name(&name))
        .filter(|host| *host != Host::Here)
}

/// The host's environment; `pinned_to` are the CPUs that run the measurement. Unreadable properties are
/// omitted.
pub(crate) fn read(host: &HostCaps, pinned_to: &[u32]) -> Environment {
    below(Path::new("/"), host, pinned_to)
}

fn below(root: &Path, host: &HostCaps, pinned_to: &[u32]) -> Environment {
    let first = pinned_to.first().copied().unwrap_or(0);
    Environment {
        cpu_model: host.system.cpu.model.clone(),
        microcode: microcode(&text(&root.join("proc/cpuinfo")).unwrap_or_default()),
        kernel: host.system.kernel.clone(),
        modules: host.system.modules.clone(),
        mitigations: vulnerabilities(&root.join("sys/devices/system/cpu/vulnerabilities")),
        smt: host.system.cpu.smt.clone(),
        governor: text(&root.join(format!(
            "sys/devices/system/cpu/cpu{first}/cpufreq/scaling_governor"
        ))),
        tsc_khz: host.kvm.tsc_khz,
        tsc_invariant: host.system.cpu.constant_tsc,
        lab: lab().map(|lab| lab.name().to_owned()),
        pinned_to: pinned_to.to_vec(),
        timer_resolution_ns: timer_resolution(),
    }
}

/// The resolution of the host's timers. The kernel returns its tick if it has no high-resolution timers
/// (hrtimer_get_res, kernel/time/hrtimer.c).
fn timer_resolution() -> Option<u64> {
    let resolution = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    u64::try_from(Duration::from(resolution).as_nanos()).ok()
}

/// Notes on properties of `environment` that affect the figures.
pub(crate) fn warnings(environment: &Environment) -> Vec<String> {
    let mut warnings = Vec::new();
    if !environment.tsc_invariant {
        warnings.push(
            "the TSC of this host is not invariant (no constant_tsc and nonstop_tsc in /proc/cpuinfo): its \
             ticks may not be time"
                .to_owned(),
        );
    }
    if let Some(governor) = &environment.governor
        && governor != "performance"
    {
        warnings.push(format!(
            "the CPU's frequency governor is {governor:?}: figures depend on the CPU's previous load; \
             \"performance\" is more stable"
        ));
    }
    warnings
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn microcode(cpuinfo: &str) -> Option<String> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(key, _)| key.trim() == "microcode")?;
    Some(value.trim().to_owned())
}

fn vulnerabilities(directory: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            Some((name, text(&file.path())?))
        })
        .collect()
}

/// A point in time by RFC 3339, in UTC, to the second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (days, in_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        in_day / 3600,
        in_day / 60 % 60,
        in_day % 60
    )
}

/// Year, month and day of the day `days` after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(at(seconds), wanted);
        }
    }

    #[test]
    fn files_are_read_and_missing_ones_left_out() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("proc/cpuinfo", "processor : 0\nmicrocode\t: 0x2007006\n");
        write(
            "sys/devices/system/cpu/vulnerabilities/meltdown",
            "Mitigation: PTI\n",
        );
        write(
            "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
            "powersave\n",
        );
        let host = HostCaps {
            system: hypernest::kvm::host::System::default(),
            kvm: hypernest::kvm::host::KvmFacts::default(),
        };
        let environment = below(root.path(), &host, &[3]);
        assert_eq!(environment.microcode.as_deref(), Some("0x2007006"));
        assert_eq!(environment.mitigations["meltdown"], "Mitigation: PTI");
        assert_eq!(environment.governor.as_deref(), Some("powersave"));
        let said = warnings(&environment);
        assert!(said[0].contains("not invariant") && said[1].contains("powersave"));
        assert_eq!(below(root.path(), &host, &[]).governor, None);
    }
}
