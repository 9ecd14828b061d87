//! Builds a [`VmConfig`] from the requested settings, or reports all problems.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::cpu;
use super::draft::Draft;
use super::file::ConfigFile;
use super::flags::Flags;
use super::host::HostLimits;
use super::parse::{self, BackendKind, Wrong};
use super::problem::{ConfigError, Origin, Problem};
use super::saved_devices::CONSOLE;
use super::setting::{self, Part, Scalar, Setting, Shape};
use super::topology::{MAX_CPUS, topology};
use super::{CpuConfig, Irqchip, OnTripleFault, TimeConfig, VmConfig, show};
use crate::cpuid::CpuModel;
use crate::devices::char::CharBackend;
use crate::devices::console::CONSOLE_KEY;
use crate::devices::table::{DEVICE_TYPES, DeviceConfig, DeviceRow, SLOT_KEY};
use crate::layout::{self, MachineType};
use crate::life::OnCrash;
use crate::memory::HugePageSize;
use crate::memory::MemoryConfig;
use crate::text::nearest;

/// The minimum for a kernel, beside the tables that every guest gets.
const MIN_MEMORY: u64 = 16 << 20;
const DEFAULT_MEMORY: u64 = 1 << 30;
/// A memory slot of KVM has less than 2^31 pages (`KVM_MEM_MAX_NR_PAGES`). RAM has two, below and above the
/// PCI hole, so this size always fits.
const MAX_MEMORY: u64 = 8 << 40;
/// The maximum width of a physical address on x86-64.
const MAX_PHYSICAL_BITS: u32 = 52;

/// A configuration and its warnings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The configuration.
    pub config: VmConfig,
    /// Doubtful, but possible settings.
    pub warnings: Vec<Problem>,
}

/// Builds the configuration from a file, if any, and flags, which override the file setting by setting.
///
/// # Errors
/// All problems at once.
pub fn build(
    file: Option<&ConfigFile>,
    flags: &Flags,
    host: HostLimits,
) -> Result<Checked, ConfigError> {
    let draft = file
        .map(ConfigFile::draft)
        .unwrap_or_default()
        .overlay(flags.draft());
    Build::new(&draft, host, Files::MustBeThere).finish()
}

/// The configuration in a file, on any host, whether or not its kernel exists.
pub(super) fn without_files(file: &ConfigFile) -> Result<Checked, ConfigError> {
    Build::new(&file.draft(), HostLimits::default(), Files::MayLack).finish()
}

/// Problems of the file by line; then those of the flags, in the order in which they were found.
fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|p| match &p.origin {
        Origin::File { line, column, .. } => (0, *line, *column),
        Origin::Flag(_) => (1, 0, 0),
    });
    problems
}

pub(super) struct Build<'a> {
    pub(super) draft: &'a Draft,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    host: HostLimits,
    pub(super) files: Files,
    /// The types of device that there are.
    pub(super) types: &'static [DeviceRow],
}

/// The kernel and the related files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    MustBeThere,
    MayLack,
}

impl<'a> Build<'a> {
    pub(super) fn new(draft: &'a Draft, host: HostLimits, files: Files) -> Self {
        Self {
            problems: draft.problems.clone(),
            draft,
            warnings: Vec::new(),
            host,
            files,
            types: DEVICE_TYPES,
        }
    }

    pub(super) fn finish(mut self) -> Result<Checked, ConfigError> {
        match self.config() {
            Some(config) if self.problems.is_empty() => Ok(Checked {
                config,
                warnings: self.warnings,
            }),
            _ => Err(ConfigError::Invalid(in_order(self.problems))),
        }
    }

    fn config(&mut self) -> Option<VmConfig> {
        let name = self.one("name", parse::name);
        let name = name.unwrap_or_else(|| format!("vm-{}", std::process::id()));
        let machine = self
            .one("machine", |v| parse::choice(v, &MachineType::NAMES))
            .unwrap_or(match self.files {
                Files::MustBeThere => MachineType::Pc1,
                // A VM that was saved before there were machine types.
                Files::MayLack => MachineType::Direct1,
            });
        let boot = self.boot(machine);
        let memory = self.memory(machine);
        let cpus = self.cpus();
        let pins = self.pins(cpus.as_ref().map(|cpus| cpus.count));
        let serial = self.backend("serial");
        let serial2 = self.backend("serial2");
        let debugcon = self.backend("debugcon");
        let devices = self.devices(&name);
        if let Some(memory) = &memory {
            self.releases_memory(memory, &devices);
        }
        let consoles = devices.iter().filter_map(|(origin, device)| {
            let backend = device.backend(CONSOLE_KEY)?;
            Some((CONSOLE, origin.clone(), backend))
        });
        let consoles: Vec<_> = consoles.collect();
        let has_stdio = |(_, _, backend): &(_, _, CharBackend)| *backend == CharBackend::Stdio;
        // A console on the terminal takes COM1's place there.
        let serial = serial.unwrap_or(match consoles.iter().any(has_stdio) {
            true => CharBackend::None,
            false => CharBackend::Stdio,
        });
        let serial2 = serial2.unwrap_or(CharBackend::None);
        let backends = [
            ("serial", Some(&serial)),
            ("serial2", Some(&serial2)),
            ("debugcon", debugcon.as_ref()),
        ];
        let backends = backends.into_iter().filter_map(|(key, backend)| {
            // The first may be a default.
            let origin = self.part(key).map(|part| part.origin.clone());
            Some((key, origin.unwrap_or(Origin::Flag(key)), backend?.clone()))
        });
        let backends: Vec<_> = backends.chain(consoles).collect();
        self.distinct_backends(&backends);
        let irqchip = self.one("irqchip", |v| {
            parse::choice(v, &[("kernel", Irqchip::Kernel), ("split", Irqchip::Split)])
        });
        let on_crash = self.one("on-crash", |v| {
            parse::choice(
                v,
                &[
                    ("continue", OnCrash::Continue),
                    ("pause", OnCrash::Pause),
                    ("reset", OnCrash::Reset),
                    ("stop", OnCrash::Stop),
                ],
            )
        });
        let on_triple_fault = self.one("on-triple-fault", |v| {
            let actions = [
                ("reset", OnTripleFault::Reset),
                ("stop", OnTripleFault::Stop),
            ];
            parse::choice(v, &actions)
        });
        let stop_timeout = self.one("stop-timeout", parse::stop_timeout);
        let debug_exit = self.debug_exit();
        let fw_cfg = self.one("fw-cfg", parse::boolean);
        let time = self.time();
        let dirty_ring_size = self.one("dirty-ring-size", parse::dirty_ring_size);
        let stats = self.path("stats");
        let kvm_leaves = self.one("kvm-leaves", parse::boolean);
        let hv = self.hv();
        Some(VmConfig {
            machine,
            name,
            memory: memory?,
            cpus: cpus?,
            pins,
            boot: boot?,
            serial: [serial, serial2],
            irqchip: irqchip.unwrap_or(Irqchip::Kernel),
            debug_exit,
            debugcon,
            devices: devices.into_iter().map(|(_, device)| device).collect(),
            // A VM that was saved before there was this setting has no such device.
            fw_cfg: fw_cfg.unwrap_or(self.files == Files::MustBeThere),
            dirty_ring_size,
            on_crash: on_crash.unwrap_or(OnCrash::Continue),
            on_triple_fault: on_triple_fault.unwrap_or(OnTripleFault::Reset),
            stop_timeout,
            time,
            stats,
            hv: hv?,
            kvm_leaves,
        })
    }

    fn memory(&mut self, machine: MachineType) -> Option<MemoryConfig> {
        let parts = self.parts_of("memory");
        let hugepages = parts.get("hugepages").and_then(|part| {
            self.parsed("memory", part, |v| {
                parse::choice(
                    v,
                    &[("2M", HugePageSize::Size2M), ("1G", HugePageSize::Size1G)],
                )
            })
        });
        let host = self.host_memory(&parts, hugepages);
        let Some(part) = parts.get("size") else {
            return Some(MemoryConfig {
                size: DEFAULT_MEMORY,
                hugepages,
                host,
            });
        };
        let size = self.parsed("memory", part, parse::size)?;
        let show = parse::show_size;
        let page = match hugepages {
            None => 4 << 10,
            Some(HugePageSize::Size2M) => 2 << 20,
            Some(HugePageSize::Size1G) => 1 << 30,
        };
        let bits = self.host.physical_bits.unwrap_or(MAX_PHYSICAL_BITS);
        // RAM that does not fit below the PCI hole moves up by the hole's length.
        let hole = machine.map().hole();
        let most = (1u64 << bits.clamp(32, MAX_PHYSICAL_BITS)) - hole;
        let wrong = if size < MIN_MEMORY {
            let mut what = format!("{} is too little memory", part.value);
            if (1..MIN_MEMORY >> 10).contains(&size) {
                what.push_str(&format!(" (did you mean {size}M?)"));
            }
            Some(Wrong::new(what, format!("at least {}", show(MIN_MEMORY))))
        } else if size > most {
            Some(Wrong::new(
                format!(
                    "{} is more memory than this host's CPU can address",
                    part.value
                ),
                format!("at most {}", show(most)),
            ))
        } else if size > MAX_MEMORY {
            Some(Wrong::new(
                format!("{} is more memory than KVM gives to a VM", part.value),
                format!("at most {}", show(MAX_MEMORY)),
            ))
        } else if !size.is_multiple_of(page) {
            Some(Wrong::new(
                format!(
                    "{} is not a multiple of the page size {}",
                    part.value,
                    show(page)
                ),
                "whole pages",
            ))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.push("memory", &part.origin, wrong);
            return None;
        }
        if let Some(have) = self.host.ram_and_swap.filter(|have| size > *have) {
            self.warnings.push(Problem {
                origin: part.origin.clone(),
                what: format!(
                    "{} of memory is more than this host's RAM and swap together ({} MiB)",
                    show(size),
                    have >> 20
                ),
                help: Some("if the guest uses it all, the host will kill the VM".to_owned()),
            });
        }
        Some(MemoryConfig {
            size,
            hugepages,
            host,
        })
    }

    fn cpus(&mut self) -> Option<CpuConfig> {
        let nested = self.switch("nested");
        let cpu = self.one("cpu", cpu::model);
        let before = self.problems.len();
        let parts = self.parts_of("cpus");
        let mut get = |name: &str| {
            parts
                .get(name)
                .and_then(|part| self.parsed("cpus", part, cpu_number))
        };
        let (count, sockets, cores, threads) =
            (get("count"), get("sockets"), get("cores"), get("threads"));
        if self.problems.len() > before {
            return None;
        }
        let (model, without) = cpu.unwrap_or((CpuModel::Host, Vec::new()));
        match topology(count, sockets, cores, threads) {
            Ok((count, topology)) => Some(CpuConfig {
                count,
                topology,
                model,
                without,
                nested,
            }),
            Err(wrong) => {
                let entry = self.draft.get(known("cpus")).last()?;
                self.push("cpus", &entry.origin, wrong);
                None
            }
        }
    }

    fn time(&mut self) -> TimeConfig {
        TimeConfig {
            khz: self.one("tsc-khz", parse::tsc_khz),
            on_change: self
                .one("on-tsc-change", |v| parse::choice(v, &show::POLICIES))
                .unwrap_or_default(),
            downtime: self
                .one("clock", |v| parse::choice(v, &show::DOWNTIMES))
                .unwrap_or_default(),
        }
    }

    fn debug_exit(&mut self) -> Option<u16> {
        let part = self.part("debug-exit")?;
        if let Scalar::Boolean(wanted) = part.value {
            return wanted.then_some(layout::DEBUG_EXIT_PORT);
        }
        self.parsed("debug-exit", part, |v| {
            let expected = "an I/O port from 1 to 0xffff";
            match u16::try_from(parse::number(v, expected)?) {
                Ok(port @ 1..) => Ok(port),
                _ => Err(Wrong::new(format!("{v} is out of range"), expected)),
            }
        })
    }

    fn backend(&mut self, key: &'static str) -> Option<CharBackend> {
        let part = self.part(key)?;
        self.backend_of(key, part)
    }

    /// The character back end that is the value of `part`.
    pub(super) fn backend_of(&mut self, key: &'static str, part: &Part) -> Option<CharBackend> {
        let (kind, path) = self.parsed(key, part, parse::backend)?;
        let path = || resolve(&part.origin, path.as_deref().unwrap_or_default());
        Some(match kind {
            BackendKind::None => CharBackend::None,
            BackendKind::Stdio => CharBackend::Stdio,
            BackendKind::Pty => CharBackend::Pty,
            BackendKind::File => CharBackend::File(path()),
            BackendKind::Socket => {
                let path = path();
                // sun_path of struct sockaddr_un, with its NUL.
                if path.as_os_str().len() > 107 {
                    let what = format!("{} is too long for a socket", path.display());
                    self.push(
                        key,
                        &part.origin,
                        Wrong::new(what, "a path of at most 107 bytes"),
                    );
                }
                CharBackend::Socket(path)
            }
        })
    }

    /// Reports devices that give back RAM which cannot be given back.
    fn releases_memory(&mut self, memory: &MemoryConfig, devices: &[(Origin, DeviceConfig)]) {
        let why = match memory {
            MemoryConfig {
                hugepages: Some(_), ..
            } => "hugepages keeps reserved",
            MemoryConfig { host, .. } if host.lock => "lock keeps in RAM",
            _ => return,
        };
        for (origin, device) in devices {
            if device.of.row().releases_memory {
                let (of, id) = (device.of, &device.id);
                let what = format!("the {of} {id} cannot release memory that --memory {why}");
                let expected = "other memory, or no such device";
                self.push("device", origin, Wrong::new(what, expected));
            }
        }
    }

    /// Reports backends that are used twice: neither the terminal nor a file or socket can be shared.
    fn distinct_backends(&mut self, devices: &[(&'static str, Origin, CharBackend)]) {
        for (i, (key, origin, backend)) in devices.iter().enumerate() {
            let Some((other, ..)) = devices[..i].iter().find(|(.., b)| b == backend) else {
                continue;
            };
            let what = match backend {
                CharBackend::None | CharBackend::Pty => continue,
                CharBackend::Stdio => format!("stdio is already taken by {other}"),
                CharBackend::File(path) | CharBackend::Socket(path) => {
                    format!("{} is already taken by {other}", path.display())
                }
            };
            let expected = format!("another backend, or --{other} none");
            self.push(key, origin, Wrong::new(what, expected));
        }
    }

    pub(super) fn readable(&mut self, key: &'static str, origin: &Origin, path: &Path) {
        if self.files == Files::MayLack {
            return;
        }
        if let Err(what) = parse::readable(path) {
            self.push(key, origin, Wrong::new(what, "a file that can be read"));
        }
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let part = self.part(key)?;
        self.path_of(key, part)
    }

    pub(super) fn path_of(&mut self, key: &'static str, part: &Part) -> Option<PathBuf> {
        let text = self.parsed(key, part, |v| match parse::text(v, "a path") {
            Ok(text) if text.is_empty() => Err(Wrong::new("the path is empty", "a path")),
            parsed => parsed,
        })?;
        Some(resolve(&part.origin, &text))
    }

    fn switch(&mut self, key: &'static str) -> bool {
        self.one(key, parse::boolean).unwrap_or(false)
    }

    pub(super) fn one<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Scalar) -> Result<T, Wrong>,
    ) -> Option<T> {
        let part = self.part(key)?;
        self.parsed(key, part, parse)
    }

    /// The value of a setting that has only one.
    pub(super) fn part(&self, key: &str) -> Option<&'a Part> {
        self.draft.get(known(key)).last()?.parts.first()
    }

    /// The parts of a setting that is given once.
    pub(super) fn parts_of(&mut self, key: &'static str) -> HashMap<&'static str, &'a Part> {
        match self.draft.get(known(key)).last() {
            Some(entry) => self.parts(key, &entry.parts),
            None => HashMap::new(),
        }
    }

    /// The parts by name, the leading one by the first name.
    pub(super) fn parts(
        &mut self,
        key: &'static str,
        parts: &'a [Part],
    ) -> HashMap<&'static str, &'a Part> {
        let names = match known(key).shape {
            Shape::Parts(names) | Shape::Files(names) => names,
            _ => &[],
        };
        self.named_parts(key, parts, names)
    }

    /// `parts`, where those of a device's key that may be given several times are one: the values with a
    /// space between.
    pub(super) fn joined(parts: &[Part]) -> Vec<Part> {
        let keys = || DEVICE_TYPES.iter().flat_map(|row| row.keys);
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            let repeats = keys().any(|key| key.repeats && part.name.as_deref() == Some(key.name));
            let before = joined.iter_mut().filter(|_| repeats);
            let mut before = before.filter(|before| before.name == part.name);
            match (before.next().map(|before| &mut before.value), &part.value) {
                (Some(Scalar::Text(values)), Scalar::Text(value)) => {
                    values.push(' ');
                    values.push_str(value);
                }
                _ => joined.push(part.clone()),
            }
        }
        joined
    }

    /// The same, where the names are these.
    pub(super) fn named_parts<'p>(
        &mut self,
        key: &'static str,
        parts: &'p [Part],
        names: &[&'static str],
    ) -> HashMap<&'static str, &'p Part> {
        let expected = || names.join(", ");
        let mut found = HashMap::new();
        for (i, part) in parts.iter().enumerate() {
            let name = match &part.name {
                None if i == 0 => names.first(),
                None => {
                    let text = match &part.value {
                        Scalar::Text(text) => text.as_str(),
                        _ => "",
                    };
                    let mut what = match text {
                        "" => "a part after a comma is empty: remove the comma".to_owned(),
                        name if names.contains(&name) => {
                            let wrong = Wrong::new(
                                format!("{name} has no value"),
                                format!("a value after it, as in {name}=VALUE"),
                            );
                            self.push(key, &part.origin, wrong);
                            continue;
                        }
                        _ => format!("{} has no name", part.value),
                    };
                    if let Some(meant) = nearest(text, names.iter().copied()) {
                        what.push_str(&format!(" (did you mean {meant}?)"));
                    }
                    let wrong = Wrong::new(what, expected());
                    self.push(key, &part.origin, wrong);
                    continue;
                }
                Some(name) => names.iter().find(|n| *n == name),
            };
            let Some(name) = name else {
                let name = part.name.as_deref().unwrap_or_default();
                let mut what = format!("unknown part {}", Scalar::Text(name.to_owned()));
                // QEMU's name for it.
                let qemus = (name == "addr" && names.contains(&SLOT_KEY)).then_some(SLOT_KEY);
                if let Some(meant) = qemus.or_else(|| nearest(name, names.iter().copied())) {
                    what.push_str(&format!(" (did you mean {meant}?)"));
                }
                self.push(key, &part.origin, Wrong::new(what, expected()));
                continue;
            };
            if found.insert(*name, part).is_some() {
                let wrong = Wrong::new(format!("{name} is given twice"), "each part once");
                self.push(key, &part.origin, wrong);
            }
        }
        found
    }

    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        part: &Part,
        parse: impl FnOnce(&Scalar) -> Result<T, Wrong>,
    ) -> Option<T> {
        parse(&part.value)
            .map_err(|wrong| self.push(key, &part.origin, wrong))
            .ok()
    }

    /// Adds a problem.
    pub(super) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Ends without a configuration: the problems that were found.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    pub(super) fn push(&mut self, key: &'static str, origin: &Origin, wrong: Wrong) {
        self.problems
            .push(known(key).problem(origin, wrong.what, &wrong.expected));
    }
}

/// A setting of this program; the names are literals and the test below covers all of them.
pub(super) fn known(key: &str) -> &'static Setting {
    setting::find(key).expect("the table of settings names every setting that is read")
}

/// A path in the file is relative to the file; one in a flag, to the working directory.
fn resolve(origin: &Origin, path: &str) -> PathBuf {
    match origin {
        Origin::Flag(_) => PathBuf::from(path),
        Origin::File { path: file, .. } => match file.parent() {
            Some(dir) => dir.join(path),
            None => PathBuf::from(path),
        },
    }
}

pub(super) fn command_line(value: &Scalar) -> Result<String, Wrong> {
    parse::text(value, "a command line")
}

fn cpu_number(value: &Scalar) -> Result<u32, Wrong> {
    let expected = format!("a number from 1 to {MAX_CPUS}");
    let number = parse::number(value, &expected)?;
    match u32::try_from(number) {
        Ok(number @ 1..=MAX_CPUS) => Ok(number),
        _ => Err(Wrong::new(format!("{value} is out of range"), expected)),
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
pub(super) mod tests;
