//! Wrappers of KVM that kvm-ioctls lacks, and the host's capabilities as named fields.
//!
//! - [`attachment`]: resources that are attached again to the VM after a reset
//! - [`cap`]: capabilities to enable, by name; the version word of eVMCS
//! - [`clock`]: KVM's clock of a VM
//! - [`cpuid`]: the Hyper-V leaves that KVM supports
//! - [`dirty_ring`]: the pages that a vCPU has written
//! - [`eventfd`]: eventfds in place of interrupts and exits
//! - [`exit`]: one `KVM_RUN`, and why it returned
//! - [`internal_error`]: the payload of `KVM_EXIT_INTERNAL_ERROR`
//! - [`kick`]: makes a vCPU leave `KVM_RUN` from another thread
//! - [`memory`]: guest RAM as memory slots
//! - [`msr`]: single MSRs, and the MSR accesses that exit to user space
//! - [`pit`]: whether KVM's PIT re-injects missed ticks
//! - [`requests`]: KVM's work before a guest entry, without the entry
//! - [`route`]: the targets of interrupt lines
//! - [`state`]: the state of a VM, read from KVM and restored to it
//! - [`stats`]: KVM's own counters of a VM or a vCPU
//! - [`timer`]: the local APIC's timer after the TSC has changed
//! - [`tsc`]: a vCPU's TSC offset and frequency
//! - [`host`]: everything that can be queried before a VM exists
//!
//! The wrappers hold no policy: each is one ioctl with typed arguments and an error that names the attempted
//! operation.

#![allow(
    unsafe_code,
    reason = "ioctls that kvm-ioctls does not wrap and the kvm_run mapping; each block states why it is sound"
)]

use std::io;

use thiserror::Error;

use crate::memory::slots::SlotError;

pub mod attachment;
pub mod cap;
pub mod clock;
pub mod cpuid;
pub mod dirty_ring;
pub mod eventfd;
pub mod exit;
pub mod host;
pub mod internal_error;
mod ioctl;
pub mod kick;
pub mod memory;
pub mod msr;
pub mod pit;
pub mod requests;
pub mod route;
pub mod state;
pub mod stats;
pub mod timer;
pub mod tsc;

/// A request that KVM did not carry out.
#[derive(Debug, Error)]
pub enum KvmError {
    /// KVM refused to enable a capability.
    #[error("cannot enable {name} on the {scope}: {advice}")]
    EnableCap {
        /// The capability's name in the KVM API.
        name: &'static str,
        /// `VM` or `vCPU`.
        scope: &'static str,
        /// The usual cause.
        advice: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another ioctl failed.
    #[error("{ioctl} failed while trying to {doing}")]
    Ioctl {
        /// The ioctl's name in the KVM API.
        ioctl: &'static str,
        /// The operation that failed.
        doing: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// KVM dirtied more pages than a ring holds.
    #[error(
        "the pages that the guest wrote are unknown: KVM's dirty ring overflowed; `--dirty-ring-size 0` \
         disables it"
    )]
    DirtyRingOverflowed,
    /// No memory slot is available.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// More interrupt routes than KVM accepts.
    #[error(
        "cannot set {count} interrupt routes: KVM accepts at most {}",
        kvm_bindings::KVM_MAX_IRQ_ROUTES
    )]
    TooManyRoutes {
        /// The number of routes.
        count: usize,
    },
    /// More or larger MSR ranges than a filter can hold.
    #[error(
        "cannot send {ranges} MSR ranges to user space, the largest of {largest} MSRs: a filter holds {} \
         ranges of {} MSRs",
        kvm_bindings::KVM_MSR_FILTER_MAX_RANGES,
        msr::MAX_MSRS_PER_RANGE
    )]
    TooManyMsrs {
        /// The number of ranges.
        ranges: usize,
        /// The size of the largest.
        largest: usize,
    },
}

impl KvmError {
    /// The error number, where the kernel gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::EnableCap { source, .. } | Self::Ioctl { source, .. } => source.raw_os_error(),
            Self::DirtyRingOverflowed
            | Self::Slot(_)
            | Self::TooManyRoutes { .. }
            | Self::TooManyMsrs { .. } => None,
        }
    }
}

/// Adds the name and the purpose of an ioctl to its error number.
fn ioctl_error<E: Into<io::Error>>(
    ioctl: &'static str,
    doing: &'static str,
) -> impl FnOnce(E) -> KvmError {
    move |source| KvmError::Ioctl {
        ioctl,
        doing,
        source: source.into(),
    }
}
