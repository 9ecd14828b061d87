//! The state of a VM and its vCPUs: read from KVM, restored to KVM, serialized.
//!
//! - [`order`]: the parts of a vCPU's state and the order in which they are moved, with the reasons
//! - [`vcpu`](VcpuState): one vCPU
//! - [`vm`](VmState): the interrupt controllers and the timer in KVM
//! - `body`: both as bodies of sections
//!
//! The TSC, its offset and the clocks are not here: they are not copied but continued ([`crate::time`]).

mod body;
mod error;
mod msrs;
pub mod order;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

pub(crate) use body::{decode_msrs, encode_msrs};
pub use error::TransferError;
pub use msrs::{listed, restore_hyperv_msrs, save_hyperv_msrs};
pub use vcpu::{Extent, NestedCpu, Sregs, VcpuState};
pub use vm::VmState;
