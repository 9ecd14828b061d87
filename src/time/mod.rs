//! TSC and clocks: the time of a VM that is saved, restored or moved to a host with another TSC frequency.
//!
//! - [`ratio`]: KVM's scaling of the TSC, rounded as KVM and the CPU round it
//! - [`page`]: Hyper-V's reference TSC page
//! - [`saved`]: a VM's time at one instant
//! - [`plan()`]: decides how the TSC continues on another host
//!
//! All of that is pure; the code that carries it out in KVM is thin:
//!
//! - [`capture()`]: reads the clocks
//! - [`apply()`]: continues them in a new VM
//! - [`switch`](mod@switch): keeps them running while the TSC's frequency changes
//!
//! Guest TSC = host TSC × ratio + offset, with one offset on all vCPUs. KVM derives everything else that a
//! guest can read (reference time, kvmclock, timers) from that and from its own clock of the VM.

mod access;
mod apply;
mod capture;
mod error;
mod host;
pub mod page;
mod plan;
pub mod ratio;
pub mod saved;
pub mod switch;

pub use apply::apply;
pub use capture::{Captured, capture};
pub use error::TimeError;
pub use plan::{HostTsc, Policy, TimePlan, TscRefusal, plan};
pub use saved::{Downtime, SavedTime};
