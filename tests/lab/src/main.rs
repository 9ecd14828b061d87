//! Emulated hosts.
fn main() {}
