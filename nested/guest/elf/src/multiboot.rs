//! The guest programs as a file that boots by the Multiboot protocol, version 1.
//!
//! A separate file, because loaders that support both protocols do not all choose the same one.
#![no_std]
#![no_main]

mod entry;

core::arch::global_asm!(include_str!("multiboot.s"), options(att_syntax));
