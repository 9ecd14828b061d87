use super::*;
use crate::config::SETTINGS;
use crate::cpuid::Topology;
use crate::time::{Downtime, Policy};
use crate::units::TscKhz;
use proptest::prelude::*;

pub(in crate::config) const HOST: HostLimits = HostLimits {
    physical_bits: Some(40),
    ram_and_swap: Some(8 << 30),
};

/// A directory with a kernel, an initrd and a module in it.
pub(in crate::config) fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "vmlinuz",
        "initrd.img",
        "dom0-vmlinuz",
        "disk.raw",
        "OVMF_CODE_4M.fd",
        "OVMF_VARS_4M.fd",
    ];
    for name in names {
        std::fs::write(dir.path().join(name), "content").unwrap();
    }
    dir
}

/// Builds from the text of a file and flags; paths in both are in `dir`.
fn build_in(dir: &Path, text: &str, flags: &[(&str, &str)]) -> Result<Checked, Vec<String>> {
    let file = ConfigFile::new(&dir.join("vm.toml"), text.to_owned());
    build(Some(&file), &Flags::from_pairs(flags.iter().copied()), HOST).map_err(|e| match e {
        ConfigError::Invalid(problems) => problems
            .iter()
            .map(|p| p.to_string().replace(&format!("{}/", dir.display()), ""))
            .collect(),
        other => panic!("{other}"),
    })
}

pub(in crate::config) fn with_file(text: &str) -> Result<VmConfig, Vec<String>> {
    let text = format!("{text}\n");
    let text = if text.contains("kernel =") {
        text
    } else {
        format!("{text}kernel = 'vmlinuz'\n")
    };
    build_in(files().path(), &text, &[]).map(|c| c.config)
}

pub(in crate::config) fn with_flags(flags: &[(&str, &str)]) -> Result<VmConfig, Vec<String>> {
    build_in(files().path(), "kernel = 'vmlinuz'", flags).map(|c| c.config)
}

#[test]
fn the_defaults() {
    let dir = files();
    let checked = build_in(dir.path(), "kernel = 'vmlinuz'", &[]).unwrap();
    assert_eq!(checked.warnings, []);
    let config = checked.config;
    assert_eq!(config.name, format!("vm-{}", std::process::id()));
    assert_eq!(
        config.boot.kernel().unwrap().kernel,
        dir.path().join("vmlinuz")
    );
    assert_eq!(config.memory.size, 1 << 30);
    assert_eq!(config.memory.hugepages, None);
    assert_eq!(config.cpus.count, 1);
    assert_eq!(config.cpus.model, CpuModel::Host);
    assert!(!config.cpus.nested && config.kvm_leaves.is_none());
    assert_eq!(config.serial, [CharBackend::Stdio, CharBackend::None]);
    assert_eq!(config.irqchip, Irqchip::Kernel);
    assert_eq!(config.on_crash, OnCrash::Continue);
    assert_eq!(config.on_triple_fault, OnTripleFault::Reset);
    assert_eq!(config.stop_timeout, None);
    assert_eq!(config.time, TimeConfig::default());
    assert_eq!(config.time.on_change, Policy::Auto);
    assert_eq!(config.time.downtime, Downtime::Continue);
    assert_eq!(
        (config.debug_exit, config.debugcon, config.stats),
        (None, None, None)
    );
}

#[test]
fn everything_in_a_file() {
    let dir = files();
    let text = r#"
        name = "win"
        kernel = "vmlinuz"
        initrd = "initrd.img"
        cmdline = "console=ttyS0,115200 quiet"
        cpu = "x86-64-v3"
        nested = true
        kvm-leaves = true
        serial = "pty"
        serial2 = "socket:s.sock"
        debugcon = "file:/tmp/fw.log"
        debug-exit = 0x501
        irqchip = "split"
        on-crash = "stop"
        on-triple-fault = "stop"
        stop-timeout = 90
        tsc-khz = 2400000
        on-tsc-change = "reenlighten"
        clock = "pause"
        stats = "exits.json"
        hpet = false
        [memory]
        size = "2G"
        hugepages = "1G"
        [cpus]
        count = 8
        threads = 2
        [[module]]
        path = "dom0-vmlinuz"
        args = "a,b=c"
        [[module]]
        path = "initrd.img"
    "#;
    let config = build_in(dir.path(), text, &[]).unwrap().config;
    let at = |name: &str| dir.path().join(name);
    assert_eq!(config.boot.kernel().unwrap().initrd, Some(at("initrd.img")));
    assert_eq!(
        config.boot.kernel().unwrap().cmdline,
        "console=ttyS0,115200 quiet"
    );
    assert_eq!(config.boot.kernel().unwrap().modules.len(), 2);
    assert_eq!(
        config.boot.kernel().unwrap().modules[0].path,
        at("dom0-vmlinuz")
    );
    assert_eq!(config.boot.kernel().unwrap().modules[0].cmdline, "a,b=c");
    assert_eq!(config.memory.size, 2 << 30);
    assert_eq!(config.memory.hugepages, Some(HugePageSize::Size1G));
    let topology = Topology {
        sockets: 1,
        cores: 4,
        threads: 2,
    };
    assert_eq!((config.cpus.count, config.cpus.topology), (8, topology));
    assert!(config.cpus.nested && config.kvm_leaves == Some(true));
    assert_eq!(config.cpus.model, CpuModel::X86_64V3);
    assert_eq!(
        config.serial,
        [CharBackend::Pty, CharBackend::Socket(at("s.sock"))]
    );
    assert_eq!(
        config.debugcon,
        Some(CharBackend::File("/tmp/fw.log".into()))
    );
    assert_eq!(config.debug_exit, Some(0x501));
    assert_eq!(config.irqchip, Irqchip::Split);
    assert_eq!(config.on_crash, OnCrash::Stop);
    assert_eq!(config.on_triple_fault, OnTripleFault::Stop);
    assert_eq!(config.stop_timeout, Some(90));
    let time = TimeConfig {
        khz: Some(TscKhz(2_400_000)),
        on_change: Policy::Reenlighten,
        downtime: Downtime::Pause,
    };
    assert_eq!(config.time, time);
    assert_eq!(config.stats, Some(at("exits.json")));
}

#[test]
fn flags_win_over_the_file_setting_by_setting() {
    let dir = files();
    let text = "kernel = 'vmlinuz'\nmemory = '2G,hugepages=2M'\ncpus = 2\nnested = true\n\
                module = ['initrd.img']\nserial = 'pty'";
    let module = format!("{},args=x", dir.path().join("dom0-vmlinuz").display());
    let flags = [("memory", "3G"), ("nested", "false"), ("module", &module)];
    let config = build_in(dir.path(), text, &flags).unwrap().config;
    assert_eq!(config.memory.size, 3 << 30);
    assert_eq!(config.memory.hugepages, None);
    assert_eq!(config.cpus.count, 2);
    assert!(!config.cpus.nested);
    assert_eq!(config.boot.kernel().unwrap().modules.len(), 1);
    assert_eq!(config.boot.kernel().unwrap().modules[0].cmdline, "x");
    assert_eq!(config.serial[0], CharBackend::Pty);
}

#[test]
fn three_mistakes_in_a_file_are_three_reports_with_their_places() {
    let problems = with_file(
        "kernel = 'vmlinuz'\n\
         memroy = '2G'\n\
         cpus = 'four'\n\
         \n\
         [module]\n\
         path = true\n",
    )
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "vm.toml:2:1: unknown key \"memroy\"\n      did you mean `memory`?",
            "vm.toml:3:8: cpus: \"four\" is not a number\n      \
             expected a number from 1 to 255; \
             for example: cpus = { count = 4, sockets = 1, cores = 2, threads = 2 }",
            "vm.toml:6:1: module: true is not a path\n      \
             expected a path, as a string; \
             for example: module = [{ path = \"dom0-vmlinuz\", args = \"console=hvc0\" }]",
        ]
    );
}

#[test]
fn syntax_errors_do_not_hide_other_mistakes() {
    let problems =
        with_file("kernel = 'vmlinuz'\nmemory = = 3\ncpus = 0\nname = 'a\n").unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .map(|p| p.split(':').nth(1).unwrap())
        .collect();
    for line in ["2", "3", "4"] {
        assert!(places.contains(&line), "{line}: {problems:#?}");
    }
}

#[test]
fn mistakes_in_file_and_flags_come_together() {
    let problems = build_in(
        files().path(),
        "kernel = 'nowhere'\nirqchip = 'splt'",
        &[("cpus", "0"), ("memory", "512")],
    )
    .unwrap_err();
    let starts = [
        "vm.toml:1:10: kernel: cannot read nowhere: No such file or directory",
        "vm.toml:2:11: irqchip: \"splt\" is unknown (did you mean split?)",
        "--memory: \"512\" is too little memory (did you mean 512M?)",
        "--cpus: \"0\" is out of range",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}");
    }
}

#[test]
fn every_refusal() {
    for (key, value, says) in [
        ("name", "a/b", "cannot name a VM"),
        ("hv", "hv-tiem", "did you mean `hv-time`?"),
        ("hv", "", "empty"),
        ("kernel", "", "the path is empty"),
        ("initrd", "/nonexistent", "No such file or directory"),
        ("cmdline", "a\0b", "NUL"),
        ("module", "/nonexistent,args=x", "No such file or directory"),
        ("memory", "0", "too little memory"),
        ("memory", "15M", "too little memory"),
        (
            "memory",
            "2000T",
            "more memory than this host's CPU can address",
        ),
        ("memory", "16777217", "not a multiple of the page size 4K"),
        (
            "memory",
            "1025M,hugepages=2M",
            "not a multiple of the page size 2M",
        ),
        ("memory", "2G,hugepages=4K", "is unknown"),
        ("memory", "2G,hugepage=2M", "did you mean hugepages?"),
        ("memory", "2G,3G", "has no name"),
        ("memory", "2G,size=3G", "size is given twice"),
        ("memory", "2G,preallocc", "did you mean prealloc?"),
        ("memory", "2G,lock=maybe", "neither true nor false"),
        ("memory", "2G,numa=64", "no NUMA node from 0 to 63"),
        (
            "memory",
            "2G,hugepages=2M,mergeable",
            "merges no reserved huge pages",
        ),
        ("pin", "0-", "no CPU from 0 to 8191"),
        ("pin", "1=0", "there is no vCPU 1: the VM has 1"),
        ("cpus", "0", "out of range"),
        ("cpus", "256", "out of range"),
        ("cpus", "-1", "not a number"),
        ("cpus", "4,sockets=3", "4 CPUs cannot be 3 sockets"),
        (
            "cpus",
            "4,sockets=1,cores=1,threads=1",
            "1 sockets x 1 cores x 1 threads",
        ),
        ("cpus", "sockets=16,cores=16", "makes 256 CPUs"),
        ("cpu", "x86-64-v5", "is unknown"),
        ("nested", "maybe", "neither true nor false"),
        ("serial", "stdoi", "did you mean stdio?"),
        ("serial2", "stdio", "stdio is already taken by serial"),
        ("debugcon", "stdio", "stdio is already taken by serial"),
        (
            "serial2",
            &format!("socket:{}", "x".repeat(108)),
            "too long for a socket",
        ),
        ("debug-exit", "65536", "out of range"),
        ("debug-exit", "0", "out of range"),
        ("irqchip", "off", "is unknown"),
        ("on-crash", "explode", "is unknown"),
        ("on-triple-fault", "rest", "did you mean reset?"),
        ("stop-timeout", "soon", "is not a number"),
        ("stop-timeout", "86401", "is out of range"),
        ("on-tsc-change", "scael", "did you mean scale?"),
        ("clock", "stop", "is unknown"),
        ("tsc-khz", "2400", "did you mean 2400000?"),
        ("tsc-khz", "99", "is out of range"),
        ("tsc-khz", "2147483647", "is out of range"),
        ("tsc-khz", "fast", "is not a number"),
        ("stats", "", "the path is empty"),
    ] {
        let problems = with_flags(&[(key, value)]).expect_err(value);
        assert_eq!(problems.len(), 1, "{key} {value}: {problems:#?}");
        assert!(problems[0].contains(says), "{key} {value}: {}", problems[0]);
        assert!(problems[0].contains("for example: --"), "{}", problems[0]);
    }
}

#[test]
fn a_missing_kernel_is_said_once() {
    let only = |text: &str| build_in(files().path(), text, &[]).unwrap_err();
    assert!(only("")[0].starts_with("--kernel: no kernel is given"));
    assert_eq!(only("kernal = 'vmlinuz'").len(), 1);
    assert_eq!(only("kernel = []").len(), 1);
    assert_eq!(only("flavour = 1").len(), 2);
}

#[test]
fn enlightenments() {
    let hv = |text: &str| with_file(text).map(|c| c.hv.to_string());
    assert_eq!(hv("").as_deref(), Ok("windows"));
    assert_eq!(hv("nested = true").as_deref(), Ok("nested"));
    assert_eq!(
        hv("nested = true\nhv = '-evmcs'").as_deref(),
        Ok("nested,-hv-evmcs")
    );
    assert_eq!(hv("nested = true\nhv = []").as_deref(), Ok("nested"));
    assert_eq!(
        hv("hv = ['time,relaxed', 'vpindex']").as_deref(),
        Ok("hv-relaxed,hv-vpindex,hv-time")
    );
    let flags = [("hv", "none"), ("hv", "hv-time")];
    assert_eq!(with_flags(&flags).unwrap().hv.to_string(), "none,hv-time");
    let problems = with_file("hv = [\n 'tiem',\n 'relaxed',\n '-relaxed', 3]").unwrap_err();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(
        problems[0].starts_with("vm.toml:2:2: hv: `tiem`"),
        "{}",
        problems[0]
    );
    assert!(
        problems[1].starts_with("vm.toml:4:2: hv: hv-relaxed is named twice"),
        "{}",
        problems[1]
    );
    assert!(
        problems[2].starts_with("vm.toml:4:14: hv: 3 is not a list of names"),
        "{}",
        problems[2]
    );
}

#[test]
fn two_devices_cannot_share_a_file() {
    let problems = with_flags(&[("serial", "file:a"), ("debugcon", "file:a")]).unwrap_err();
    assert!(problems[0].contains("a is already taken by serial"));
    assert!(with_flags(&[("serial", "pty"), ("serial2", "pty")]).is_ok());
    assert!(with_flags(&[("serial", "none"), ("serial2", "stdio")]).is_ok());
    for (flags, taken) in [
        (
            &[("console", "file:a"), ("console", "file:a")][..],
            "a is already taken by console",
        ),
        (
            &[("serial2", "socket:a"), ("console", "socket:a,name=x")],
            "taken by serial2",
        ),
        (
            &[("serial", "stdio"), ("console", "stdio")],
            "stdio is already taken by serial",
        ),
    ] {
        let problems = with_flags(flags).unwrap_err();
        assert!(
            problems.len() == 1 && problems[0].contains(taken),
            "{problems:?}"
        );
    }
}

#[test]
fn a_console_on_the_terminal_takes_com1s_place() {
    let config = with_flags(&[("console", "pty"), ("console", "stdio,name=agent.0")]).unwrap();
    assert_eq!(config.serial[0], CharBackend::None);
    let [first, second] = config.devices.as_slice() else {
        panic!("{:?}", config.devices);
    };
    assert_eq!(first.backend("console"), Some(CharBackend::Pty));
    assert_eq!(
        (first.text("name"), second.text("name")),
        (None, Some("agent.0"))
    );
    let config = with_flags(&[("console", "socket:s")]).unwrap();
    assert_eq!(config.serial[0], CharBackend::Stdio);
    for (console, problem) in [
        ("stdoi", "is no backend (did you mean stdio?)"),
        ("pty,name=a/b", "cannot name a device's name"),
        ("socket:", "lacks a path"),
        ("pty,nme=x", "did you mean name?"),
    ] {
        let problems = with_flags(&[("console", console)]).unwrap_err();
        assert!(problems[0].contains(problem), "{problems:?}");
    }
}

#[test]
fn a_balloon_over_memory_that_stays_is_refused() {
    let balloon = ("device", "virtio-balloon,id=b");
    assert!(with_flags(&[("memory", "1G,prealloc,mergeable"), balloon]).is_ok());
    for (memory, why) in [
        ("1G,hugepages=2M", "--memory hugepages"),
        ("1G,lock", "--memory lock"),
    ] {
        let problems = with_flags(&[("memory", memory), balloon]).unwrap_err();
        let says = problems.len() == 1 && problems[0].contains("the virtio-balloon b cannot");
        assert!(says && problems[0].contains(why), "{problems:?}");
        assert!(with_flags(&[("memory", memory), ("device", "virtio-rng")]).is_ok());
    }
}

#[test]
fn topologies() {
    for (given, expected) in [
        ("4", Ok((4, 1, 4, 1))),
        ("4,sockets=2", Ok((4, 2, 2, 1))),
        ("4,cores=2", Ok((4, 2, 2, 1))),
        ("4,threads=2", Ok((4, 1, 2, 2))),
        ("8,sockets=2,cores=2", Ok((8, 2, 2, 2))),
        ("8,cores=2,threads=2", Ok((8, 2, 2, 2))),
        ("8,sockets=2,threads=2", Ok((8, 2, 2, 2))),
        ("sockets=2,cores=3,threads=2", Ok((12, 2, 3, 2))),
        ("255", Ok((255, 1, 255, 1))),
        ("6,sockets=4", Err(())),
        ("2,cores=4", Err(())),
        ("8,sockets=2,cores=2,threads=1", Err(())),
        ("sockets=255,cores=255,threads=255", Err(())),
    ] {
        let got = with_flags(&[("cpus", given)])
            .map(|c| {
                let t = c.cpus.topology;
                (c.cpus.count, t.sockets, t.cores, t.threads)
            })
            .map_err(|_| ());
        assert_eq!(got, expected, "{given}");
    }
}

#[test]
fn more_memory_than_the_host_has_is_only_a_warning() {
    let dir = files();
    let checked = build_in(dir.path(), "kernel = 'vmlinuz'\nmemory = '16G'", &[]).unwrap();
    assert_eq!(checked.warnings.len(), 1);
    assert!(checked.warnings[0].to_string().contains("16G of memory"));
}

#[test]
fn the_debug_exit_port_may_be_left_out() {
    assert_eq!(
        with_flags(&[("debug-exit", "")]).unwrap().debug_exit,
        Some(0xf4)
    );
    assert_eq!(
        with_file("debug-exit = true").unwrap().debug_exit,
        Some(0xf4)
    );
    assert_eq!(with_file("debug-exit = false").unwrap().debug_exit, None);
}

/// Each setting's example is accepted, as a flag and in the file; so each setting is read.
#[test]
fn the_examples_are_right() {
    let dir = files();
    for setting in SETTINGS {
        let boots = match setting.key {
            "kernel" | "firmware" => "",
            "firmware-vars" => "firmware = 'OVMF_CODE_4M.fd'\n",
            _ => "kernel = 'vmlinuz'\n",
        };
        let text = format!("{boots}{}", setting.file_example);
        if let Err(problems) = build_in(dir.path(), &text, &[]) {
            panic!("{text}: {problems:#?}");
        }
        let value = setting
            .flag_example
            .trim_start_matches([' ', '='])
            .trim_matches('\'');
        let value = match setting.key {
            "kernel" | "firmware" | "initrd" | "module" | "disk" => {
                format!("{}/{value}", dir.path().display())
            }
            _ => value.to_owned(),
        };
        if let Err(problems) = build_in(dir.path(), boots, &[(setting.key, &value)]) {
            panic!("--{} {value}: {problems:#?}", setting.key);
        }
    }
}

#[test]
fn a_shown_configuration_gives_itself_again() {
    let dir = files();
    let minimal = "kernel = 'vmlinuz'";
    let full = "kernel = 'vmlinuz'\ninitrd = 'initrd.img'\nname = 'x'\ncmdline = 'a=\"b\"'\n\
                module = ['dom0-vmlinuz,args=a,b=c', 'initrd.img']\nmemory = '2050M,hugepages=2M'\n\
                cpus = '8,threads=2'\ncpu = 'x86-64-v4'\nnested = true\nserial = 'file:f'\n\
                serial2 = 'socket:s'\ndebugcon = 'stdio'\ndebug-exit = 9\ndevice = ['virtio-rng,slot=9', \
                'virtio-rng']\nirqchip = 'split'\n\
                on-crash = 'reset'\non-triple-fault = 'stop'\nstop-timeout = 0\nclock = \
                'pause'\non-tsc-change = 'refuse'\ntsc-khz = 3000000\nstats = 's'\nkvm-leaves = true\nhv = \
                'all,-evmcs,spinlocks=0xfff'";
    let firmware = "firmware = 'OVMF_CODE_4M.fd'\nfirmware-vars = 'own'";
    for text in [minimal, full, firmware] {
        let config = build_in(dir.path(), text, &[]).unwrap().config;
        let shown = config.to_toml();
        let again = build_in(dir.path(), &shown, &[]).unwrap().config;
        assert_eq!(config, again, "{shown}");
    }
}

#[test]
fn a_file_that_is_no_configuration() {
    let dir = files();
    let path = dir.path().join("x");
    std::fs::write(&path, [b'a', 0xff]).unwrap();
    let text = ConfigFile::read(&path).unwrap_err().to_string();
    assert!(text.contains("not UTF-8 text (byte 1"), "{text}");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let text = ConfigFile::read(&path).unwrap_err().to_string();
    assert!(text.contains("larger than"), "{text}");
    assert!(matches!(
        ConfigFile::read(Path::new("/nonexistent")),
        Err(ConfigError::Unreadable { .. })
    ));
}

/// Text similar enough to settings to reach deep code.
fn texts() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
    let value = prop_oneof![
        "[ -~]{0,12}",
        ".{0,12}",
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| format!("\"{n}G,hugepages=1G\"")),
        "[0-9]{1,12},(sockets|cores|threads)=[0-9]{1,12}".prop_map(|t| format!("'{t}'")),
        "\\{ (path|size|count) = [0-9a-z'\"]{0,6} \\}",
        "\\[\\[*[0-9, ]{0,6}\\]*",
    ];
    let line = (proptest::sample::select(keys), value).prop_map(|(k, v)| format!("{k} = {v}\n"));
    proptest::collection::vec(prop_oneof![4 => line, 1 => ".{0,30}\n"], 0..8)
        .prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn no_file_panics(text in texts()) {
        let file = ConfigFile::new(Path::new("vm.toml"), text);
        let _ = build(Some(&file), &Flags::default(), HOST).map_err(|e| e.to_string());
    }

    #[test]
    fn no_bytes_panic(text in ".{0,200}") {
        let file = ConfigFile::new(Path::new("vm.toml"), text);
        let _ = build(Some(&file), &Flags::default(), HOST).map_err(|e| e.to_string());
    }

    #[test]
    fn no_flag_panics(
        key in proptest::sample::select(SETTINGS.iter().map(|s| s.key).collect::<Vec<_>>()),
        value in prop_oneof!["[ \
            -~]{0,20}", ".{0,20}", "[0-9]{1,20}[KMGT]?", "[0-9]{1,11}(,cores=[0-9]{1,11})?"],
    ) {
        let flags = Flags::from_pairs([(key, value.as_str())]);
        let _ = build(None, &flags, HOST).map_err(|e| e.to_string());
    }
}

#[test]
fn machine_types_are_named_and_limit_ram() {
    for (machine, problem) in [
        ("pc1", "did you mean pc-1?"),
        ("direct", "did you mean direct-1?"),
        ("q35", "expected pc-1 or direct-1"),
    ] {
        let problems = with_flags(&[("machine", machine)]).unwrap_err();
        assert!(
            problems.len() == 1 && problems[0].contains(problem),
            "{problems:#?}"
        );
    }
    for (machine, most) in [("pc-1", "1022G"), ("direct-1", "1023G")] {
        let flags = |memory| [("machine", machine), ("memory", memory)];
        assert_eq!(
            with_flags(&flags(most)).map(|c| c.machine.name()),
            Ok(machine)
        );
        let problems = with_flags(&flags("1024G")).unwrap_err();
        assert!(
            problems[0].contains(&format!("at most {most}")),
            "{problems:#?}"
        );
    }
}

#[test]
fn firmware_and_its_variables() {
    let dir = files();
    let build = |text: &str| build_in(dir.path(), text, &[]);
    let at = |name: &str| Some(dir.path().join(name));
    let config = build("firmware = 'OVMF_CODE_4M.fd'\nfirmware-vars = 'own'").unwrap();
    let boot = config.config.boot.firmware().unwrap().clone();
    assert_eq!(Some(boot.code), at("OVMF_CODE_4M.fd"));
    assert_eq!(
        (boot.template, boot.vars),
        (at("OVMF_VARS_4M.fd"), at("own"))
    );
    let config = build("firmware = { path = 'vmlinuz', template = 'initrd.img' }").unwrap();
    let boot = config.config.boot.firmware().unwrap().clone();
    assert_eq!((boot.template, boot.vars), (at("initrd.img"), None));
    // What is saved needs no template, and has no other variables than the VM's.
    let saved = config.config.to_saved();
    let saved = VmConfig::from_saved(saved).unwrap();
    assert_eq!(saved.boot.firmware().unwrap().template, None);

    for (text, expected) in [
        ("", &["no kernel is given"][..]),
        (
            "firmware-vars = 'own'\nkernel = 'vmlinuz'",
            &["variables belong to firmware, and none is given"],
        ),
        (
            "firmware = 'vmlinuz'\nfirmware-vars = 'own'",
            &["template=FILE"],
        ),
        ("firmware = 'gone'", &["gone"]),
        (
            "firmware = { template = 'initrd.img' }",
            &["no firmware is named"],
        ),
        (
            "firmware = 'OVMF_CODE_4M.fd'\nmachine = 'direct-1'\nkernel = 'vmlinuz'\nfw-cfg = false",
            &[
                "direct-1 has no firmware",
                "a kernel and firmware cannot be combined",
                "firmware needs fw_cfg",
            ],
        ),
    ] {
        let problems = build(text).unwrap_err();
        assert_eq!(problems.len(), expected.len(), "{text}: {problems:#?}");
        for part in expected {
            let found = problems.iter().any(|problem| problem.contains(part));
            assert!(found, "{text}: {problems:#?}");
        }
    }
}
