//! Layouts and arithmetic that a hypervisor and its nested guests share.
#![no_std]
#![forbid(unsafe_code)]
