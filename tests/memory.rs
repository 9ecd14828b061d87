//! Guest RAM and vCPUs on the host: huge pages; preallocated, locked, merged or node-bound memory; and pinned
//! threads.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use hypernest_lab::suite::{Test, TestResult};
use nix::unistd::Uid;
use serde_json::Value;

use crate::needs;
use crate::vm::{Site, Vm};

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::guests)
}

pub(crate) const TESTS: &[Test] = &[
    test("memory::ram_is_in_huge_pages", huge_pages).needs(transparent_huge_pages),
    test("memory::a_restored_vm_is_small_until_its_reset", restored).needs(transparent_huge_pages),
    test("memory::ready_ram_is_resident_resets_or_not", prealloc),
    test("memory::locked_ram_is_locked_or_the_limit_is_named", lock),
    test("memory::mergeable_ram_is_so_to_the_kernel", mergeable).needs(ksm),
    test("memory::ram_is_of_the_given_node", numa).needs(numa_nodes),
    test("memory::pinned_vcpus_run_where_they_are_to", pin),
    test("memory::what_the_host_does_not_have_is_refused", refused),
];

/// The guest program's RAM; see [`guest`].
const RAM: u64 = 64 << 20;
const HUGE: u64 = 2 << 20;

fn transparent_huge_pages() -> Result<(), String> {
    needs::guests()?;
    match needs::caps()?.system.thp.as_deref() {
        Some("always" | "madvise") => Ok(()),
        _ => Err("transparent huge pages (transparent_hugepage/enabled)".to_owned()),
    }
}

fn ksm() -> Result<(), String> {
    needs::guests()?;
    match Path::new("/sys/kernel/mm/ksm/run").exists() {
        true => Ok(()),
        false => Err("a kernel with CONFIG_KSM".to_owned()),
    }
}

fn numa_nodes() -> Result<(), String> {
    needs::guests()?;
    match Path::new("/sys/devices/system/node/node0").exists() {
        true => Ok(()),
        false => Err("a kernel with CONFIG_NUMA".to_owned()),
    }
}

/// `hypernest run` of a guest that writes little and then spins.
fn guest(site: &Site, memory: &str) -> Command {
    let mut command = site.hypernest();
    command
        .args(["run", "--name", "test", "--kernel", "guest", "--hv", "none"])
        .args(["--cmdline", "fault spin", "--memory", memory])
        .args(["--serial", "none", "--debugcon", "stdio", "--debug-exit"]);
    command
}

fn started(command: &mut Command) -> Result<Vm, Box<dyn Error>> {
    let mut vm = Vm::start(command)?;
    vm.wait_for("fault: spin")?;
    Ok(vm)
}

/// The RAM in the output of `status`.
fn ram(site: &Site) -> Result<(Value, BTreeMap<String, u64>), Box<dyn Error>> {
    let status = site.status()?;
    let ram = status["ram"].as_object().ok_or("no ram in the status")?;
    let bytes = ram
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)))
        .collect();
    Ok((ram["backing"].clone(), bytes))
}

fn reset(site: &Site, vm: &mut Vm) -> TestResult {
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("the reset", |_| {
        site.status().is_ok_and(|status| status["resets"] == 1)
    })?;
    Ok(())
}

/// The text of a file in the VM's /proc directory.
fn of_process(site: &Site, name: &str) -> Result<String, Box<dyn Error>> {
    let pid = site.status()?["pid"].to_string();
    Ok(fs::read_to_string(Path::new("/proc").join(pid).join(name))?)
}

fn huge_pages() -> TestResult {
    let site = Site::new()?;
    let mut vm = started(&mut guest(&site, "64M"))?;
    for after_reset in [false, true] {
        if after_reset {
            reset(&site, &mut vm)?;
            vm.wait_until("the guest's memory", |_| {
                ram(&site).is_ok_and(|(_, ram)| ram["huge"] > 0)
            })?;
        }
        let (backing, ram) = ram(&site)?;
        println!("{ram:?}");
        assert_eq!(backing, "anonymous");
        assert!(ram["huge"] >= HUGE && ram["resident"] >= ram["huge"] && ram["resident"] <= RAM);
        // The whole process's, whose heap may also have huge pages.
        let smaps = of_process(&site, "smaps_rollup")?;
        let field = smaps
            .lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"));
        let kib: u64 = field
            .and_then(|field| field.trim().trim_end_matches(" kB").parse().ok())
            .ok_or("no AnonHugePages")?;
        assert!(kib << 10 >= ram["huge"], "{smaps}");
    }
    Ok(())
}

fn restored() -> TestResult {
    let site = Site::new()?;
    let vm = started(&mut guest(&site, "64M"))?;
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_code(0)?;
    vm.end()?.expect_code(0)?;
    for (flags, backing) in [(&[][..], "saved"), (&["--eager"], "anonymous")] {
        let mut command = site.hypernest();
        command.args(["restore", "saved"]).args(flags);
        let mut vm = Vm::start(&mut command)?;
        vm.wait_until("the restored VM", |_| site.status().is_ok())?;
        let (found, before) = ram(&site)?;
        println!("{backing}: {before:?}");
        assert_eq!(found, backing);
        assert_eq!(before["huge"] > 0, backing == "anonymous");
        reset(&site, &mut vm)?;
        vm.wait_until("huge pages", |_| {
            ram(&site).is_ok_and(|(_, ram)| ram["huge"] > 0)
        })?;
        assert_eq!(ram(&site)?.0, "anonymous");
        site.control(&["stop", "test"])?.expect_code(0)?;
        vm.end()?.expect_code(0)?;
    }
    Ok(())
}

fn prealloc() -> TestResult {
    let site = Site::new()?;
    let mut vm = started(&mut guest(&site, "64M,prealloc"))?;
    assert_eq!(ram(&site)?.1["resident"], RAM);
    reset(&site, &mut vm)?;
    assert_eq!(ram(&site)?.1["resident"], RAM);
    // The setting is the host's: a restored VM has it only on request.
    site.control(&["save", "test", "saved", "--then", "stop"])?
        .expect_code(0)?;
    vm.end()?.expect_code(0)?;
    for (flags, all) in [(&[][..], false), (&["--memory", "prealloc"], true)] {
        let mut command = site.hypernest();
        command.args(["restore", "saved", "--paused"]).args(flags);
        let mut vm = Vm::start(&mut command)?;
        vm.wait_until("the restored VM", |_| site.status().is_ok())?;
        assert_eq!(ram(&site)?.1["resident"] == RAM, all);
        site.control(&["stop", "test"])?.expect_code(0)?;
        vm.end()?.expect_code(0)?;
    }
    Ok(())
}

fn lock() -> TestResult {
    let site = Site::new()?;
    if !Uid::effective().is_root() {
        let ended = Vm::start(&mut guest(&site, "1G,lock"))?.end()?;
        ended.expect_error(1, &["cannot lock 1024 MiB", "RLIMIT_MEMLOCK"])?;
        return Ok(());
    }
    let mut vm = started(&mut guest(&site, "64M,lock"))?;
    assert_eq!(ram(&site)?.1["locked"], RAM);
    reset(&site, &mut vm)?;
    assert_eq!(ram(&site)?.1["locked"], RAM);
    Ok(())
}

fn mergeable() -> TestResult {
    let site = Site::new()?;
    let _vm = started(&mut guest(&site, "64M,mergeable"))?;
    let smaps = of_process(&site, "smaps")?;
    // VM_MERGEABLE (show_smap_vma_flags).
    let merged = |line: &str| line.starts_with("VmFlags:") && line.contains(" mg");
    assert!(smaps.lines().any(merged), "{smaps}");
    Ok(())
}

fn numa() -> TestResult {
    let site = Site::new()?;
    let _vm = started(&mut guest(&site, "64M,numa=0"))?;
    let maps = of_process(&site, "numa_maps")?;
    assert!(maps.contains(" bind:0 "), "{maps}");
    Ok(())
}

fn pin() -> TestResult {
    let site = Site::new()?;
    let own = fs::read_to_string("/proc/self/status")?;
    let allowed = allowed(&own)?;
    let cpu = allowed
        .split([',', '-'])
        .next_back()
        .ok_or("no CPU is allowed")?;
    for pins in [cpu.to_owned(), format!("0={cpu}")] {
        let mut vm = started(guest(&site, "64M").args(["--pin", &pins]))?;
        let pid = site.status()?["pid"].to_string();
        let mut found = 0;
        for task in fs::read_dir(Path::new("/proc").join(&pid).join("task"))? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?;
            // A vCPU starts KVM's own thread for huge pages, which inherits its CPUs.
            let expected = match name.trim() {
                "vcpu0" => cpu,
                _ if task.ends_with(&pid) => allowed,
                _ => continue,
            };
            let status = fs::read_to_string(task.join("status"))?;
            assert_eq!(self::allowed(&status)?, expected, "{status}");
            found += 1;
        }
        assert_eq!(found, 2);
        reset(&site, &mut vm)?;
        site.control(&["stop", "test"])?.expect_code(0)?;
        vm.end()?.expect_code(0)?;
    }
    Ok(())
}

fn allowed(status: &str) -> Result<&str, Box<dyn Error>> {
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.ok_or("no Cpus_allowed_list")?.trim())
}

fn refused() -> TestResult {
    let site = Site::new()?;
    for (memory, pin, code, texts) in [
        ("64M", "8191", 3, &["CPU 8191", "--pin"][..]),
        ("64M,numa=63", "0=0", 1, &["NUMA node 63"]),
        ("512G,prealloc", "0=0", 1, &["(prealloc): the host has"]),
        ("64M,preallocc", "0=0", 2, &["did you mean prealloc?"]),
    ] {
        let mut command = guest(&site, memory);
        command.args(["--pin", pin]);
        let ended = Vm::start(&mut command)?.end()?;
        ended
            .expect_error(code, texts)
            .map_err(|error| format!("{memory} {pin}: {error}"))?;
        assert!(site.run_directories()?.is_empty());
    }
    Ok(())
}
