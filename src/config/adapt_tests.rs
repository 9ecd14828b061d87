use super::*;
use crate::config::Flags;
use crate::config::build::tests::{HOST, files, with_file, with_flags};
use crate::devices::char::CharBackend;
use crate::layout::MachineType;
use crate::memory::MemoryConfig;

/// A VM of a file with these lines, saved and read again.
fn saved(text: &str) -> VmConfig {
    again(&with_file(text).unwrap())
}

/// `config`, saved and read again.
fn again(config: &VmConfig) -> VmConfig {
    VmConfig::from_saved(config.to_saved()).unwrap()
}

fn adapted(saved: &VmConfig, flags: &[(&str, &str)]) -> Result<Adapted, ConfigError> {
    let flags = LocalFlags(Flags::from_pairs(flags.iter().copied()));
    adapt(saved, &flags, HOST)
}

#[test]
fn a_saved_vm_is_the_same_but_for_what_is_local() {
    let saved =
        saved("debugcon = 'stdio'\nserial = 'none'\ntsc-khz = 2000000\nhv = 'windows,-runtime'");
    let local = |flags: &[_]| adapted(&saved, flags);
    let same = local(&[]).unwrap();
    assert_eq!(same.checked.config, saved);
    assert_eq!(same.host_khz, None);
    // The kernel no longer exists, and a frequency is the host's.
    let other = local(&[("name", "b"), ("serial", "pty"), ("tsc-khz", "1000000")]).unwrap();
    let mut expected = saved.clone();
    (expected.name, expected.serial[0]) = ("b".to_owned(), CharBackend::Pty);
    assert_eq!(other.checked.config, expected);
    assert_eq!(other.host_khz, Some(TscKhz(1_000_000)));
    let mut without = saved.clone();
    without.debugcon = None;
    let refused = adapted(&without, &[("debugcon", "pty")]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("debug console"), "{refused}");
}

#[test]
fn a_saved_vm_opens_nothing_on_the_host_unless_a_flag_says_so() {
    let saved = saved(
        "serial = 'file:/victim/a'\nserial2 = 'socket:/victim/b'\ndebugcon = 'pty'\nstats = '/victim/c'",
    );
    let local = |flags: &[_]| adapted(&saved, flags);
    let asked: Vec<_> = saved.endpoints().iter().map(|e| e.setting).collect();
    assert_eq!(asked, ["serial", "serial2", "debugcon", "stats"]);

    let alone = local(&[]).unwrap();
    assert_eq!(alone.checked.config.endpoints(), []);
    // The device remains: the guest has it.
    assert_eq!(alone.checked.config.debugcon, Some(CharBackend::None));
    let warnings: Vec<_> = alone
        .checked
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(
        warnings[0].starts_with("--serial: \"file:/victim/a\""),
        "{warnings:?}"
    );

    let given = local(&[("serial2", "socket:/ours"), ("stats", "ours")]).unwrap();
    let values: Vec<_> = given
        .checked
        .config
        .endpoints()
        .into_iter()
        .map(|e| e.value)
        .collect();
    assert_eq!(values, ["socket:/ours", "ours"]);
    assert_eq!(given.checked.warnings.len(), 2);
}

#[test]
fn boot_files_of_a_saved_vm_are_replaced_as_a_whole() {
    let saved = saved("initrd = '/proc/self/exe'\ncmdline = 'quiet'");
    let local = |flags: &[_]| adapted(&saved, flags);
    assert!(!local(&[]).unwrap().boot_is_local);
    let own = local(&[("kernel", "/proc/self/exe")]).unwrap();
    assert!(own.boot_is_local);
    assert_eq!(
        own.checked.config.boot.kernel().unwrap().kernel,
        Path::new("/proc/self/exe")
    );
    assert_eq!(own.checked.config.boot.kernel().unwrap().initrd, None);
    assert_eq!(own.checked.config.boot.kernel().unwrap().cmdline, "quiet");
    for key in ["initrd", "module"] {
        let refused = local(&[(key, "/proc/self/exe")]).unwrap_err().to_string();
        assert!(refused.contains("--kernel"), "{refused}");
    }
    let missing = local(&[("kernel", "/nowhere/kernel")]).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/kernel"));
}

#[test]
fn a_saved_vm_keeps_its_machine_type() {
    let pc = saved("");
    let direct = saved("machine = 'direct-1'");
    assert_eq!(pc.machine, MachineType::Pc1);
    assert_eq!(direct.machine, MachineType::Direct1);
    // Earlier versions did not save settings with a single possible value.
    let lines = direct.to_saved();
    let old: String = lines
        .lines()
        .filter(|line| !line.starts_with("machine"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(old, lines);
    assert_eq!(VmConfig::from_saved(old).unwrap(), direct);
    let dir = files();
    let kernel = dir.path().join("vmlinuz");
    for config in [pc, direct] {
        for flags in [vec![], vec![("kernel", kernel.to_str().unwrap())]] {
            let adapted = adapted(&config, &flags).unwrap();
            assert_eq!(adapted.checked.config.machine, config.machine);
        }
    }
}

#[test]
fn what_the_host_does_is_shown_and_not_saved() {
    let flags = [
        ("memory", "2G,prealloc,lock,numa=preferred:1"),
        ("cpus", "2"),
        ("pin", "4,6"),
    ];
    let config = with_flags(&flags).unwrap();
    let toml = config.to_toml();
    for line in [
        "prealloc = true",
        "lock = true",
        "numa = \"preferred:1\"",
        "pin = \"0=4,1=6\"",
    ] {
        assert!(toml.contains(line), "{toml}");
    }
    let same = with_file(
        "memory = { size = '2G', prealloc = true, lock = true, numa = 'preferred:1' }\ncpus = 2\npin = '4,6'",
    );
    let same = same.unwrap();
    assert_eq!((same.memory, &same.pins), (config.memory, &config.pins));
    let saved = again(&config);
    assert_eq!(saved.memory, MemoryConfig::of(2 << 30));
    assert!(saved.pins.is_empty());
    let adapted = |flags: &[_]| adapted(&saved, flags);
    let memory = adapted(&[("memory", "mergeable,numa=0"), ("pin", "0=1")]).unwrap();
    let memory = memory.checked.config.memory;
    assert_eq!(memory.size, 2 << 30);
    assert!(memory.host.mergeable && memory.host.numa.is_some() && !memory.host.lock);
    for guests in ["4G,lock", "hugepages=2M", "size=1G"] {
        let refused = adapted(&[("memory", guests)]).unwrap_err().to_string();
        assert!(refused.contains("of a saved VM's memory stay"), "{refused}");
    }
    let local = |memory| LocalFlags::of(Flags::from_pairs([("memory", memory)]));
    assert_eq!(local("2G,lock"), Err(vec!["memory"]));
    assert!(local("lock").is_ok());
}

/// Two disks, saved, and this host's images of `--disk`: the images and caches, or the problems.
fn disks(given: &[&str]) -> Result<Vec<String>, String> {
    let dir = files();
    let [a, b] = ["initrd.img", "disk.raw"].map(|name| dir.path().join(name));
    let config = with_file(&format!(
        "disk = ['{},id=root,cache=none,serial=S', '{},readonly']\ndevice = 'virtio-rng'",
        a.display(),
        b.display()
    ));
    let saved = again(&config.unwrap());
    let given: Vec<_> = given
        .iter()
        .map(|disk| format!("{}/{disk}", dir.path().display()))
        .collect();
    let flags: Vec<_> = given.iter().map(|disk| ("disk", disk.as_str())).collect();
    let adapted = adapted(&saved, &flags).map_err(|e| e.to_string())?;
    assert_eq!(adapted.checked.warnings, []);
    let disks = adapted
        .checked
        .config
        .devices
        .into_iter()
        .filter_map(|device| {
            let file = Path::new(device.text("file")?).file_name()?.to_owned();
            let cache = device.text("cache").unwrap_or("-").to_owned();
            Some(format!("{} {} {cache}", device.id, file.display()))
        });
    Ok(disks.collect())
}

#[test]
fn the_disks_of_a_saved_vm_get_this_hosts_images() {
    let both = ["root vmlinuz none", "virtio-blk0 disk.raw -"];
    assert_eq!(disks(&["vmlinuz", "disk.raw"]).unwrap(), both);
    assert_eq!(
        disks(&["disk.raw,id=virtio-blk0", "vmlinuz"]).unwrap(),
        both
    );
    let other_cache = disks(&["vmlinuz,cache=writethrough", "disk.raw,on-error=pause"]);
    assert_eq!(other_cache.unwrap()[0], "root vmlinuz writethrough");
    for (given, problems) in [
        (
            &[][..],
            &[
                "the disk root of the saved VM has no image here",
                "--disk FILE,id=root",
                "the disk virtio-blk0",
            ][..],
        ),
        (
            &["vmlinuz"],
            &["the disk virtio-blk0 of the saved VM has no image"],
        ),
        (
            &["vmlinuz", "disk.raw", "vmlinuz"],
            &["one more than disks", "the disks root, virtio-blk0"],
        ),
        (&["vmlinuz,id=boot", "disk.raw"], &["there is no disk boot"]),
        (&["vmlinuz,id=root", "disk.raw,id=root"], &["given twice"]),
        (&["vmlinuz,readonly", "disk.raw"], &["readonly"]),
        (&["missing", "disk.raw"], &["there is no", "missing"]),
    ] {
        let refused = disks(given).unwrap_err();
        for problem in problems {
            assert!(refused.contains(problem), "{given:?}: {refused}");
        }
    }
}

/// The images of a saved VM are on its host.
#[test]
fn what_a_saved_vm_names_need_not_be_here() {
    let dir = files();
    let image = dir.path().join("disk.raw");
    let config = with_file(&format!("disk = '{}'", image.display())).unwrap();
    std::fs::remove_file(&image).unwrap();
    let saved = again(&config);
    let here = dir.path().join("initrd.img").display().to_string();
    let adapted = adapted(&saved, &[("disk", &here)]).unwrap();
    let disk = &adapted.checked.config.devices[0];
    assert_eq!(disk.text("file"), Some(here.as_str()));
}

#[test]
fn a_vm_without_disks_has_none_to_give() {
    let refused = adapted(&saved("hv = 'none'"), &[("disk", "disk.raw")]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the saved VM has no disk"), "{refused}");
}

#[test]
fn the_cards_of_a_saved_vm_get_this_hosts_networks() {
    let saved = saved(
        "net = ['tap,ifname=tap0,id=lan,mac=52:54:00:00:00:01', 'loopback', 'stream,path=/there,server']",
    );
    let lan = |flags: &[(&str, &str)]| adapted(&saved, flags).unwrap().checked;
    let checked = lan(&[]);
    let warnings: Vec<_> = checked.warnings.iter().map(|w| w.what.as_str()).collect();
    assert_eq!(
        warnings,
        [
            "\"lan,net=tap,ifname=tap0\" of the saved configuration is not opened",
            "\"virtio-net0,net=loopback\" of the saved configuration is not opened",
            "\"virtio-net1,net=stream,path=/there,server=true\" of the saved configuration is not opened",
        ]
    );
    for device in &checked.config.devices {
        assert_eq!(device.text("net"), None);
    }
    // What the guest has seen stays.
    let first = &checked.config.devices[0];
    assert_eq!(first.text("mac"), Some("52:54:00:00:00:01"));
    assert_eq!(first.values["offload"].to_string(), "true");

    let checked = lan(&[("net", "stream,path=/here,id=virtio-net1"), ("net", "tap")]);
    assert_eq!(checked.warnings.len(), 1, "{:?}", checked.warnings);
    let devices = &checked.config.devices;
    let shown: Vec<_> = devices
        .iter()
        .map(|device| {
            (
                device.text("net"),
                device.text("ifname"),
                device.text("path"),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            (Some("tap"), None, None),
            (None, None, None),
            (Some("stream"), None, Some("/here")),
        ]
    );
    assert!(!devices[2].values.contains_key("server"));

    for (flags, problem) in [
        (&[("net", "user")][..], "net=user has no offload"),
        (&[("net", "tap,id=wan")], "there is no network card wan"),
        (&[("net", "tap"); 4], "one more than network cards"),
        (&[("net", "tap,mac=52:54:00:00:00:02")], "mac"),
        (&[("net", "tap,path=/x")], "path is of net=stream"),
    ] {
        let refused = adapted(&saved, flags).unwrap_err().to_string();
        assert!(refused.contains(problem), "{flags:?}: {refused}");
    }
}

#[test]
fn the_consoles_of_a_saved_vm_get_this_hosts_back_ends() {
    let saved = saved("console = ['socket:/there,name=agent', 'stdio,id=tty', 'file:/log']");
    let shown = |flags: &[(&str, &str)]| {
        let checked = adapted(&saved, flags).unwrap().checked;
        let devices = checked.config.devices.iter();
        let backends = devices.map(|device| device.text("console").unwrap_or("-").to_owned());
        (backends.collect::<Vec<_>>(), checked.warnings.len())
    };
    // The terminal is this process's in any case.
    assert_eq!(
        shown(&[]),
        (["-", "stdio", "-"].map(str::to_owned).to_vec(), 2)
    );
    let given = [("console", "pty,id=tty"), ("console", "socket:/here")];
    let expected = ["socket:/here", "pty", "-"].map(str::to_owned).to_vec();
    assert_eq!(shown(&given), (expected, 1));
    let checked = adapted(&saved, &given).unwrap().checked;
    assert_eq!(checked.config.devices[0].text("name"), Some("agent"));
    for (flags, problem) in [
        (&[("console", "pty"); 4][..], "one more than consoles"),
        (&[("console", "pty,id=x")], "there is no console x"),
        (&[("console", "pty,name=x")], "name"),
        (&[("serial", "stdio")], "stdio is already taken by serial"),
    ] {
        let refused = adapted(&saved, flags).unwrap_err().to_string();
        assert!(refused.contains(problem), "{flags:?}: {refused}");
    }
}
