//! Layouts and arithmetic that a hypervisor and its nested guests share.
//!
//! Everything here is plain data and pure functions, so that the VMM, its tests, the benchmarks and the
//! freestanding guest programs share the same numbers.
#![no_std]
#![forbid(unsafe_code)]

pub mod assist;
pub mod board;
pub mod evmcs;
pub mod hyperv;
pub mod l2exit;
pub mod nested_state;
pub mod probe;
pub mod svm;
pub mod taxonomy;
pub mod tsc;
pub mod vmx;
