//! The command line of `l2-exit`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use hypernest::hyperv::HostHv;
use hypernest::kvm::host::HostCaps;
use hypernest_lab::plan::LAB_DIR_VARIABLE;
use hypernest_nested::l2exit::{Kind, Mode, Touch};

use super::choice::Choice;
use super::manual;
use super::micro::{Rival, Runner, Wish, threads};
use super::probed::Labelled;
use crate::kvm_module::Source;
use crate::qemu::{Qemu, QemuError};
use crate::report::{L1, Vmm};
use crate::usage;

/// Time exits of an L2 from inside, with L1 in several modes
///
/// The exit code is 0 if all measurements succeeded, 1 if one failed or the run was interrupted, 2 if the
/// command line is wrong, 3 if this host supports none of them.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The L1: micro, linux, image=FILE (your kernel, whose guest runs l2probe), or manual (results of
    /// l2probe)
    #[arg(
        long,
        value_name = "L1",
        value_delimiter = ',',
        default_value = "micro"
    )]
    pub(super) l1: Vec<Choice>,
    /// The modes in which L1 runs L2; the host must support each one named [default: all supported]
    #[arg(long, value_name = "MODE", value_delimiter = ',', value_parser = modes())]
    pub(super) modes: Vec<Mode>,
    /// With --l1 manual: a result of l2probe and the mode that its L1 was started for, as evmcs=FILE, or
    /// qemu:evmcs=FILE where QEMU ran it
    #[arg(long, value_name = "MODE=FILE", value_parser = manual::labelled)]
    pub(super) probe: Vec<Labelled>,
    /// Where to write the results [default: l2-exit, or nowhere with --json]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Show each answer with all its ratios and its rule
    #[arg(long, conflicts_with = "json")]
    pub(super) explain: bool,
    /// Only print what would be measured
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Samples per round [default: 1000 with --l1 micro, 200 with --l1 linux]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    samples: Option<u32>,
    /// Exits before the first sample of a round
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(super) warmup: u32,
    /// Host CPUs to which vCPUs are pinned, the boot vCPU's first; or none [default: the last usable ones]
    #[arg(long, value_name = "CPUS", value_parser = pins)]
    pin: Option<Pins>,
    /// Directory of the running kernel's kvm-intel.ko, to reload it [default: modprobe finds it]
    #[arg(long, value_name = "DIR")]
    host_modules: Option<PathBuf>,
    #[command(flatten)]
    micro: Micro,
    #[command(flatten)]
    pub(super) linux: Linux,
}

/// For `--l1 micro`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "With --l1 micro")]
struct Micro {
    /// The VMM that runs L1; with both they alternate
    #[arg(
        long,
        value_name = "VMM",
        value_delimiter = ',',
        value_enum,
        default_value = "hypernest"
    )]
    vmm: Vec<Vmm>,
    /// QEMU: its program, or a directory with its bin/, lib/ and share/ [default: qemu-system-x86_64 on the
    /// PATH]
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// The kinds of exits [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
    kinds: Vec<Kind>,
    /// L1's VMCS accesses at each exit: minimal, kvm-like, hyperv-like, or reads=N,writes=M; several are
    /// measured in sequence
    #[arg(long, value_name = "TOUCH", default_value = "kvm-like")]
    touch: Vec<Touches>,
    /// L1's vCPUs [default: as many as a kind needs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: Option<u32>,
    /// The required precision in percent: modes are repeated until no 95 % interval of a median is wider
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent)]
    precision: f64,
    /// Maximum number of repetitions
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
    )]
    max_cycles: u32,
    /// The time in seconds after which no further repetition starts
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    time_limit: u64,
    /// Timeout in seconds: a VM in which L1 makes no progress for this long is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    stuck_after: f64,
    /// Do not count host exits by reason, which takes a separate run for each mode
    #[arg(long)]
    no_reasons: bool,
}

/// For `--l1 linux` and `--l1 image`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "With --l1 linux or image")]
pub(super) struct Linux {
    /// A directory with vmlinux and, in modules/, kvm.ko, irqbypass.ko and kvm-intel.ko or kvm-amd.ko
    /// [default: linux-6.12 in $HYPERNEST_LAB_DIR]
    #[arg(long, value_name = "DIR")]
    pub(super) kernel: Option<PathBuf>,
    /// Rounds for each mode, each with a new L2
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=1000),
    )]
    pub(super) rounds: u32,
    /// With --l1 image: its initramfs
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,
    /// L1's memory
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(super) memory: String,
    /// More parameters for L1's command line; with --l1 image, the whole command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(super) append: String,
    /// A static hypernest-bench to run in L1 [default: this program]
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/proc/self/exe",
        hide_default_value = true
    )]
    pub(super) agent: PathBuf,
    /// Timeout for one boot of L1 with all its rounds, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(super) timeout: u64,
}

impl Linux {
    /// The directory of the kernel: as given, or the lab's.
    pub(super) fn kernel(&self) -> Option<PathBuf> {
        let of_lab = || Some(PathBuf::from(std::env::var_os(LAB_DIR_VARIABLE)?).join("linux-6.12"));
        self.kernel.clone().or_else(of_lab)
    }
}

impl Args {
    /// The mistakes that are visible without a look at the host.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let has = |l1: L1| self.l1.iter().any(|choice| choice.l1() == l1);
        if has(L1::Manual) && self.l1.len() > 1 {
            mistakes.push(
                "--l1: manual merges results measured elsewhere, and cannot be combined with other L1s"
                    .to_owned(),
            );
        }
        if !has(L1::Manual) && !self.probe.is_empty() {
            let why = "--probe: it names results for --l1 manual: give that, or leave it out";
            mistakes.push(why.to_owned());
        }
        if has(L1::Micro) && self.asks_for_qemu() {
            let qemu = Qemu::find(self.micro.qemu.as_deref());
            let missing = qemu.err().map(|error| format!("--vmm qemu: {error}"));
            mistakes.extend(missing.map(|missing| format!("{missing}; --qemu PATH names it")));
        }
        if has(L1::Linux) {
            match self.linux.kernel() {
                None => mistakes.push(usage::no_kernel_directory("--l1 linux")),
                Some(directory) => mistakes.extend(
                    [directory.join("vmlinux"), directory.join("modules")]
                        .into_iter()
                        .filter(|path| !path.exists())
                        .map(|path| format!("--kernel: there is no {}", path.display())),
                ),
            }
        }
        for choice in &self.l1 {
            let Choice::Image(image) = choice else {
                continue;
            };
            let files = [
                ("--l1 image", Some(image)),
                ("--initrd", self.linux.initrd.as_ref()),
            ];
            let missing = files.into_iter().filter_map(|(flag, file)| {
                let file = file.filter(|file| !file.is_file())?;
                Some(format!("{flag}: there is no file {}", file.display()))
            });
            mistakes.extend(missing);
        }
        if has(L1::Linux) || has(L1::Image) {
            mistakes.extend(usage::of_vm(&[("memory", &self.linux.memory)]));
        }
        mistakes
    }

    /// The number of samples for `--l1 linux`.
    pub(super) fn linux_samples(&self) -> u32 {
        self.samples.unwrap_or(200)
    }

    /// The plan for `--l1 micro` in `modes`.
    pub(super) fn wish(&self, modes: Vec<Mode>, vmms: Vec<Runner>, pins: &[u32]) -> Wish {
        let micro = &self.micro;
        let mut kinds = micro.kinds.clone();
        if kinds.is_empty() {
            kinds = Kind::ALL.to_vec();
        }
        // In an order that does not depend on the order on the command line.
        kinds.sort();
        kinds.dedup();
        let mut touches = Vec::new();
        for &touch in micro.touch.iter().flat_map(|touches| &touches.0) {
            if !touches.contains(&touch) {
                touches.push(touch);
            }
        }
        Wish {
            modes,
            vmms,
            touches,
            kinds,
            cpus: micro.cpus,
            samples: self.samples.unwrap_or(1000),
            warmup: self.warmup,
            silence: Duration::from_secs_f64(micro.stuck_after),
            precision: micro.precision / 100.0,
            max_cycles: micro.max_cycles,
            time_limit: Duration::from_secs(micro.time_limit),
            pins: pins.to_vec(),
            reasons: !micro.no_reasons,
        }
    }

    /// Whether `--vmm` includes QEMU.
    pub(super) fn asks_for_qemu(&self) -> bool {
        self.micro.vmm.contains(&Vmm::Qemu)
    }

    /// The VMMs that run L1 with `--l1 micro` on `host`.
    pub(super) fn runners(&self, host: &HostCaps) -> Result<Vec<Runner>, QemuError> {
        let mut vmms = self.micro.vmm.clone();
        vmms.sort();
        vmms.dedup();
        let runner = |vmm| {
            Ok(match vmm {
                Vmm::Hypernest => Runner::Hypernest,
                Vmm::Qemu => Runner::Qemu(Box::new(Rival {
                    qemu: Qemu::find(self.micro.qemu.as_deref())?,
                    host: HostHv::from(host),
                })),
            })
        };
        vmms.into_iter().map(runner).collect()
    }

    /// The output directory.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.out {
            Some(out) => Some(out.as_path()),
            None if self.json => None,
            None => Some(Path::new("l2-exit")),
        }
    }

    /// The host CPUs to which vCPUs are bound.
    pub(super) fn pins(&self) -> Vec<u32> {
        match &self.pin {
            Some(pins) => pins.0.clone(),
            None => threads::choose(usize::try_from(self.micro.cpus.unwrap_or(2)).unwrap_or(1)),
        }
    }

    /// The source of the host's module.
    pub(super) fn module_source(&self) -> Source {
        let directory = self.host_modules.clone();
        directory.map_or(Source::Modprobe, Source::Directory)
    }
}

fn modes() -> impl TypedValueParser<Value = Mode> {
    let names = Mode::ALL.iter().map(|mode| mode.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

fn kinds() -> impl TypedValueParser<Value = Kind> {
    let names = Kind::ALL.iter().map(|kind| kind.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// The value of `--pin`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pins(Vec<u32>);

fn pins(text: &str) -> Result<Pins, String> {
    if text == "none" {
        return Ok(Pins(Vec::new()));
    }
    let cpus = text.split(',').map(str::parse).collect::<Result<_, _>>();
    cpus.map(Pins)
        .map_err(|_| "expected CPU numbers, as 3 or 3,5, or none".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent),
        _ => Err("expected a number of percent, as 1 or 0.5".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=1e9).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds, as 30 or 0.5".to_owned()),
    }
}

/// The value of `--touch`: several profiles, `reads=N,writes=M` being one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Touches(Vec<Touch>);

impl FromStr for Touches {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut profiles: Vec<String> = Vec::new();
        for word in text.split(',') {
            match profiles.last_mut() {
                // The second half of the previous profile.
                Some(last)
                    if (word.starts_with("writes=") && last.starts_with("reads=")
                        || word.starts_with("reads=") && last.starts_with("writes="))
                        && !last.contains(',') =>
                {
                    last.push(',');
                    last.push_str(word);
                }
                _ => profiles.push(word.to_owned()),
            }
        }
        let parse = |profile: String| {
            let parsed = profile.parse::<Touch>();
            parsed.map_err(|error| format!("{profile:?}: {error}"))
        };
        profiles
            .into_iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WRONG_USE;
    use crate::usage::Line;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn touches_are_told_apart_although_one_has_a_comma() {
        let fields = |reads, writes| Touch::Fields { reads, writes };
        for (text, wanted) in [
            ("minimal", vec![Touch::Minimal]),
            ("minimal,kvm-like", vec![Touch::Minimal, Touch::KvmLike]),
            (
                "reads=3,writes=4,hyperv-like",
                vec![fields(3, 4), Touch::HypervLike],
            ),
            ("reads=3,reads=5", vec![fields(3, 0), fields(5, 0)]),
            (
                "reads=1,writes=2,reads=3,writes=4",
                vec![fields(1, 2), fields(3, 4)],
            ),
        ] {
            assert_eq!(text.parse(), Ok(Touches(wanted)), "{text}");
        }
        let error = "kvm".parse::<Touches>().unwrap_err();
        assert!(error.contains("\"kvm\": not a touch profile"), "{error}");
    }

    #[test]
    fn modes_and_kinds_are_listed_and_the_nearest_is_named() {
        let help = Line::<Args>::command().render_long_help().to_string();
        let names = Mode::ALL.iter().map(|mode| mode.name());
        for name in names.chain(Kind::ALL.iter().map(|kind| kind.name())) {
            assert!(help.contains(name), "{name} is not in\n{help}");
        }
        for (line, nearest, last) in [
            (
                ["l2-exit", "--modes", "hv-evmcs"],
                "'evmcs'",
                "svm+direct-flush",
            ),
            (
                ["l2-exit", "--modes", "classic,evmcs-emsr"],
                "'evmcs+emsr'",
                "svm+direct-flush",
            ),
            (
                ["l2-exit", "--kinds", "cpu-id"],
                "'cpuid'",
                "flush-hypercall",
            ),
        ] {
            let error = Line::<Args>::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(WRONG_USE));
            let text = error.to_string();
            assert!(text.contains(nearest) && text.contains(last), "{text}");
        }
        let args =
            Line::<Args>::parse_from(["l2-exit", "--modes", "evmcs,svm", "--kinds", "hlt"]).args;
        assert_eq!(args.modes, [Mode::Evmcs, Mode::Svm]);
        assert_eq!(args.micro.kinds, [Kind::Hlt]);
    }

    #[test]
    fn mistakes_are_found_before_the_host_is_looked_at_and_all_at_once() {
        for (line, wanted) in [
            (
                "l2-exit --l1 linux,manual --kernel /nowhere --memory 1Q",
                &[
                    "--l1: manual",
                    "no /nowhere/vmlinux",
                    "no /nowhere/modules",
                    "--memory: ",
                ][..],
            ),
            (
                "l2-exit --l1 image=/nowhere/i --initrd /nowhere/j",
                &[
                    "--l1 image: there is no file /nowhere/i",
                    "--initrd: there is no file /nowhere/j",
                ],
            ),
            (
                "l2-exit --vmm qemu --qemu /nowhere --probe evmcs=x",
                &["--vmm qemu: /nowhere is neither", "--probe: it names"],
            ),
        ] {
            let args = Line::<Args>::parse_from(line.split_whitespace()).args;
            let error = super::super::run(&args).unwrap_err();
            assert_eq!(error.code(), WRONG_USE, "{line}");
            let text = error.to_string();
            for part in wanted {
                assert!(text.contains(part), "{line}: {part:?} is not in\n{text}");
            }
        }
    }

    #[test]
    fn pins_and_percents() {
        assert_eq!(pins("3,5"), Ok(Pins(vec![3, 5])));
        assert_eq!(pins("none"), Ok(Pins(vec![])));
        assert!(pins("a").is_err() && pins("").is_err());
        assert_eq!(percent("0.5"), Ok(0.5));
        assert!(percent("-1").is_err() && percent("NaN").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
        assert!(seconds("0").is_err() && seconds("inf").is_err());
    }
}
