//! Configuration -> VM: the memory map and what is wired where. The only place that knows every device.

pub mod layout;
pub mod lines;
pub mod signals;
pub mod vm;
