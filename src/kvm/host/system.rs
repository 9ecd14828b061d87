//! Facts about the host from outside KVM: files of /proc, /sys, /boot and /etc. Nothing here fails; a fact
//! that cannot be read is unknown.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Longer files are truncated: no file read here is nearly as large.
const MAX_FILE: u64 = 4 << 20;

/// The kernel's clocksource.
const CURRENT_CLOCKSOURCE: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";

/// The host, apart from KVM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct System {
    /// The kernel's release, e.g. `6.12.95+deb12-cloud-amd64`.
    pub kernel: String,
    /// The options of the kernel's build.
    pub config: KernelConfig,
    /// The CPU.
    pub cpu: Cpu,
    /// KVM's modules that are loaded or built in, with their parameters.
    pub modules: BTreeMap<String, BTreeMap<String, String>>,
    /// `/dev/kvm`, if there is one.
    pub device: Option<Device>,
    /// The clock.
    pub clock: Clock,
    /// Pools of huge pages.
    pub hugepages: Vec<HugePages>,
    /// The selected value of `transparent_hugepage/enabled`, which applies to guest RAM.
    pub thp: Option<String>,
    /// The selected value of `transparent_hugepage/shmem_enabled`, which applies to shared memory.
    pub thp_shmem: Option<String>,
}

/// Options of the kernel's build: `None` if no configuration file could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelConfig {
    /// `CONFIG_KVM_HYPERV`; also `None` on kernels before 6.8, which do not have the option.
    pub kvm_hyperv: Option<bool>,
    /// `CONFIG_KVM_INTEL`, built in or as a module.
    pub kvm_intel: Option<bool>,
    /// `CONFIG_KVM_AMD`, built in or as a module.
    pub kvm_amd: Option<bool>,
}

/// From /proc/cpuinfo and /sys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// `GenuineIntel`, `AuthenticAMD`, ...
    pub vendor: String,
    /// The marketing name.
    pub model: String,
    /// The number of CPUs online.
    pub count: usize,
    /// The CPU shows VMX.
    pub vmx: bool,
    /// The CPU shows SVM.
    pub svm: bool,
    /// This host is a virtual machine.
    pub hypervisor: bool,
    /// The TSC ticks at one rate, and does not stop.
    pub constant_tsc: bool,
    /// `on`, `off`, `forceoff`, `notsupported`, `notimplemented`.
    pub smt: Option<String>,
}

/// `/dev/kvm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Permission bits.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The group's name.
    pub group: Option<String>,
}

/// From /sys/devices/system/clocksource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clock {
    /// The clocksource in use.
    pub current: Option<String>,
    /// The available clocksources.
    pub available: Vec<String>,
}

/// A pool of huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugePages {
    /// The size of a page.
    pub size_kib: u64,
    /// The number of pages.
    pub total: u64,
    /// The number of free pages.
    pub free: u64,
}

impl System {
    /// Reads all facts, below `root` (`/` except in tests).
    pub fn read(root: &Path) -> Self {
        let kernel = text(root, "proc/sys/kernel/osrelease");
        let mut cpu = cpu(&text(root, "proc/cpuinfo"));
        cpu.smt = word(root, "sys/devices/system/cpu/smt/control");
        Self {
            config: config(root, &kernel),
            cpu,
            modules: ["kvm", "kvm_intel", "kvm_amd"]
                .into_iter()
                .filter(|name| root.join("sys/module").join(name).is_dir())
                .map(|name| {
                    let path = root.join("sys/module").join(name).join("parameters");
                    (name.to_owned(), parameters(&path))
                })
                .collect(),
            device: device(root),
            clock: Clock {
                current: word(root, CURRENT_CLOCKSOURCE),
                available: text(
                    root,
                    "sys/devices/system/clocksource/clocksource0/available_clocksource",
                )
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            },
            hugepages: hugepages(&root.join("sys/kernel/mm/hugepages")),
            thp: chosen(&text(root, "sys/kernel/mm/transparent_hugepage/enabled")),
            thp_shmem: chosen(&text(
                root,
                "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            )),
            kernel,
        }
    }

    /// Reads only the facts that planning a VM needs: the kernel's release, the CPU, whether KVM's modules
    /// use a virtual APIC, and the clock in use. The rest stays unknown. Reading everything takes several
    /// milliseconds, most of them for the kernel's configuration.
    pub fn read_for_a_vm(root: &Path) -> Self {
        let flag = |module: &str, name: &str| {
            let value = word(root, &format!("sys/module/{module}/parameters/{name}"))?;
            Some((
                module.to_owned(),
                BTreeMap::from([(name.to_owned(), value)]),
            ))
        };
        Self {
            kernel: text(root, "proc/sys/kernel/osrelease"),
            cpu: cpu(&text(root, "proc/cpuinfo")),
            modules: [("kvm_intel", "enable_apicv"), ("kvm_amd", "avic")]
                .into_iter()
                .filter_map(|(module, name)| flag(module, name))
                .collect(),
            clock: Clock {
                current: word(root, CURRENT_CLOCKSOURCE),
                available: Vec::new(),
            },
            ..Self::default()
        }
    }

    /// The TSC is usable as a clock: it ticks at one rate and does not stop, or the kernel has chosen it
    /// itself.
    pub fn tsc_is_a_clock(&self) -> bool {
        self.cpu.constant_tsc || self.clock.current.as_deref() == Some("tsc")
    }

    /// A module's parameter.
    pub fn parameter(&self, module: &str, name: &str) -> Option<&str> {
        self.modules.get(module)?.get(name).map(String::as_str)
    }

    /// A module's parameter of type bool, which reads `Y` or `N`, or (if it is an int) a number.
    pub fn flag(&self, module: &str, name: &str) -> Option<bool> {
        match self.parameter(module, name)? {
            "Y" | "y" => Some(true),
            "N" | "n" => Some(false),
            number => number.parse::<i64>().ok().map(|n| n != 0),
        }
    }
}

fn text(root: &Path, path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(root.join(path)) {
        // Text read before an error is useless, and the parsers treat it so.
        let _partial = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn word(root: &Path, path: &str) -> Option<String> {
    Some(text(root, path)).filter(|t| !t.is_empty())
}

/// The first processor's block of /proc/cpuinfo, and how many blocks there are.
fn cpu(cpuinfo: &str) -> Cpu {
    let field = |name: &str| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map_or("", |(_, value)| value.trim())
    };
    let flags: Vec<_> = field("flags").split_whitespace().collect();
    let has = |flag| flags.contains(&flag);
    Cpu {
        vendor: field("vendor_id").to_owned(),
        model: field("model name").to_owned(),
        count: cpuinfo
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
        vmx: has("vmx"),
        svm: has("svm"),
        hypervisor: has("hypervisor"),
        constant_tsc: has("constant_tsc") && has("nonstop_tsc"),
        smt: None,
    }
}

fn config(root: &Path, release: &str) -> KernelConfig {
    let file = text(root, &format!("boot/config-{release}"));
    let content = if file.is_empty() {
        let mut unpacked = Vec::new();
        if let Ok(packed) = fs::File::open(root.join("proc/config.gz")) {
            // As in `text`.
            let _partial = flate2::read::GzDecoder::new(packed)
                .take(MAX_FILE)
                .read_to_end(&mut unpacked);
        }
        String::from_utf8_lossy(&unpacked).into_owned()
    } else {
        file
    };
    KernelConfig {
        kvm_hyperv: option(&content, "CONFIG_KVM_HYPERV"),
        kvm_intel: option(&content, "CONFIG_KVM_INTEL"),
        kvm_amd: option(&content, "CONFIG_KVM_AMD"),
    }
}

/// Whether `content` enables option `name`; `None` if it does not contain it.
fn option(content: &str, name: &str) -> Option<bool> {
    content.lines().find_map(|line| {
        if let Some((key, value)) = line.split_once('=') {
            return (key == name).then_some(matches!(value, "y" | "m"));
        }
        let rest = line.strip_prefix("# ")?.strip_suffix(" is not set")?;
        (rest == name).then_some(false)
    })
}

fn parameters(path: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(path) else {
        return BTreeMap::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // Some are readable only by root.
            let value = fs::read_to_string(entry.path()).ok()?;
            Some((name, value.trim().to_owned()))
        })
        .collect()
}

fn device(root: &Path) -> Option<Device> {
    let metadata = fs::metadata(root.join("dev/kvm")).ok()?;
    Some(Device {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        group: group(&text(root, "etc/group"), metadata.gid()),
    })
}

/// The name of group `gid` in the text of /etc/group. (The C library's look-up does not work in static
/// programs.)
fn group(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        (number == gid).then(|| name.to_owned())
    })
}

fn hugepages(path: &Path) -> Vec<HugePages> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut pools: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size_kib = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let number = |file| text(&entry.path(), file).parse().unwrap_or(0);
            Some(HugePages {
                size_kib,
                total: number("nr_hugepages"),
                free: number("free_hugepages"),
            })
        })
        .collect();
    pools.sort_by_key(|pool| pool.size_kib);
    pools
}

/// The word in brackets: `always [never] within_size`.
fn chosen(line: &str) -> Option<String> {
    let (_, rest) = line.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn a_host_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "proc/sys/kernel/osrelease", b"6.12.95-amd64\n");
        write(
            root,
            "proc/cpuinfo",
            b"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU: fast\nflags\t\t: fpu vmx \
                constant_tsc nonstop_tsc\n\nprocessor\t: 1\nflags\t\t: fpu\n",
        );
        write(
            root,
            "boot/config-6.12.95-amd64",
            b"# a comment\nCONFIG_KVM_HYPERV=y\nCONFIG_KVM_INTEL=m\n# CONFIG_KVM_AMD is not set\n",
        );
        write(root, "sys/module/kvm_intel/parameters/nested", b"Y\n");
        write(root, "sys/module/kvm_intel/parameters/ept", b"0\n");
        write(root, "sys/module/kvm/version", b"");
        write(
            root,
            "sys/devices/system/clocksource/clocksource0/available_clocksource",
            b"tsc hpet \n",
        );
        write(
            root,
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            b"hpet\n",
        );
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
            b"0\n",
        );
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            b"8\n",
        );
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            b"3\n",
        );
        write(
            root,
            "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            b"always within_size [never] deny\n",
        );
        write(
            root,
            "sys/kernel/mm/transparent_hugepage/enabled",
            b"always [madvise] never\n",
        );
        let system = System::read(root);
        assert_eq!(system.kernel, "6.12.95-amd64");
        assert_eq!(system.cpu.model, "A CPU: fast");
        assert_eq!(system.cpu.count, 2);
        assert!(system.cpu.vmx && !system.cpu.svm && system.cpu.constant_tsc);
        assert!(!system.cpu.hypervisor);
        assert_eq!(
            system.config,
            KernelConfig {
                kvm_hyperv: Some(true),
                kvm_intel: Some(true),
                kvm_amd: Some(false)
            }
        );
        assert_eq!(system.flag("kvm_intel", "nested"), Some(true));
        assert_eq!(system.flag("kvm_intel", "ept"), Some(false));
        assert_eq!(system.flag("kvm_intel", "pml"), None);
        assert_eq!(system.modules["kvm"], BTreeMap::new());
        assert_eq!(system.clock.current.as_deref(), Some("hpet"));
        assert_eq!(system.clock.available, ["tsc", "hpet"]);
        assert_eq!(
            system.hugepages,
            [
                HugePages {
                    size_kib: 2048,
                    total: 8,
                    free: 3
                },
                HugePages {
                    size_kib: 1_048_576,
                    total: 0,
                    free: 0
                }
            ]
        );
        assert_eq!(system.thp.as_deref(), Some("madvise"));
        assert_eq!(system.thp_shmem.as_deref(), Some("never"));
        assert_eq!(system.device, None);

        write(root, "sys/module/kvm_intel/parameters/enable_apicv", b"Y\n");
        let quick = System::read_for_a_vm(root);
        assert_eq!(quick.kernel, system.kernel);
        assert_eq!(quick.cpu, system.cpu);
        assert_eq!(quick.clock.current, system.clock.current);
        assert_eq!(quick.flag("kvm_intel", "enable_apicv"), Some(true));
        assert_eq!(quick.flag("kvm_amd", "avic"), None);
    }

    #[test]
    fn the_tsc_is_a_clock_if_the_processor_or_the_kernel_says_so() {
        for (constant_tsc, current, is) in [
            (true, Some("hpet"), true),
            (true, None, true),
            (false, Some("tsc"), true),
            (false, Some("kvm-clock"), false),
            (false, None, false),
        ] {
            let mut system = System::default();
            system.cpu.constant_tsc = constant_tsc;
            system.clock.current = current.map(str::to_owned);
            assert_eq!(system.tsc_is_a_clock(), is, "{constant_tsc} {current:?}");
        }
    }

    #[test]
    fn a_host_without_any_file_is_unknown_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(System::read(root.path()), System::default());
    }

    #[test]
    fn a_packed_configuration_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, b"# CONFIG_KVM_HYPERV is not set\n").unwrap();
        write(root.path(), "proc/config.gz", &packed.finish().unwrap());
        assert_eq!(System::read(root.path()).config.kvm_hyperv, Some(false));
    }

    #[test]
    fn an_option_is_found_by_its_whole_name() {
        let content = "CONFIG_KVM_HYPERV_X=y\nCONFIG_KVM_HYPERV=n\n";
        assert_eq!(option(content, "CONFIG_KVM_HYPERV"), Some(false));
        assert_eq!(option(content, "CONFIG_KVM"), None);
    }

    #[test]
    fn a_group_is_found_by_its_number() {
        let groups = "root:x:0:\nnonsense\nkvm:x:104:me,you\n";
        assert_eq!(group(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group(groups, 105), None);
    }
}
