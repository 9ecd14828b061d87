//! The devices that the configuration asks for, by the ids that users know them by: requests to them while
//! the VM runs, and what they show in the status.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Running;
use crate::bus::{DeviceReport, DeviceRequest, Gauge, RequestError, SharedDevice};
use crate::devices::table::DeviceConfig;
use crate::life::{MachineHandle, VmEnded};

/// The devices, in the configuration's order.
#[derive(Default)]
pub(super) struct Plugged(Vec<Entry>);

struct Entry {
    name: DeviceName,
    device: SharedDevice,
}

/// What a device is called.
#[derive(Clone, Debug)]
struct DeviceName {
    id: String,
    of: &'static str,
    slot: u8,
}

impl Plugged {
    /// Adds `device`, which `config` describes.
    pub(super) fn add(&mut self, config: &DeviceConfig, device: SharedDevice) {
        let name = DeviceName {
            id: config.id.clone(),
            of: config.of.row().name,
            slot: config.slot,
        };
        self.0.push(Entry { name, device });
    }

    /// Carries out a user's request.
    ///
    /// # Errors
    /// If there is no such device, or it refuses.
    pub(super) fn request(
        &self,
        id: &str,
        request: &DeviceRequest,
    ) -> Result<(), DeviceRequestError> {
        let found = self.0.iter().find(|entry| entry.name.id == id);
        let Entry { name, device } = found.ok_or_else(|| DeviceRequestError::Unknown {
            id: id.to_owned(),
            others: self.0.iter().map(|e| e.name.id.clone()).collect(),
        })?;
        device.request(request).map_err(|error| match error {
            RequestError::OtherKind => DeviceRequestError::OtherKind {
                id: name.id.clone(),
                of: name.of,
                asked_of: request.asked_of(),
            },
            RequestError::Refused(why) => DeviceRequestError::Refused {
                id: name.id.clone(),
                why,
            },
        })
    }

    /// What shows all of them in the status.
    pub(super) fn gauges(&self) -> Gauges {
        let entries = self.0.iter();
        let gauges = entries.map(|entry| NamedGauge {
            name: entry.name.clone(),
            gauge: entry.device.gauge(),
        });
        Gauges(gauges.collect())
    }
}

/// What shows devices in the status.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauges(Arc<[NamedGauge]>);

#[derive(Debug)]
struct NamedGauge {
    name: DeviceName,
    gauge: Option<Arc<dyn Gauge>>,
}

impl Gauges {
    /// The devices as they are now.
    pub(super) fn read(&self) -> Vec<DeviceStatus> {
        let gauges = self.0.iter();
        let status = gauges.map(|NamedGauge { name, gauge }| DeviceStatus {
            id: name.id.clone(),
            of: name.of.to_owned(),
            slot: name.slot,
            report: gauge.as_ref().map(|g| g.read()).unwrap_or_default(),
        });
        status.collect()
    }
}

/// A device in the VM's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// What it is called.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub of: String,
    /// Its slot on PCI bus 0.
    pub slot: u8,
    /// What it shows besides.
    #[serde(flatten)]
    pub report: DeviceReport,
}

/// Why a device did not do what a user asked for. Nothing has changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeviceRequestError {
    /// No device has this id.
    #[error("the VM has no device {id:?}{}", listed(others))]
    Unknown {
        /// The id.
        id: String,
        /// Those that there are.
        others: Vec<String>,
    },
    /// The device is of another kind.
    #[error("the device {id} is a {of} and no {asked_of}")]
    OtherKind {
        /// Its id.
        id: String,
        /// Its type.
        of: &'static str,
        /// What the request is for.
        asked_of: &'static str,
    },
    /// It cannot do it, or not now.
    #[error("the device {id}: {why}")]
    Refused {
        /// Its id.
        id: String,
        /// The reason.
        why: String,
    },
    /// The VM may continue elsewhere, where this would not hold.
    #[error(
        "the VM is being saved or migrated: the device {id} stays as it is until that has succeeded or failed"
    )]
    Moving {
        /// Its id.
        id: String,
    },
    /// There is no VM any more.
    #[error(transparent)]
    Ended(#[from] VmEnded),
}

fn listed(ids: &[String]) -> String {
    match ids {
        [] => ", and no others".to_owned(),
        [one] => format!("; it has {one}"),
        more => format!("; it has {}", more.join(", ")),
    }
}

/// Carries out a user's request to the device `id` of the VM of `handle`. Called on a separate thread.
///
/// # Errors
/// If there is no such device, it refuses, or the VM is being saved or migrated, or ends.
pub fn request_device(
    handle: &MachineHandle,
    id: &str,
    request: DeviceRequest,
) -> Result<(), DeviceRequestError> {
    let id = id.to_owned();
    handle.run_on_main(move |vm: &mut Running<'_>| vm.request_device(&id, &request))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{DiskRequest, Resize};
    use crate::config::VmConfig;
    use crate::machine::DevicesWithoutVm;

    const GROW: DeviceRequest = DeviceRequest::Disk(DiskRequest::Resize(Resize {
        size: Some(2 << 20),
        shrink: false,
    }));

    fn devices(list: &str) -> DevicesWithoutVm {
        let config = format!(
            "name = \"test\"\nmemory = \"64M\"\nkernel = \"/nowhere\"\nhv = \"none\"\ndevice = [{list}]\n"
        );
        DevicesWithoutVm::new(&VmConfig::from_saved(config).unwrap()).unwrap()
    }

    #[test]
    fn a_request_reaches_the_device_with_the_id_and_no_other() {
        let devices = devices(r#""virtio-blk", "virtio-blk,id=data", "virtio-rng""#);
        let size = |id| devices.report(id).unwrap().disk.map(|disk| disk.size);
        devices.request("data", &GROW).unwrap();
        assert_eq!(size("data"), Some(2 << 20));
        assert_eq!(size("virtio-blk0"), Some(1 << 20));
        assert_eq!(size("virtio-rng0"), None);
        assert_eq!(devices.report("dat"), None);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_what_there_is() {
        let two = devices(r#""virtio-blk,id=data", "virtio-rng""#);
        let none = devices("");
        let says =
            |devices: &DevicesWithoutVm, id| devices.request(id, &GROW).unwrap_err().to_string();
        assert_eq!(
            says(&two, "dta"),
            "the VM has no device \"dta\"; it has data, virtio-rng0"
        );
        assert_eq!(
            says(&none, "x\u{1b}"),
            "the VM has no device \"x\\u{1b}\", and no others"
        );
        assert_eq!(
            says(&two, "virtio-rng0"),
            "the device virtio-rng0 is a virtio-rng and no disk"
        );
        let shrink = DeviceRequest::Disk(DiskRequest::Resize(Resize {
            size: Some(512),
            shrink: false,
        }));
        let refused = two.request("data", &shrink).unwrap_err().to_string();
        assert!(refused.starts_with("the device data: "), "{refused}");
    }
}
