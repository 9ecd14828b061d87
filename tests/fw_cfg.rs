//! The firmware configuration device as bare-metal guests read it.

use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Site, Vm};

pub(crate) const TESTS: &[Test] = &[
    Test::new("fw_cfg::a_guest_reads_its_cpus_and_its_memory", reads).needs(needs::guests),
    Test::new("fw_cfg::firmware_finds_the_acpi_tables_as_files", files).needs(needs::guests),
    Test::new("fw_cfg::without_the_device_there_is_none", none).needs(needs::guests),
];

fn reads() -> TestResult {
    for (cpus, number, max) in [("1", 1, 1), ("3,sockets=1,cores=3,threads=1", 3, 3)] {
        let site = Site::new()?;
        let ended = Vm::start(site.guest("fwcfg").args(["--cpus", cpus]))?.end()?;
        ended.expect_code(0)?;
        ended.expect_lines(&[
            // The ports and DMA, by which the guest reads everything again.
            "fwcfg: id 0x3",
            "fwcfg: ram 0x4000000",
            "fwcfg: nographic 0x1",
            &format!("fwcfg: cpus {number:#x}"),
            &format!("fwcfg: max-cpus {max:#x}"),
        ])?;
    }
    // The number of cores is padded to a power of two in APIC ids, so the second package begins at 4.
    let site = Site::new()?;
    let topology = "6,sockets=2,cores=3,threads=1";
    let ended = Vm::start(site.guest("fwcfg").args(["--cpus", topology]))?.end()?;
    ended.expect_code(0)?;
    ended.expect_lines(&["fwcfg: cpus 0x6", "fwcfg: max-cpus 0x7"])?;
    Ok(())
}

fn files() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(&mut site.guest("fwcfg"))?.end()?;
    ended.expect_code(0)?;
    ended.expect_lines(&[
        "fwcfg: files 0x3",
        // "RSD ", "FACS", and the number of the command ALLOCATE.
        "fwcfg: file 0x20 etc/acpi/rsdp begins with [52, 53, 44, 20]",
        "fwcfg: file 0x21 etc/acpi/tables begins with [46, 41, 43, 53]",
        "fwcfg: file 0x22 etc/table-loader begins with [01, 00, 00, 00]",
    ])?;
    let direct = Vm::start(site.guest("fwcfg").args(["--machine", "direct-1"]))?.end()?;
    direct.expect_code(0)?;
    direct.expect_lines(&["fwcfg: id 0x1", "fwcfg: files 0x0"])?;
    Ok(())
}

fn none() -> TestResult {
    let site = Site::new()?;
    let ended = Vm::start(site.guest("fwcfg").arg("--fw-cfg=false"))?.end()?;
    ended.expect_code(1)?;
    ended.expect_lines(&["fwcfg: no device, signature [ff, ff, ff, ff]"])?;
    Ok(())
}
