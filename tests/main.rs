//! Tests on real KVM, run by `cargo lab test` on this machine and in both labs.

use std::process::ExitCode;

mod boot;
mod differential;
mod host;

fn main() -> ExitCode {
    let suites = [boot::TESTS, differential::TESTS, host::TESTS];
    hypernest_lab::suite::main(&suites.concat())
}
