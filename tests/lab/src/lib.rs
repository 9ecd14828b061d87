//! Emulated hosts with a stock kernel, real KVM, and VMX with eVMCS or SVM, on any machine.

pub mod binaries;
pub mod boot;
pub mod bzimage;
pub mod cache;
pub mod cpio;
pub mod demo;
pub mod exec;
pub mod fetch;
pub mod host;
pub mod isolated;
pub mod owned;
pub mod plan;
pub mod progress;
pub mod session;
pub mod setup;
pub mod suite;
pub mod test;
pub mod wire;
