use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::block::{DiskReport, DiskRequest, ThrottleChange};
use crate::bus::DeviceRequest;
use crate::virtio::blk::tests::{DATA, DISCARD, FLUSH, Guest, IN, OUT, saved};
use crate::virtio::device::VirtioDevice as _;

fn throttle(guest: &mut Guest, iops: Option<u64>, bps: Option<u64>) {
    let change = DiskRequest::Throttle(ThrottleChange { iops, bps });
    guest.blk.request(&DeviceRequest::Disk(change)).unwrap();
}

fn report(guest: &Guest) -> DiskReport {
    guest.blk.gauge().unwrap().read().disk.unwrap()
}

/// A byte in a second: the first request is followed by none as long as this test runs.
fn closed() -> Guest {
    let mut guest = Guest::plain();
    throttle(&mut guest, None, Some(1));
    guest.begin(0, IN, 0, 512);
    assert_eq!(
        guest.disk.submitted(),
        ["read 0 512"],
        "it is larger than the bucket"
    );
    assert_eq!(guest.blk.wake_at(), None, "nothing waits");
    guest
}

#[test]
fn what_is_held_back_stays_in_the_ring_until_it_may_begin() {
    let mut guest = closed();
    guest.begin(8, OUT, 1, 512);
    guest.begin(16, OUT, 2, 512);
    assert_eq!(guest.disk.submitted(), [""; 0]);
    assert_eq!(guest.blk.outstanding().count(), 1, "they have not begun");
    assert_eq!(report(&guest).throttle.held, 1, "both wait for the same");
    let wake = guest.blk.wake_at().unwrap();
    let wait = wake.saturating_duration_since(Instant::now());
    assert!(
        wait > Duration::from_secs(60) && wait < Duration::from_secs(512),
        "{wait:?}"
    );
    // What is under way ends meanwhile; the pass that returns it finds the ring as it is.
    guest.end(Ok(()));
    assert_eq!(guest.blk.wake_at(), None);
    assert_eq!(guest.serve(), Ok(false));
    assert!(guest.blk.wake_at().is_some());
    assert_eq!(guest.driver.take_used(), Some((0, 513)));
    // Without the limit they begin.
    throttle(&mut guest, None, Some(0));
    assert_eq!(guest.serve(), Ok(false));
    assert_eq!(guest.disk.submitted().len(), 2);
    assert_eq!(guest.blk.wake_at(), None);
}

#[test]
fn the_machine_stops_is_saved_and_reset_while_requests_are_held_back() {
    let mut guest = closed();
    guest.begin(8, OUT, 1, 512);
    guest.disk.submitted();
    guest.end(Ok(()));
    let nothing = saved(&Guest::plain().blk);
    guest.blk.withdraw();
    assert!(!guest.blk.in_flight());
    assert_eq!(saved(&guest.blk), nothing);
    guest.blk.resume();
    guest.blk.restart(&mut guest.rings, &guest.dma).unwrap();
    assert_eq!(guest.disk.submitted(), [""; 0]);
    guest.blk.reset();
    // The limits are the host's, and hold for the next driver as well.
    assert_eq!(guest.serve(), Ok(false));
    assert_eq!(guest.disk.submitted(), [""; 0]);
    assert_eq!(report(&guest).throttle.bps, 1);
}

#[test]
fn requests_that_are_made_again_are_not_charged_again() {
    let mut guest = Guest::plain();
    throttle(&mut guest, Some(1), None);
    guest.disk.hold();
    guest.begin(0, IN, 0, 512);
    guest.blk.withdraw();
    guest.disk.submitted();
    guest.blk.restart(&mut guest.rings, &guest.dma).unwrap();
    assert_eq!(guest.disk.submitted(), ["read 0 512"]);
}

#[test]
fn flushes_and_what_never_begins_are_free_and_discards_cost_no_bytes() {
    let mut guest = Guest::plain();
    throttle(&mut guest, None, Some(1));
    for _ in 0..20 {
        guest.begin(0, FLUSH, 0, 0);
        guest.end(Ok(()));
        guest.driver.take_used();
        guest.driver.put(DATA, &2_u64.to_le_bytes());
        guest.driver.put(DATA + 8, &8_u64.to_le_bytes());
        guest.begin(0, DISCARD, 0, 16);
        guest.end(Ok(()));
        guest.driver.take_used();
        guest.disk.submitted();
        guest.at_once(IN, u64::MAX, 512);
    }
    assert_eq!(report(&guest).throttle.held, 0);
}

#[test]
fn limits_are_changed_one_by_one_and_shown() {
    let mut guest = Guest::plain();
    throttle(&mut guest, Some(20), None);
    throttle(&mut guest, None, Some(4096));
    let shown = report(&guest).throttle;
    assert_eq!((shown.iops, shown.bps), (20, 4096));
    throttle(&mut guest, Some(0), None);
    assert_eq!(guest.blk.limiter.limits().iops, None);
    assert_eq!(guest.blk.limiter.limits().bps, NonZeroU64::new(4096));
    let change = DiskRequest::Throttle(ThrottleChange {
        iops: Some(1_000_000_001),
        bps: Some(1),
    });
    let refused = guest.blk.request(&DeviceRequest::Disk(change)).unwrap_err();
    assert!(refused.to_string().contains("1000000000"), "{refused}");
    assert_eq!(report(&guest).throttle.bps, 4096);
}
