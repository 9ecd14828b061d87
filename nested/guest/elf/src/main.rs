//! The guest programs as an ELF file that boots by the PVH protocol.
#![no_std]
#![no_main]

mod entry;

core::arch::global_asm!(include_str!("pvh.s"), options(att_syntax));
