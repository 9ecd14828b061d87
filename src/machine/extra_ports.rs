//! Devices that a user of the library adds to a machine.

use std::fmt;
use std::sync::Arc;

use crate::bus::{Device, Handler, SharedDevice};

/// A device that a user of the library adds to the machine, at consecutive ports.
#[derive(Clone)]
pub struct ExtraPorts {
    pub(super) first: u16,
    pub(super) count: u16,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) device: SharedDevice,
}

impl ExtraPorts {
    /// `device` at `count` ports from `first`: its [`Region::ONLY`](crate::bus::Region::ONLY).
    pub fn new<D: Device + Handler + 'static>(first: u16, count: u16, device: Arc<D>) -> Self {
        Self {
            first,
            count,
            handler: device.clone(),
            device,
        }
    }
}

impl fmt::Debug for ExtraPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtraPorts")
            .field("first", &self.first)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}
