//! What kvm-ioctls lacks, and the host's capabilities as named fields.
//!
//! - [`attachment`]: what is attached again to the VM that a reset makes
//! - [`cap`]: capabilities to switch on, by name; the version word of eVMCS
//! - [`clock`]: KVM's clock of a VM
//! - [`cpuid`]: the Hyper-V leaves that KVM can give
//! - [`dirty_ring`]: which pages a vCPU has written
//! - [`eventfd`]: eventfds in place of interrupts and exits
//! - [`exit`]: one `KVM_RUN`, and why it ended
//! - [`internal_error`]: the payload of `KVM_EXIT_INTERNAL_ERROR`
//! - [`kick`]: how another thread gets a vCPU out of `KVM_RUN`
//! - [`memory`]: guest RAM as memory slots
//! - [`msr`]: single MSRs, and which MSR accesses come to user space
//! - [`pit`]: whether KVM's PIT re-injects missed ticks
//! - [`requests`]: what KVM does before it enters the guest, without entering it
//! - [`route`]: what an interrupt line leads to
//! - [`state`]: what a VM is at, read from KVM and given to it
//! - [`stats`]: KVM's own counters of a VM or a vCPU
//! - [`timer`]: the local APIC's timer after the TSC has changed
//! - [`tsc`]: a vCPU's TSC offset and frequency
//! - [`host`]: everything that can be asked before a VM exists
//!
//! The wrappers hold no policy: each is one ioctl with typed arguments and an error that says what was tried.

#![allow(
    unsafe_code,
    reason = "ioctls that kvm-ioctls does not wrap and the kvm_run mapping; each block says why it holds"
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
    /// KVM refused to switch on a capability.
    #[error("cannot enable {name} on the {scope}: {advice}")]
    EnableCap {
        /// The capability's name in the KVM API.
        name: &'static str,
        /// `VM` or `vCPU`.
        scope: &'static str,
        /// What this usually means.
        advice: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another ioctl failed.
    #[error("{ioctl} failed while trying to {doing}")]
    Ioctl {
        /// The ioctl's name in the KVM API.
        ioctl: &'static str,
        /// What it was for.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// KVM wrote more down than a ring holds.
    #[error(
        "it is not known which pages the guest wrote: KVM's dirty ring overflowed. `--dirty-ring-size 0` \
         does without"
    )]
    DirtyRingOverflowed,
    /// Memory has no slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// More interrupt routes than KVM takes.
    #[error(
        "cannot set {count} interrupt routes: KVM takes {} at most",
        kvm_bindings::KVM_MAX_IRQ_ROUTES
    )]
    TooManyRoutes {
        /// How many there were.
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
        /// How many ranges there were.
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

/// Puts the name and the purpose of an ioctl to its error number.
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
