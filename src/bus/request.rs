//! What users ask of devices while the VM runs, and what devices show of themselves meanwhile.
//!
//! ```text
//!   control socket ─► machine (by id, on its main thread) ─► Device::request ─► pci ─► virtio ─► the device
//!   status ◄── Gauge::read (any thread, none of the device's locks)
//! ```
//!
//! A kind of device has one variant of [`DeviceRequest`] and one field of [`DeviceReport`]. What both are
//! made of belongs to the module below that the device is built on, as [`DiskRequest`] does to `block`.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::block::{DiskCounters, DiskReport, DiskRequest};
use crate::memory::balloon::{BalloonCounters, BalloonReport, BalloonRequest};
use crate::net::control::{NetCounters, NetReport, NetRequest};

/// What a user asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRequest {
    /// Of a disk.
    Disk(DiskRequest),
    /// Of a network card.
    Net(NetRequest),
    /// Of a balloon.
    Balloon(BalloonRequest),
}

impl DeviceRequest {
    /// What it can be asked of, for messages.
    pub fn asked_of(self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
            Self::Net(_) => "network card",
            Self::Balloon(_) => "balloon",
        }
    }

    /// Whether a VM that was saved before it could not continue after it, or would not know of it. It is then
    /// refused while the VM is saved or migrated.
    pub fn changes_saved_state(self) -> bool {
        match self {
            Self::Disk(request) => request.changes_saved_state(),
            // Where it continues, the card has a cable of its own.
            Self::Net(NetRequest::Plug(_)) => false,
            // It would have the target with which it was saved.
            Self::Balloon(BalloonRequest::Target(_)) => true,
        }
    }
}

/// Why a device did not do what was asked for. Nothing has changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// The device is of another kind.
    #[error("the device is of another kind")]
    OtherKind,
    /// It cannot do it, or not now.
    #[error("{0}")]
    Refused(String),
}

/// What a device shows of itself in the VM's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// If it is a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskReport>,
    /// If it is a network card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetReport>,
    /// If it is a balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonReport>,
}

/// Where a device's report is read: on any thread, at any time, without a wait for the device.
pub trait Gauge: fmt::Debug + Send + Sync {
    /// The report now.
    fn read(&self) -> DeviceReport;
}

impl Gauge for DiskCounters {
    fn read(&self) -> DeviceReport {
        DeviceReport {
            disk: Some(self.report()),
            ..DeviceReport::default()
        }
    }
}

impl Gauge for NetCounters {
    fn read(&self) -> DeviceReport {
        DeviceReport {
            net: Some(self.report()),
            ..DeviceReport::default()
        }
    }
}

impl Gauge for BalloonCounters {
    fn read(&self) -> DeviceReport {
        DeviceReport {
            balloon: Some(self.report()),
            ..DeviceReport::default()
        }
    }
}
