//! Files and descriptors of this host cannot be chosen by a saved VM, a migration's peer or a client of the
//! control socket.

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;

use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Site, Vm};

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

pub(crate) const TESTS: &[Test] = &[
    test(
        "trust::a_restored_vm_opens_no_path_of_its_configuration",
        no_paths,
    ),
    test(
        "trust::a_vm_that_arrives_opens_no_path_of_its_configuration",
        no_paths_of_a_source,
    ),
    test("trust::a_saved_vm_is_no_symbolic_link", no_links),
    test(
        "trust::a_restored_vm_resets_from_the_kernel_that_was_saved",
        own_kernel,
    ),
    test(
        "trust::a_reset_without_a_saved_kernel_is_refused_by_name",
        no_kernel,
    ),
    test(
        "trust::a_migration_uses_no_descriptor_of_the_vmm",
        descriptors,
    ),
];

/// Starts a guest that writes continuously, with paths of the host in its configuration, and removes the
/// files at these paths.
fn writer_to_paths(site: &Site) -> Result<Vm, Box<dyn Error>> {
    let mut command = site.hypernest();
    command
        .args(["run", "--name", "test", "--kernel", "guest"])
        .args(["--cmdline", "keep", "--memory", "64M", "--hv", "none"])
        .args(["--serial", "none", "--serial2", "file:console"])
        .args(["--debugcon", "file:victim", "--stats", "stats"]);
    let mut vm = Vm::start(command)?;
    let victim = site.path("victim");
    vm.wait_until("its first laps", |_| {
        fs::read_to_string(&victim).is_ok_and(|said| said.contains("keep: 2\n"))
    })?;
    Ok(vm)
}

const PATHS: [&str; 3] = ["victim", "console", "stats"];

fn remove(site: &Site) -> TestResult {
    for name in PATHS {
        match fs::remove_file(site.path(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

fn expect_nothing_opened(site: &Site) {
    for name in PATHS {
        assert!(!site.path(name).exists(), "{name} was opened");
    }
}

fn save(site: &Site, vm: Vm) -> TestResult {
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_code(0)?;
    vm.end()?.expect_code(0)?;
    Ok(())
}

fn no_paths() -> TestResult {
    let site = Site::new()?;
    let vm = writer_to_paths(&site)?;
    save(&site, vm)?;
    remove(&site)?;

    let inspected = site.control(&["inspect", "saved"])?;
    inspected.expect_code(0)?;
    for named in ["debugcon file:/", "serial2 file:/", "stats /", "kernel /"] {
        assert!(inspected.stdout.contains(named), "{}", inspected.stdout);
    }

    let mut vm = Vm::start(site.hypernest().args(["restore", "saved"]))?;
    vm.wait_until("its warnings", |vm| {
        let said = vm.complained();
        ["--serial2: ", "--debugcon: ", "--stats: "]
            .iter()
            .all(|flag| said.contains(flag))
    })?;
    vm.wait_until("its control socket", |_| site.status().is_ok())?;
    site.control(&["stop", "test"])?.expect_code(0)?;
    vm.end()?.expect_code(0)?;
    expect_nothing_opened(&site);

    // The user of this host may name another file.
    let mut command = site.hypernest();
    command.args(["restore", "saved", "--debugcon", "file:mine"]);
    let mut vm = Vm::start(command)?;
    let mine = site.path("mine");
    vm.wait_until("more laps", |_| {
        fs::read_to_string(&mine).is_ok_and(|said| said.contains("keep: "))
    })?;
    expect_nothing_opened(&site);
    Ok(())
}

fn no_paths_of_a_source() -> TestResult {
    let site = Site::new()?;
    let vm = writer_to_paths(&site)?;
    let mut command = site.hypernest();
    command.args(["run", "--incoming", "unix:there", "--name", "other"]);
    let mut there = Vm::start(command)?;
    let socket = site.path("there");
    there.wait_until("its socket", |_| socket.exists())?;
    site.control(&["pause", "test"])?.expect_code(0)?;
    remove(&site)?;
    site.control(&["migrate", "test", "unix:there"])?
        .expect_code(0)?;
    vm.end()?.expect_code(0)?;
    // Statistics of the source, which its own user requested.
    fs::remove_file(site.path("stats"))?;
    site.control(&["resume", "other"])?.expect_code(0)?;
    site.control(&["stop", "other"])?.expect_code(0)?;
    there.end()?.expect_code(0)?;
    expect_nothing_opened(&site);
    Ok(())
}

fn no_links() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(site.guest("keep"))?;
    vm.wait_for("keep: 1\n")?;
    save(&site, vm)?;
    for name in ["ram", "boot", "state"] {
        let (file, elsewhere) = (site.path("saved").join(name), site.path("elsewhere"));
        fs::rename(&file, &elsewhere)?;
        symlink(&elsewhere, &file)?;
        for command in ["restore", "inspect"] {
            site.control(&[command, "saved"])?
                .expect_error(1, &[name, "symbolic link"])?;
        }
        fs::rename(&elsewhere, &file)?;
    }
    Ok(())
}

/// The file at the kernel's path now contains another user's secret.
fn own_kernel() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(site.guest("keep"))?;
    vm.wait_for("keep: 2\n")?;
    save(&site, vm)?;
    let kernel = site.path("guest");
    let guest = fs::read(&kernel)?;
    fs::remove_file(&kernel)?;
    fs::write(&kernel, "secret")?;

    let mut vm = Vm::start(site.hypernest().args(["restore", "saved"]))?;
    vm.wait_until("its control socket", |_| site.status().is_ok())?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("another boot", |vm| vm.said().contains("keep: 1\n"))?;
    // Saved again, it still contains its kernel, which is checked.
    save(&site, vm)?;
    site.control(&["restore", "saved", "--check"])?
        .expect_code(0)?;
    let boot = site.path("saved").join("boot");
    let mut bytes = fs::read(&boot)?;
    assert_eq!(bytes, guest);
    bytes[100] ^= 1;
    fs::write(&boot, bytes)?;
    for arguments in [
        ["restore", "saved", "--check"],
        ["inspect", "saved", "--check"],
    ] {
        site.control(&arguments)?
            .expect_error(1, &["boot", "damaged"])?;
    }
    let mut vm = Vm::start(site.hypernest().args(["restore", "saved"]))?;
    vm.wait_until("its control socket", |_| site.status().is_ok())?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.end()?
        .expect_error(1, &["the kernel", "damaged", "CRC32C"])?;
    Ok(())
}

/// A VM that was saved by a version without boot files.
fn no_kernel() -> TestResult {
    use hypernest::state::Sections;
    use hypernest::state::snapshot::BOOT_SECTION;

    let site = Site::new()?;
    let mut vm = Vm::start(site.guest("keep"))?;
    vm.wait_for("keep: 1\n")?;
    save(&site, vm)?;
    let saved = site.path("saved");
    fs::remove_file(saved.join("boot"))?;
    let state = fs::read(saved.join("state"))?;
    let mut sections = Sections::decode(state.as_slice(), 1 << 20)?;
    sections.take(BOOT_SECTION)?;
    let mut state = Vec::new();
    sections.encode(&mut state)?;
    fs::write(saved.join("state"), state)?;

    let inspected = site.control(&["inspect", "saved"])?;
    inspected.expect_code(0)?;
    assert!(inspected.stdout.contains("a reset needs --kernel"));
    let mut vm = Vm::start(site.hypernest().args(["restore", "saved"]))?;
    vm.wait_until("the warning", |vm| {
        vm.complained().contains("cannot be reset")
    })?;
    vm.wait_until("laps", |vm| vm.said().contains("keep: "))?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("the refusal", |vm| {
        vm.complained().matches("--kernel FILE").count() == 2
    })?;
    // It continues meanwhile.
    let done = vm.said().len();
    vm.wait_until("more laps", |vm| vm.said().len() > done)?;
    drop(vm);

    let mut command = site.hypernest();
    command.args(["restore", "saved", "--kernel", "guest"]);
    let mut vm = Vm::start(command)?;
    vm.wait_until("its control socket", |_| site.status().is_ok())?;
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("another boot", |vm| vm.said().contains("keep: 1\n"))?;
    Ok(())
}

/// Guest memory, the pid file and KVM are among a VMM's own descriptors.
fn descriptors() -> TestResult {
    let site = Site::new()?;
    let mut vm = Vm::start(site.guest("keep"))?;
    vm.wait_for("keep: 1\n")?;
    for fd in 3..48 {
        site.control(&["migrate", "test", &format!("fd:{fd}")])?
            .expect_error(1, &["cannot connect to", "the VM stays here"])?;
    }
    let mut command = site.hypernest();
    command.args(["run", "--incoming", "fd:3"]);
    Vm::start(command)?.end()?.expect_error(1, &["fd:3"])?;
    let done = vm.said().len();
    vm.wait_until("more laps", |vm| vm.said().len() > done)?;
    assert!(!vm.said().contains("FAIL"), "{}", vm.said());
    Ok(())
}
