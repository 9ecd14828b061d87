//! vCPU threads: run, classify, dispatch, count.

pub mod control;
pub mod create;
pub mod dispatch;
mod failure;
pub mod platform;
pub mod ring;
pub mod set;
pub mod stats;
pub mod thread;
