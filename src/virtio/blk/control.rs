//! What a user asks of the device while the VM runs.

use std::io;

use super::Blk;
use super::limiter::Limiter;
use crate::block::throttle::Limits;
use crate::block::{DiskRequest, Resize};
use crate::virtio::device::VirtioDevice as _;

impl Blk {
    /// Carries out a request.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub(super) fn control(&mut self, request: DiskRequest) -> io::Result<()> {
        match request {
            DiskRequest::Resize(resize) => self.resize(resize),
            DiskRequest::Throttle(change) => {
                let before = self.limiter.limits();
                let limits = change.target(before)?;
                if limits != before {
                    self.limit(limits);
                }
                Ok(())
            }
        }
    }

    /// Sets limits, of which nothing is used yet.
    pub(super) fn limit(&mut self, limits: Limits) {
        self.limiter = Limiter::new(limits);
        self.counters.set_limits(limits);
    }

    fn resize(&mut self, resize: Resize) -> io::Result<()> {
        if !self.acquired {
            let why = "another process may be using its image now";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        if resize.shrink {
            // What has begun may be beyond the new end; the rest is checked when it begins again.
            self.withdraw();
            if self.busy > 0 {
                let why =
                    "it has requests under way, and can only grow now: pause the VM, or try again";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
        }
        self.backend.resize(resize)?;
        let before = self.info.size;
        self.read_info();
        if self.info.size != before {
            self.generation = self.generation.wrapping_add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
