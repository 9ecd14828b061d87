//! Errors as the user sees them: a message with the remedy, the right exit code, and never a panic.

use std::error::Error;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use hypernest::cpuid::CpuVendor;
use hypernest_lab::suite::{Test, TestResult, needs_kvm};
use nix::unistd::{Uid, pipe};

use crate::linux::held;
use crate::needs;
use crate::vm::{Site, Vm};

const fn guest(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

pub(crate) const TESTS: &[Test] = &[
    guest("errors::no_dev_kvm", no_device).needs(needs::mount_namespaces),
    guest("errors::no_permission", no_permission).needs(needs::kvm_for_root_only),
    Test::new("errors::a_file_that_is_no_kernel", no_kernel).needs(needs_kvm),
    Test::new("errors::what_the_host_cannot_do", impossible).needs(needs::hyperv),
    Test::new("errors::a_clock_that_the_guest_would_not_have", no_clock).needs(needs_kvm),
    guest("errors::a_triple_fault", triple_fault),
    guest("errors::an_internal_error_of_kvm", internal_error),
    guest("errors::an_exception_in_the_guest_is_the_guests", || {
        let site = Site::new()?;
        let ended = Vm::start(site.guest("fault ud"))?.end()?;
        ended.expect_code(3)?;
        assert!(ended.stdout.contains("EXCEPTION 6 "), "{}", ended.stdout);
        Ok(())
    }),
    guest("errors::the_console_is_full_or_gone", console),
    guest("errors::a_network_that_cannot_be_had", no_network),
    guest("errors::the_disk_is_full", disk_full).needs(needs::mount_namespaces),
];

/// `hypernest run` with these arguments exits with `code` and prints each of `texts`.
fn refused(site: &Site, arguments: &[&str], code: i32, texts: &[&str]) -> TestResult {
    let mut command = site.hypernest();
    let ended = Vm::start(command.arg("run").args(arguments))?.end()?;
    ended
        .expect_error(code, texts)
        .map_err(|error| format!("{arguments:?}: {error}"))?;
    // One message, which begins with the program's name.
    assert!(ended.stderr.starts_with("hypernest: "), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    assert!(site.run_directories()?.is_empty(), "{arguments:?}");
    Ok(())
}

/// A program that is not installed is a mistake in the configuration; a peer that is not there, a failure.
fn no_network() -> TestResult {
    let site = Site::new()?;
    let start = |net: &str| {
        let mut command = site.guest("hello");
        command.args(["--net", net]);
        command
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).filter(|dir| !dir.join("passt").exists());
    let mut command = start("user,hostfwd=tcp::2222-:22");
    command.env("PATH", std::env::join_paths(others)?);
    let ended = Vm::start(command)?.end()?;
    ended.expect_error(2, &["net=user needs the program passt", "package passt"])?;
    let ended = Vm::start(start("stream,path=nowhere"))?.end()?;
    ended.expect_error(1, &["network of virtio-net0", "cannot connect to nowhere"])?;
    let listener = UnixListener::bind(site.path("taken"))?;
    let ended = Vm::start(start("stream,path=taken,server"))?.end()?;
    ended.expect_error(1, &["taken is in use by a running program"])?;
    assert!(site.path("taken").exists());
    // What is left behind is replaced, and a VM without a peer runs.
    drop(listener);
    let ended = Vm::start(start("stream,path=taken,server"))?.end()?;
    ended.expect_code(0)?;
    assert!(!site.path("taken").exists());
    Ok(())
}

/// Lets an ordinary user run `command`, with a separate directory.
fn as_nobody<'a>(site: &Site, command: &'a mut Command) -> Result<&'a mut Command, Box<dyn Error>> {
    if !Uid::effective().is_root() {
        return Ok(command);
    }
    const NOBODY: u32 = 65534;
    fs::set_permissions(site.path(""), Permissions::from_mode(0o755))?;
    let home = site.path("nobody");
    fs::create_dir(&home)?;
    chown(&home, Some(NOBODY), Some(NOBODY))?;
    Ok(command
        .env("XDG_RUNTIME_DIR", &home)
        .uid(NOBODY)
        .gid(NOBODY))
}

/// `command`, run by a shell in a separate mount namespace after `before`.
fn in_namespace(command: &Command, before: &str) -> Result<Command, Box<dyn Error>> {
    let busybox = held("busybox")?;
    let mut outer = Command::new(&busybox);
    outer
        .args(["unshare", "-m"])
        .arg(&busybox)
        .args(["sh", "-c", &format!("{before} && exec \"$@\""), "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("busybox", &busybox);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    Ok(outer)
}

fn no_device() -> TestResult {
    let site = Site::new()?;
    let without_dev =
        |command: &Command| in_namespace(command, "$busybox mount -t tmpfs none /dev");
    let ended = Vm::start(&mut without_dev(&site.guest("hello"))?)?.end()?;
    ended.expect_error(3, &["cannot use KVM: there is no /dev/kvm: "])?;
    assert!(site.run_directories()?.is_empty());
    let mut doctor = site.hypernest();
    let ended = Vm::start(&mut without_dev(doctor.arg("doctor"))?)?.end()?;
    ended.expect_code(3)?;
    assert!(
        ended.stdout.contains("there is no /dev/kvm"),
        "{}",
        ended.stdout
    );
    Ok(())
}

fn no_permission() -> TestResult {
    let site = Site::new()?;
    let mut command = site.guest("hello");
    let ended = Vm::start(as_nobody(&site, &mut command)?)?.end()?;
    ended.expect_error(3, &["no permission to open /dev/kvm", "usermod -aG"])?;
    Ok(())
}

fn no_kernel() -> TestResult {
    let site = Site::new()?;
    let takes = "it takes a bzImage, an ELF file with a PVH note, or a multiboot 1 image";
    site.file("text", "Linux kernel\n".repeat(1000))?;
    // A boot sector's signature and a setup header whose sizes exceed the file.
    let mut cut = vec![0; 1024];
    cut[0x1f1] = 40;
    cut[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    cut[0x202..0x206].copy_from_slice(b"HdrS");
    cut[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    site.file("cut", cut)?;
    site.file("damaged.gz", b"\x1f\x8b\x08\x00 no gzip data")?;
    site.file("cut.elf", &hypernest_guest::GUEST[..3000])?;
    fs::copy(std::env::current_exe()?, site.path("program"))?;
    site.file("empty", "")?;
    for (kernel, code, texts) in [
        (
            "text",
            2,
            &["text is not a kernel that hypernest can start", takes][..],
        ),
        ("cut", 1, &["cannot start the Linux kernel cut: "]),
        (
            "damaged.gz",
            1,
            &["cannot unpack the kernel damaged.gz: its gzip data are damaged"],
        ),
        ("cut.elf", 1, &["cut.elf"]),
        (
            "program",
            2,
            &["is an ELF file with neither a PVH note nor a multiboot header"],
        ),
        ("empty", 2, &["--kernel: empty is empty"]),
    ] {
        refused(&site, &["--hv", "none", "--kernel", kernel], code, texts)?;
    }
    let initrd = [
        "--hv", "none", "--kernel", "guest", "--initrd", "big", "--memory", "16M",
    ];
    site.file("big", vec![0; 20 << 20])?;
    refused(&site, &initrd, 1, &["big", "--memory"])
}

fn no_clock() -> TestResult {
    let site = Site::new()?;
    let run = ["--kernel", "guest", "--hv", "none", "--memory", "16M"];
    let hidden = [&run[..], &["--irqchip", "split", "--kvm-leaves=false"]].concat();
    refused(&site, &hidden, 3, &["there is no PIT", "--kvm-leaves"])?;
    if needs::caps()?.kvm.tsc_offset == Some(false) {
        let pause = [&run[..], &["--clock", "pause"]].concat();
        refused(&site, &pause, 3, &["`--clock pause` is not possible"])?;
    }
    Ok(())
}

fn impossible() -> TestResult {
    let site = Site::new()?;
    let amd = needs::caps()?.kvm.vendor() == CpuVendor::Amd;
    let lacks = "this host cannot run the VM as configured:";
    let both = ["--kernel", "guest", "--hv", "hv-evmcs,hv-syndbg"];
    refused(&site, &both, 3, &[lacks, "hv-evmcs", "hv-syndbg"])?;
    if amd {
        // The profile omits enlightenments that no AMD host has; by name they are refused.
        let named = ["--kernel", "guest", "--nested", "--hv", "nested,evmcs"];
        refused(&site, &named, 3, &[lacks, "hv-evmcs", "Intel's VMX"])?;
    } else {
        // VMX exists, but not for the guest.
        let evmcs = ["--kernel", "guest", "--hv", "hv-evmcs"];
        refused(&site, &evmcs, 3, &[lacks, "hv-evmcs", "--nested"])?;
    }
    Ok(())
}

fn triple_fault() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(
        site.guest("fault triple")
            .args(["--on-triple-fault", "stop"]),
    )?
    .end()?;
    ended.expect_error(
        1,
        &[
            "vCPU 0 stopped: triple fault",
            "rip 0",
            "cr3 0",
            "code at rip: ",
            "what to try: ",
        ],
    )?;
    ended.expect_lines(&["fault: triple"])?;
    Ok(())
}

/// The guest jumps to memory without instructions.
fn internal_error() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(site.guest("fault exec"))?.end()?;
    ended.expect_error(
        1,
        &[
            "vCPU 0 stopped: ",
            "KVM_EXIT_INTERNAL_ERROR, suberror 1",
            "rip 00000000fd000000",
            "code at rip: not in guest RAM",
            "what to try: ",
        ],
    )?;
    Ok(())
}

/// The guest continues without a reader of its console.
fn console() -> TestResult {
    let site = Site::new()?;
    let full = File::options().write(true).open("/dev/full")?;
    let ended = Vm::start_onto(site.guest("hello"), full)?.end()?;
    ended.expect_error(0, &["output failed: the guest continues", "No space left"])?;
    let (reader, writer) = pipe()?;
    drop(reader);
    let ended = Vm::start_onto(site.guest("hello"), writer.into())?.end()?;
    ended.expect_error(0, &["output failed: the guest continues", "Broken pipe"])?;
    Ok(())
}

/// The JSON file fits into one page; the log does not fit, and no unfinished file remains.
fn disk_full() -> TestResult {
    let site = Site::new()?;
    let run = |stats: &str| -> Result<_, Box<dyn Error>> {
        let mut command = site.guest("hello");
        command.args(["--stats", stats]);
        let disk = "$busybox mkdir -p disk && $busybox mount -t tmpfs -o size=4k none disk";
        // The shell stays after the command and lists the files on the disk.
        let script = format!("{disk} && \"$@\"; code=$?; $busybox ls disk; exit $code; true");
        Vm::start(in_namespace(&command, &script)?)?.end()
    };
    let ended = run("disk/exits.json")?;
    ended.expect_error(
        1,
        &["cannot write the exit statistics to disk/exits.json.hlog: No space left on device"],
    )?;
    assert!(ended.stdout.ends_with("\nexits.json\n"), "{}", ended.stdout);
    let ended = run("/dev/full")?;
    ended.expect_error(
        1,
        &["cannot write the exit statistics to /dev/full: No space left"],
    )?;
    let ended = run("no-such-directory/exits.json")?;
    ended.expect_error(
        1,
        &["cannot write the exit statistics to no-such-directory/exits.json"],
    )?;
    Ok(())
}
