//! The guest programs as an ELF file that boots by the PVH protocol.
#![no_std]
#![no_main]

mod entry;
