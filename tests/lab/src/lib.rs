//! Emulated hosts with a stock kernel, real KVM, and VMX with eVMCS or SVM, on any machine.

pub mod bzimage;
pub mod cache;
pub mod cpio;
pub mod owned;
pub mod plan;
pub mod setup;
pub mod wire;
