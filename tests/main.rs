//! Tests on real KVM, run by `cargo lab test` on this machine and in both labs.

use std::process::ExitCode;

mod boot;
mod host;

fn main() -> ExitCode {
    let suites = [boot::TESTS, host::TESTS];
    hypernest_lab::suite::main(&suites.concat())
}
