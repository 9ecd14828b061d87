//! What kvm-ioctls lacks, and the host's capabilities as named fields.
#![allow(
    unsafe_code,
    reason = "ioctls and the kvm_run mapping; each block says why it holds"
)]

pub mod exit;
pub mod kick;
