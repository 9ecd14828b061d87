use crate::block::testing::TestDisk;
use crate::block::{DiskReport, DiskRequest, Resize, SECTOR};
use crate::bus::{DeviceRequest, RequestError};
use crate::state::Decoder;
use crate::virtio::blk::OnError;
use crate::virtio::blk::tests::{DATA, DISCARD, FLUSH, Guest, IN, OUT, SECTORS, saved};
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

fn report(guest: &Guest) -> DiskReport {
    guest.blk.gauge().unwrap().read().disk.unwrap()
}

#[test]
fn requests_are_counted_when_they_end() {
    let mut guest = Guest::plain();
    guest.blk.set_features(0);
    let failure = || Err(std::io::ErrorKind::PermissionDenied.into());
    guest.begin(0, IN, 0, 1024);
    let under_way = report(&guest);
    assert_eq!((under_way.in_flight, under_way.rd_operations), (1, 0));
    std::thread::sleep(std::time::Duration::from_millis(2));
    guest.end(Ok(()));
    guest.begin(0, IN, 0, 512);
    guest.end(failure());
    // This one is a write and a flush on the host, as its driver cannot flush.
    guest.begin(0, OUT, 0, 512);
    guest.end(Ok(()));
    assert_eq!(report(&guest).wr_operations, 0);
    guest.end(Ok(()));
    guest.begin(0, FLUSH, 0, 0);
    guest.end(Ok(()));
    guest.driver.put(DATA, &2_u64.to_le_bytes());
    guest.driver.put(DATA + 8, &8_u64.to_le_bytes());
    guest.begin(0, DISCARD, 0, 16);
    guest.end(Ok(()));
    guest.end(failure());
    guest.disk.submitted();
    while guest.driver.take_used().is_some() {}
    guest.at_once(IN, SECTORS, 512);
    let report = report(&guest);
    // Longer than it was waited for.
    assert!(report.rd_total_time_ns >= 2_000_000, "{report:?}");
    let expected = DiskReport {
        size: SECTORS * SECTOR,
        rd_bytes: 1024,
        rd_operations: 1,
        failed_rd_operations: 1,
        wr_bytes: 512,
        wr_operations: 1,
        flush_operations: 1,
        failed_unmap_operations: 1,
        invalid_operations: 1,
        rd_total_time_ns: report.rd_total_time_ns,
        wr_total_time_ns: report.wr_total_time_ns,
        flush_total_time_ns: report.flush_total_time_ns,
        ..DiskReport::default()
    };
    assert_eq!(report, expected);
}

#[test]
fn an_error_that_pauses_is_shown_until_the_resume_and_is_no_failed_request() {
    let mut guest = Guest::plain();
    guest.begin(0, OUT, 0, 512);
    guest.end(Err(std::io::ErrorKind::StorageFull.into()));
    let shown = report(&guest);
    assert!(shown.paused && shown.in_flight == 0, "{shown:?}");
    guest.blk.resume();
    guest.blk.restart(&mut guest.rings, &guest.dma).unwrap();
    guest.end(Ok(()));
    let shown = report(&guest);
    assert!(!shown.paused, "{shown:?}");
    assert_eq!((shown.wr_operations, shown.failed_operations()), (1, 0));
}
