//! Tests on real KVM, run by `cargo lab test` on this machine and in both labs.

use std::process::ExitCode;

mod boot;
mod cpu;
mod differential;
mod enlightenments;
mod errors;
mod host;
mod lifecycle;
mod linux;
mod needs;
mod stats;
mod stock_linux;
mod terminal;
mod vm;

fn main() -> ExitCode {
    let suites = [
        boot::TESTS,
        cpu::TESTS,
        stock_linux::TESTS,
        enlightenments::TESTS,
        lifecycle::TESTS,
        terminal::TESTS,
        errors::TESTS,
        stats::TESTS,
        differential::TESTS,
        host::TESTS,
    ];
    hypernest_lab::suite::main(&suites.concat())
}
