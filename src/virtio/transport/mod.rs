//! Ways for a driver to find a device, negotiate with it, and share its rings.

pub mod common;
pub mod pci;
