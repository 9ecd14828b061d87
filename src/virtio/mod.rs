//! virtio 1.2: devices that share rings of requests with their driver in guest memory.
//!
//! A device ([`VirtioDevice`](device::VirtioDevice)) and the transport that leads to it are two things: the
//! transport knows registers, interrupts and notifications, the device what a request means, and both know
//! [`queue`].

pub mod balloon;
pub mod blk;
pub mod console;
pub mod device;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
mod worker;

#[cfg(test)]
pub(crate) mod testing;
