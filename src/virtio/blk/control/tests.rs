use crate::block::testing::TestDisk;
use crate::block::{DiskRequest, Resize, SECTOR};
use crate::bus::{DeviceRequest, RequestError};
use crate::state::Decoder;
use crate::virtio::blk::OnError;
use crate::virtio::blk::tests::{Guest, IN, SECTORS, saved};
use crate::virtio::device::VirtioDevice as _;

fn resize(guest: &mut Guest, sectors: u64, shrink: bool) -> Result<(), RequestError> {
    let size = Some(sectors * SECTOR);
    let request = DiskRequest::Resize(Resize { size, shrink });
    guest.blk.request(&DeviceRequest::Disk(request))
}

fn capacity(guest: &Guest) -> u64 {
    let mut capacity = [0; 8];
    guest.blk.read_config(0, &mut capacity);
    u64::from_le_bytes(capacity)
}

#[test]
fn a_disk_grows_and_the_driver_is_told() {
    let mut guest = Guest::plain();
    assert_eq!(guest.at_once(IN, SECTORS, 512), (0, 1));
    let before = guest.blk.config_generation();
    resize(&mut guest, SECTORS + 8, false).unwrap();
    assert_eq!(capacity(&guest), SECTORS + 8);
    assert_ne!(guest.blk.config_generation(), before);
    let report = guest.blk.gauge().unwrap().read();
    assert_eq!(report.disk.unwrap().size, (SECTORS + 8) * SECTOR);
    guest.begin(0, IN, SECTORS, 512);
    assert_eq!(guest.disk.submitted(), ["read 536870912 512"]);
    // What has not changed is not told.
    let before = guest.blk.config_generation();
    resize(&mut guest, SECTORS + 8, false).unwrap();
    assert_eq!(guest.blk.config_generation(), before);
    // The state has the size.
    guest.end(Ok(()));
    let body = saved(&guest.blk);
    let mut restored = Guest::new(TestDisk::new(SECTORS + 8), OnError::Report);
    let mut from = Decoder::new("function", 1, &body);
    restored.blk.load(&mut from).unwrap();
}

#[test]
fn a_disk_shrinks_only_with_leave_and_without_requests() {
    let mut guest = Guest::plain();
    let refused = |result: Result<(), RequestError>, what: &str| {
        let why = result.unwrap_err().to_string();
        assert!(why.contains(what), "{why}");
    };
    refused(resize(&mut guest, 8, false), "--shrink");
    refused(resize(&mut guest, 0, true), "multiple of 512");
    guest.begin(0, IN, SECTORS - 1, 512);
    refused(resize(&mut guest, 8, true), "under way");
    assert_eq!(capacity(&guest), SECTORS);
    // One that the host has not begun is checked again.
    guest.disk.hold();
    resize(&mut guest, 8, true).unwrap();
    assert_eq!(capacity(&guest), 8);
    guest.disk.submitted();
    let (rings, dma) = (&mut guest.rings, &guest.dma);
    guest.blk.restart(rings, dma).unwrap();
    assert_eq!(guest.disk.submitted(), [""; 0]);
    assert_eq!(
        (guest.driver.take_used(), guest.status()),
        (Some((0, 0)), 1)
    );
}

#[test]
fn a_disk_that_others_may_use_is_not_resized() {
    let mut guest = Guest::plain();
    guest.blk.release();
    let why = resize(&mut guest, SECTORS + 8, false).unwrap_err();
    assert!(why.to_string().contains("another process"), "{why}");
    guest.blk.acquire().unwrap();
    resize(&mut guest, SECTORS + 8, false).unwrap();
}
