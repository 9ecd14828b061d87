//! `--disk FILE[,KEY=VALUE]...`: a device of the type for disks; and the images with which a saved VM's disks
//! continue on this host.

use super::build::{Build, known};
use super::parse::Wrong;
use super::problem::{Origin, Problem};
use crate::devices::disk::FILE_KEY;
use crate::devices::table::{COMMON_KEYS, DeviceConfig, DeviceKey, ID_KEY};

/// The setting.
pub(super) const DISK: &str = "disk";

/// The type of device that it stands for.
pub(super) const DISK_TYPE: &str = "virtio-blk";

fn is_disk(device: &DeviceConfig) -> bool {
    let mut keys = device.of.row().keys.iter();
    keys.any(|key| key.name == FILE_KEY)
}

/// The keys with which a saved disk may continue.
fn keys_of(device: &DeviceConfig) -> impl Iterator<Item = &'static DeviceKey> + use<> {
    let keys = device.of.row().keys.iter();
    keys.filter(|key| key.local || key.adjustable)
}

impl Build<'_> {
    /// Gives the disks of a saved VM the images of `--disk`: by id, or in their order.
    pub(super) fn saved_disks(&mut self, devices: &mut [DeviceConfig]) {
        let mut disks: Vec<_> = devices.iter_mut().filter(|d| is_disk(d)).collect();
        let ids: Vec<_> = disks.iter().map(|disk| disk.id.clone()).collect();
        let has = match ids.as_slice() {
            [] => "the saved VM has no disk".to_owned(),
            [one] => format!("the saved VM has the disk {one}"),
            more => format!("the saved VM has the disks {}", more.join(", ")),
        };
        let mut given = vec![false; disks.len()];
        for entry in self.draft.get(known(DISK)) {
            let names = disks.iter().flat_map(|disk| keys_of(disk));
            let mut names: Vec<_> = names.map(|key| key.name).collect();
            names.sort_unstable();
            names.dedup();
            names.retain(|name| *name != FILE_KEY);
            let names: Vec<_> = [FILE_KEY, ID_KEY].into_iter().chain(names).collect();
            let parts = self.named_parts(DISK, &entry.parts, &names);
            let id_key = COMMON_KEYS.iter().find(|key| key.name == ID_KEY);
            let id = id_key.zip(parts.get(ID_KEY));
            let id = id.and_then(|(key, part)| self.value(DISK, key, part));
            let id = id.map(|id| id.to_string());
            let index = match &id {
                Some(id) => ids.iter().position(|of| of == id),
                None => given.iter().position(|given| !given),
            };
            let Some(index) = index.filter(|index| !given[*index]) else {
                let what = match id {
                    Some(id) if ids.contains(&id) => format!("the disk {id} is given twice"),
                    Some(id) => format!("there is no disk {id}: {has}"),
                    None => format!("there is one more than disks: {has}"),
                };
                let wrong = Wrong::new(what, "an image for each disk of the saved VM");
                self.push(DISK, &entry.origin, wrong);
                continue;
            };
            given[index] = true;
            let disk = &mut disks[index];
            for key in keys_of(disk) {
                let part = parts.get(key.name);
                if let Some(value) = part.and_then(|part| self.value(DISK, key, part)) {
                    disk.values.insert(key.name, value);
                }
            }
        }
        for (disk, given) in disks.iter().zip(given) {
            if !given {
                self.problem(Problem {
                    origin: Origin::Flag(DISK),
                    what: format!("the disk {} of the saved VM has no image here", disk.id),
                    help: Some(format!(
                        "give the image that it was saved with: --disk FILE,id={}",
                        disk.id
                    )),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::table::DeviceType;

    #[test]
    fn the_type_is_a_disk() {
        let row = DeviceType::find(DISK_TYPE).unwrap().row();
        assert!(
            row.keys
                .iter()
                .any(|key| key.name == FILE_KEY && key.required)
        );
    }
}
