//! Tests on real KVM, run by `cargo lab test` on this machine and in both labs.

use std::process::ExitCode;

mod balloon;
mod beside_qemu;
mod boot;
mod console;
mod cpu;
mod debian;
mod differential;
mod disk;
mod doctor;
mod endings;
mod enlightenments;
mod errors;
mod evmcs;
mod firmware;
mod fw_cfg;
mod golden;
mod host;
mod kernel_log;
mod kernels;
mod l2_exit;
mod l2probe;
mod lifecycle;
mod linux;
mod memory;
mod micro;
mod migration;
mod moves;
mod needs;
mod net;
mod process;
mod reenlightenment;
mod report_page;
mod state;
mod stats;
mod stock_linux;
mod svm;
mod terminal;
mod time;
mod trust;
mod tsc_bench;
mod virtio;
mod vm;
mod world;
mod xen;

fn main() -> ExitCode {
    let mut suites = vec![
        boot::TESTS,
        cpu::TESTS,
        stock_linux::TESTS,
        virtio::TESTS,
        enlightenments::TESTS,
        evmcs::TESTS,
        svm::TESTS,
        lifecycle::TESTS,
        firmware::TESTS,
        fw_cfg::TESTS,
        endings::TESTS,
        world::TESTS,
        process::TESTS,
        memory::TESTS,
        terminal::TESTS,
        tsc_bench::TESTS,
        errors::TESTS,
        stats::TESTS,
        state::TESTS,
        time::TESTS,
        migration::TESTS,
        trust::TESTS,
        reenlightenment::TESTS,
        differential::TESTS,
        beside_qemu::TESTS,
        golden::TESTS,
        moves::TESTS,
        disk::TESTS,
        net::TESTS,
        console::TESTS,
        balloon::TESTS,
        debian::TESTS,
        doctor::TESTS,
        host::TESTS,
        l2_exit::TESTS,
        micro::TESTS,
        report_page::TESTS,
        l2probe::TESTS,
        xen::TESTS,
        kernels::NEWEST,
        kernel_log::TESTS,
    ];
    // Twelve boots of three kernels, another distribution, and an L2 of a Linux in the Intel lab.
    if vm::is_long_run() {
        suites.push(kernels::TESTS);
        suites.push(debian::LONG);
        suites.push(disk::LONG);
    }
    hypernest_lab::suite::main(&suites.concat())
}
