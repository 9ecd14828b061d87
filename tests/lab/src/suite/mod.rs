//! Tests that run on real hosts: each names its requirements, and is skipped with that text on a host without
//! them.
//!
//! A test binary (`harness = false`) passes its tests to [`main`]. Every test runs in its own process, so a
//! panic, a leak or an abort does not affect other tests, and its output is shown only if it fails.

pub mod protocol;
mod runner;
pub mod verdict;

use std::error::Error;

use crate::host::{Host, IntelCpu, Kernel};

pub(crate) use self::runner::describe;
pub use self::runner::main;

/// A test's result; a panic counts as an error.
pub type TestResult = Result<(), Box<dyn Error>>;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name: `module::what_holds`.
    pub name: &'static str,
    /// The hosts for which it is meant; empty for all. Use `needs` if a capability can be queried instead.
    pub hosts: &'static [Host],
    /// The host that the test needs.
    pub stage: Stage,
    /// The missing capability, if there is one.
    pub needs: fn() -> Result<(), String>,
    /// The time limit in seconds of wall time; in the Intel lab it is multiplied by [`INTEL_PATIENCE`].
    pub limit_seconds: u32,
    /// The test's function.
    pub run: fn() -> TestResult,
}

/// The factor by which the Intel lab is slower.
pub const INTEL_PATIENCE: u32 = 5;

impl Test {
    /// A test for all hosts in the plain stage that needs only `/dev/kvm`.
    pub const fn new(name: &'static str, run: fn() -> TestResult) -> Self {
        Self {
            name,
            hosts: &[],
            stage: Stage::PLAIN,
            needs: needs_kvm,
            limit_seconds: 60,
            run,
        }
    }

    /// The same test with another condition, which replaces that for `/dev/kvm`.
    #[must_use]
    pub const fn needs(mut self, needs: fn() -> Result<(), String>) -> Self {
        self.needs = needs;
        self
    }

    /// The same test in another stage.
    #[must_use]
    pub const fn stage(mut self, stage: Stage) -> Self {
        self.stage = stage;
        self
    }

    /// The same test with another time limit.
    #[must_use]
    pub const fn limit_seconds(mut self, seconds: u32) -> Self {
        self.limit_seconds = seconds;
        self
    }

    /// The same test, only for some hosts.
    #[must_use]
    pub const fn only_on(mut self, hosts: &'static [Host]) -> Self {
        self.hosts = hosts;
        self
    }

    /// Whether it is meant for `host`.
    pub fn is_for(&self, host: Host) -> bool {
        self.hosts.is_empty() || self.hosts.contains(&host)
    }
}

/// The setup of a host. Each stage costs one boot per lab: use few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// CPUs of an emulated host.
    pub cpus: u8,
    /// Memory of an emulated host.
    pub memory_mib: u32,
    /// Kernel of an emulated host.
    pub kernel: Kernel,
    /// CPU of the emulated Intel host.
    pub intel: IntelCpu,
    /// Parts of the lab's directory in an emulated host, as `linux-6.12/vmlinux`. Every megabyte costs time
    /// in the Intel lab.
    pub with: &'static [&'static str],
    /// Images of the lab's directory that the AMD host has as disks, from `/dev/vda` on. What is written to
    /// them is lost when the host ends; an image may be there several times.
    pub disks: &'static [&'static str],
    /// CPU features removed from the emulated AMD host, by QEMU's names: `sse4.2` makes checksums of much
    /// data three times as fast.
    pub without: &'static [&'static str],
    /// Module parameters of an emulated host, as `kvm_intel.enable_shadow_vmcs=0`.
    pub parameters: &'static [&'static str],
    /// The stage that is booted before this one, and whose files in [`CARRIED_DIR`](crate::plan::CARRIED_DIR)
    /// it receives.
    pub after: Option<&'static str>,
}

impl Stage {
    /// One CPU, Linux 6.12, nothing else.
    pub const PLAIN: Stage = Stage {
        name: "plain",
        cpus: 1,
        memory_mib: crate::host::DEFAULT_MEMORY_MIB,
        kernel: Kernel::Linux612,
        intel: IntelCpu::Skylake,
        with: &[],
        disks: &[],
        without: &[],
        parameters: &[],
        after: None,
    };
}

/// The condition of most tests.
pub fn needs_kvm() -> Result<(), String> {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/dev/kvm ({error})")),
    }
}
