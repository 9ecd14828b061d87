//! Output and exit codes of the command line in case of errors. Needs no KVM.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Runs hypernest in `dir`, with separate run directories.
fn hypernest(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypernest"));
    command
        .args(args)
        .current_dir(dir)
        .env("XDG_RUNTIME_DIR", dir.path())
        .env("RUST_BACKTRACE", "1")
        .env_remove("HYPERNEST_LOG")
        .stdin(Stdio::null());
    command
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let said = Said {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    };
    assert!(!said.err.contains("panicked"), "{}", said.err);
    assert!(!said.err.contains("stack backtrace"), "{}", said.err);
    said
}

fn run(dir: &TempDir, args: &[&str]) -> Said {
    said(hypernest(dir, args).output().unwrap())
}

fn dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("vmlinuz"), "a kernel").unwrap();
    dir
}

#[test]
fn devices_are_shown_with_their_places_and_unknown_ones_refused() {
    let dir = dir();
    let kernel = ["--kernel", "vmlinuz"];
    let devices = [
        "--device",
        "virtio-rng-pci",
        "--device",
        "virtio-rng,id=x,slot=9",
    ];
    let shown = run(&dir, &[&["config"][..], &kernel, &devices].concat());
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    for line in ["id = \"virtio-rng0\"", "slot = 1", "id = \"x\"", "slot = 9"] {
        assert!(shown.out.contains(line), "{line}\nin\n{}", shown.out);
    }
    for (device, wrong) in [
        ("virtio-rgn", "did you mean virtio-rng?"),
        ("virtio-rng,slt=3", "did you mean slot?"),
        ("virtio-rng,slot=9", "two devices have slot 9"),
        ("virtio-rng,id=x", "two devices have the id x"),
    ] {
        let args = [&["run"][..], &kernel, &devices, &["--device", device]].concat();
        let said = run(&dir, &args);
        assert_eq!(said.code, Some(2), "{device}");
        assert!(said.err.contains(wrong), "{wrong}\nin\n{}", said.err);
    }
}

#[test]
fn a_file_with_three_mistakes_has_three_reports() {
    let dir = dir();
    let text = "kernel = 'vmlinuz'\nmemroy = '2G'\ncpus = 0\nnested = 'si'\n";
    fs::write(dir.path().join("vm.toml"), text).unwrap();
    for command in ["run", "config"] {
        let said = run(&dir, &[command, "--config", "vm.toml"]);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
        for line in [
            "hypernest: the VM's configuration has 3 problems:",
            "  vm.toml:2:1: unknown key \"memroy\"",
            "      did you mean `memory`?",
            "  vm.toml:3:8: cpus: 0 is out of range",
            "  vm.toml:4:10: nested: \"si\" is neither true nor false",
        ] {
            assert!(
                said.err.lines().any(|l| l == line),
                "{line}\nin\n{}",
                said.err
            );
        }
    }
}

#[test]
fn wrong_use_is_2() {
    let dir = dir();
    for (args, says) in [
        (&[][..], "Usage: hypernest"),
        (&["fly"], "unrecognized subcommand"),
        (&["stpo", "vm"], "similar subcommand exists: 'stop'"),
        (
            &["shutdown", "vm"],
            "there is no command `shutdown`: write `hypernest power-button vm`",
        ),
        (&["destroy", "vm"], "write `hypernest stop vm`"),
        (&["run", "--kernal", "x"], "--kernel"),
        (&["run"], "--kernel: no kernel is given"),
        (
            &["run", "--kernel", "nowhere"],
            "cannot read nowhere: No such file or directory",
        ),
        (&["run", "--kernel", "."], ". is a directory"),
        (
            &["run", "--kernel", "vmlinuz", "--initrd", "nowhere"],
            "--initrd: cannot read nowhere",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--memory", "1M"],
            "too little memory",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--memory", "999999T"],
            "more memory than",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--cpus", "0"],
            "out of range",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--cpus", "256"],
            "out of range",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--hv", "hv-tiem"],
            "did you mean `hv-time`?",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--hv", "time,-time"],
            "named twice",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--hpet"],
            "--hpet: there is no HPET, as KVM has none",
        ),
        (
            &["run", "-kernel", "vmlinuz", "-m", "2048", "-enable-kvm"],
            "  -kernel vmlinuz: write --kernel vmlinuz\n  -m 2048: write --memory 2048M\n  -enable-kvm: \
             leave it out",
        ),
        (&["run", "-hda", "disk.img"], "--disk disk.img"),
        (&["-kernel", "vmlinuz"], "write --kernel vmlinuz"),
        (&["run", "vmlinuz"], "vmlinuz: write --kernel vmlinuz"),
        (
            &["run", "-m", "2X", "--cpus", "0", "-foo"],
            "  -foo: neither a flag of hypernest nor a known one of QEMU\nthe VM's \
             configuration has 3 problems:",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--plaintext"],
            "cannot use the value of --plaintext: it protects an incoming migration",
        ),
        (
            &["run", "--kernel", "vmlinuz", "--memory", "20000G"],
            "20000G\" is more memory than KVM gives to a VM\n      expected at most 8T",
        ),
        (
            &["restore", "x", "--hv", "none"],
            "`restore` takes no --hv: it was saved with the VM",
        ),
        (&["completions", "cmd"], "possible values: bash"),
        (
            &["run", "--config", "nowhere"],
            "cannot read the configuration file nowhere",
        ),
        (&["--log", "lots", "list"], "\"lots\" is not a level"),
        (&["status"], "<NAME>"),
    ] {
        let said = run(&dir, args);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{args:?}: {}",
            said.err
        );
        assert!(said.err.contains(says), "{args:?}: {}", said.err);
    }
}

/// Letters in common are no meaning: `stop` is not what `step` or `shoot` asked for.
#[test]
fn no_command_is_proposed_that_was_not_meant() {
    let dir = dir();
    for verb in ["shoot", "terminate", "stopwatch"] {
        let said = run(&dir, &[verb, "vm"]);
        assert_eq!(said.code, Some(2), "{verb}");
        assert!(!said.err.contains("similar"), "{verb}: {}", said.err);
    }
}

#[test]
fn an_unreadable_kernel_is_told() {
    let dir = dir();
    let kernel = dir.path().join("vmlinuz");
    fs::set_permissions(&kernel, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    if File::open(&kernel).is_ok() {
        // Root can read every file, but not through a loop of links.
        fs::remove_file(&kernel).unwrap();
        std::os::unix::fs::symlink("vmlinuz", &kernel).unwrap();
    }
    let said = run(&dir, &["config", "--kernel", "vmlinuz"]);
    assert_eq!(said.code, Some(2));
    assert!(
        said.err.contains("--kernel: cannot read vmlinuz: "),
        "{}",
        said.err
    );
    assert!(said.err.contains("(os error "), "{}", said.err);
}

#[test]
fn help_and_version_are_0_on_stdout() {
    let dir = dir();
    let version = format!("hypernest {}\n", env!("CARGO_PKG_VERSION"));
    let said = run(&dir, &["--version"]);
    assert_eq!((said.code, said.out), (Some(0), version));
    let said = run(&dir, &["run", "--help"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(said.out.contains("--kernel <FILE>"));
}

/// QEMU's names for the same settings.
#[test]
fn append_and_smp_are_taken() {
    let dir = dir();
    let args = [
        "config",
        "--kernel",
        "vmlinuz",
        "--append",
        "-quiet",
        "--smp",
        "4,cores=2",
    ];
    let said = run(&dir, &args);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    for line in ["cmdline = \"-quiet\"", "count = 4", "cores = 2"] {
        assert!(
            said.out.lines().any(|l| l == line),
            "{line} in {}",
            said.out
        );
    }
}

#[test]
fn a_configuration_of_an_earlier_version_is_read_without_its_hpet() {
    let dir = dir();
    let config = |hpet: &str| {
        let text = format!("kernel = 'vmlinuz'\nhpet = {hpet}\n");
        fs::write(dir.path().join("vm.toml"), text).unwrap();
        run(&dir, &["config", "--config", "vm.toml"])
    };
    let said = config("false");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert!(!said.out.contains("hpet"), "{}", said.out);
    let said = config("true");
    assert_eq!(said.code, Some(2));
    assert!(
        said.err.contains("vm.toml:2:8: hpet: there is no HPET"),
        "{}",
        said.err
    );
    assert!(said.err.contains("remove the line"), "{}", said.err);
}

/// A missing /dev/kvm does not hide the error of a file that no host could start.
#[test]
fn what_the_host_lacks_does_not_hide_a_wrong_kernel() {
    let dir = dir();
    // No host supports it so far, with or without KVM.
    let args = ["run", "--kernel", "vmlinuz", "--hv", "syndbg", "--nested"];
    let said = run(&dir, &args);
    assert_eq!(said.code, Some(3), "{}", said.err);
    assert!(
        said.err
            .contains("vmlinuz is not a kernel that hypernest can start"),
        "{}",
        said.err
    );
    assert!(
        said.err
            .contains("it has no bzImage, ELF or multiboot header"),
        "{}",
        said.err
    );
}

#[test]
fn what_is_no_saved_vm_is_named_as_such() {
    let dir = dir();
    let said = run(&dir, &["status", "vm", "--hv"]);
    assert!(!said.err.contains("as a value"), "{}", said.err);
    let said = run(&dir, &["restore", "."]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .contains(". contains no saved VM (no file `state`)"),
        "{}",
        said.err
    );
    let said = run(&dir, &["inspect", "."]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .starts_with("hypernest: cannot read . as a saved VM: "),
        "{}",
        said.err
    );
}

#[test]
fn completions_are_scripts() {
    let dir = dir();
    for (shell, says) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef"),
        ("fish", "complete -c"),
    ] {
        let said = run(&dir, &["completions", shell]);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{shell}");
        assert!(
            said.out.contains(says) && said.out.contains("on-crash"),
            "{shell}"
        );
    }
    let said = run(&dir, &["man"]);
    assert!(said.out.contains(".TH hypernest"), "{}", said.out);
}

#[test]
fn the_shown_configuration_is_a_file_that_gives_itself() {
    let dir = dir();
    let args = [
        "config", "--kernel", "vmlinuz", "--name", "x", "--memory", "2G", "--nested",
    ];
    let first = run(&dir, &args);
    assert_eq!((first.code, first.err.as_str()), (Some(0), ""));
    fs::write(dir.path().join("vm.toml"), &first.out).unwrap();
    let second = run(&dir, &["config", "--config", "vm.toml"]);
    assert_eq!((second.code, second.out), (Some(0), first.out));
}

/// Runs `check` on all commands that write to stdout.
fn writers(mut check: impl FnMut(&str, &mut Command)) {
    let dir = dir();
    for args in [
        &["--help"][..],
        &["--version"],
        &["config", "--kernel", "vmlinuz"],
        &["list"],
        &["enlightenments"],
    ] {
        check(args[0], &mut hypernest(&dir, args));
    }
}

#[test]
fn a_reader_that_has_gone_is_no_news() {
    writers(|name, command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let said = said(command.stdout(writer).output().unwrap());
        assert_eq!((said.code, said.err.as_str()), (Some(1), ""), "{name}");
    });
}

#[test]
fn a_full_disk_under_stdout_is_told() {
    writers(|name, command| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let said = said(command.stdout(full).output().unwrap());
        assert_eq!(said.code, Some(1), "{name}");
        assert!(
            said.err
                .starts_with("hypernest: cannot write to stdout: No space left on device"),
            "{name}: {}",
            said.err
        );
    });
}

#[test]
fn without_a_stderr_the_exit_code_says_it() {
    let dir = dir();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = hypernest(&dir, &["run", "--kernel", "nowhere"])
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_vm_that_is_not_there() {
    let dir = dir();
    let said = run(&dir, &["list"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "no VM is running\n")
    );
    assert_eq!(run(&dir, &["list", "--json"]).out, "[]\n");
    for command in [
        "status",
        "pause",
        "resume",
        "reset",
        "power-button",
        "powerdown",
        "stop",
        "kill",
    ] {
        let said = run(&dir, &[command, "x"]);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{command}");
        assert!(
            said.err
                .starts_with("hypernest: there is no running VM named \"x\"\n"),
            "{command}: {}",
            said.err
        );
    }
}

#[test]
fn the_log_goes_to_stderr_as_asked() {
    let dir = dir();
    // Larger than any machine's RAM and swap, but within any machine's address bits.
    let args = ["config", "--kernel", "vmlinuz", "--memory", "32G"];
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = memory
        .lines()
        .filter(|l| l.starts_with("MemTotal:") || l.starts_with("SwapTotal:"))
        .filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    let warns = kib < 32 << 20;
    let says = "32G of memory is more than this host's RAM and swap";
    let said = run(&dir, &args);
    assert_eq!((said.code, said.err.contains(says)), (Some(0), warns));
    let quiet = hypernest(&dir, &args).env("HYPERNEST_LOG", "off").output();
    assert_eq!(quiet.unwrap().stderr, b"");
    let mut flag_wins = hypernest(&dir, &args);
    let output = flag_wins
        .env("HYPERNEST_LOG", "nonsense")
        .args(["--log", "off"])
        .output();
    assert_eq!(output.unwrap().stderr, b"");
    assert!(!Path::new(&dir.path().join("hypernest")).exists());
}
