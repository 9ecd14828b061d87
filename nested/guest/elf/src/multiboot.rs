//! The guest programs as a file that boots by the Multiboot protocol, version 1.
//!
//! A file of its own because loaders that know both protocols choose one, and not all the same.
#![no_std]
#![no_main]

mod entry;

core::arch::global_asm!(include_str!("multiboot.s"), options(att_syntax));
