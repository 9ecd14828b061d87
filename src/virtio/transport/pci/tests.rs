use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::block::testing::TestDisk;
use crate::block::throttle::Limits;
use crate::block::{DiskRequest, Resize, ThrottleChange};
use crate::bus::Device as _;
use crate::life;
use crate::memory::{Dma, GuestRam};
use crate::pci::ConfigSpace as _;
use crate::pci::testing::TestBus;
use crate::virtio::blk::{Blk, BlkOptions, OnError, Topology};
use crate::virtio::rng::Rng;
use crate::virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, PackedDriver, RAM, RING, WRITE};
use crate::virtio::transport::common::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

const MMIO: u64 = 0xe000_0000;
const MSIX: u64 = 0xe100_0000;

/// An entropy device, with the driver's side of it.
fn bus(ram: &GuestRam) -> TestBus {
    bus_with(Box::new(Rng::default()), ram, &life::channel().0)
}

fn bus_with(device: Box<dyn VirtioDevice>, ram: &GuestRam, events: &GuestEvents) -> TestBus {
    let place = DevFn::new(3, 0).unwrap();
    let vectors = vectors(&*device);
    TestBus::new(ram, vectors, |requester| {
        let doorbells = Doorbells::default();
        slot(place, device, true, requester, &doorbells, events).unwrap()
    })
}

struct Guest {
    bus: TestBus,
    driver: Driver,
}

impl Guest {
    /// The BARs are placed and decoded, the function is a bus master.
    fn new() -> Self {
        let driver = Driver::new(8);
        let bus = bus(&driver.ram);
        Self::on(bus, driver)
    }

    fn on(bus: TestBus, driver: Driver) -> Self {
        bus.set_config(0x10, 4, 0xe000_0000);
        bus.set_config(0x18, 4, 0xe100_0000);
        bus.set_config(0x04, 2, 0x0006);
        bus.slot.resume();
        Self { bus, driver }
    }

    fn common(&self, offset: u64, data: &[u8]) {
        assert!(self.bus.mmio.write(MMIO + COMMON + offset, data));
    }

    fn status(&self) -> u8 {
        let [status] = self.bus.read(MMIO + 0x14);
        status
    }

    /// Message `n` of MSI-X has data `0x40 + n` and is not masked.
    fn enable_msix(&self) {
        for vector in 0..2_u32 {
            let entry = MSIX + u64::from(vector) * 16;
            self.bus.mmio.write(entry, &0xfee0_0000_u64.to_le_bytes());
            let data = u64::from(0x40 + vector);
            self.bus.mmio.write(entry + 8, &data.to_le_bytes());
        }
        let [msix] = self.bus.capabilities(0x11)[..] else {
            panic!("one MSI-X capability");
        };
        self.bus.set_config(msix + 2, 2, 0x8000);
    }

    /// As a driver starts a device, with a ring of 8.
    fn start(&self, features: u64) {
        self.common(0x14, &[0]);
        assert_eq!(self.status(), 0);
        self.common(0x14, &[3]);
        for half in 0..2_u32 {
            self.common(0x08, &half.to_le_bytes());
            let bytes = features.to_le_bytes();
            let at = 4 * half as usize;
            self.common(0x0c, &bytes[at..at + 4]);
        }
        self.common(0x14, &[0xb]);
        assert_eq!(self.status(), 0xb);
        self.common(0x10, &[0, 0]);
        self.common(0x16, &[0, 0]);
        self.common(0x18, &[8, 0]);
        self.common(0x1a, &[1, 0]);
        self.common(0x20, &RING.descriptors.to_le_bytes());
        self.common(0x28, &RING.available.to_le_bytes());
        self.common(0x30, &RING.used.to_le_bytes());
        self.common(0x1c, &[1, 0]);
        self.common(0x14, &[0xf]);
    }

    fn notify(&self) {
        self.bus.mmio.write(MMIO + NOTIFY, &[0, 0]);
    }

    /// Offers a buffer of `len` bytes and waits for it.
    fn ask(&mut self, len: u32) -> (u32, u32) {
        self.driver
            .describe(RING.descriptors, 0, (BUFFERS, len, WRITE, 0));
        self.driver.offer(0);
        self.notify();
        self.used()
    }

    fn used(&mut self) -> (u32, u32) {
        wait(|| self.driver.take_used())
    }
}

fn wait<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn messages(guest: &Guest, count: usize) -> Vec<u32> {
    let mut all = Vec::new();
    wait(|| {
        all.extend(guest.bus.messages.take());
        (all.len() >= count).then_some(())
    });
    all
}

#[test]
fn the_function_is_a_modern_entropy_device() {
    let guest = Guest::new();
    let bus = &guest.bus;
    assert_eq!(bus.config(0x00, 4), 0x1044_1af4);
    assert_eq!(bus.config(0x08, 4), 0x00ff_0001);
    assert_eq!(bus.config(0x2c, 4), 0x1100_1af4);
    assert_eq!(bus.config(0x3d, 1), 1, "INTA");
    // (length, type, BAR, offset)
    let found: Vec<_> = bus
        .capabilities(9)
        .into_iter()
        .map(|at| [(2, 1), (3, 1), (4, 1), (8, 4)].map(|(field, len)| bus.config(at + field, len)))
        .collect();
    assert_eq!(
        found,
        [
            [16, 1, 0, 0],
            [16, 3, 0, 0x1000],
            [16, 4, 0, 0x2000],
            [20, 2, 0, 0x3000],
            [20, 5, 0, 0]
        ]
    );
    let notify = bus.capabilities(9)[3];
    assert_eq!(bus.config(notify + 16, 4), 4, "the multiplier");
    let [msix] = bus.capabilities(0x11)[..] else {
        panic!("one MSI-X capability");
    };
    assert_eq!(bus.config(msix + 2, 2), 1, "two vectors");
    assert_eq!(
        (bus.config(msix + 4, 4), bus.config(msix + 8, 4)),
        (2, 0x802)
    );
}

#[test]
fn requests_are_served_and_interrupt_by_msix() {
    let mut guest = Guest::new();
    guest.enable_msix();
    guest.start(VERSION_1 | EVENT_IDX | INDIRECT_DESC);
    for _ in 0..20 {
        guest.driver.put(BUFFERS, &[0; 32]);
        // Of the next one it wants to know.
        let seen: [u8; 2] = guest.driver.get(RING.used + 2);
        guest.driver.set_used_event(u16::from_le_bytes(seen));
        assert_eq!(guest.ask(32), (0, 32));
        assert_ne!(guest.driver.get::<32>(BUFFERS), [0; 32]);
        assert_eq!(messages(&guest, 1), [0x41]);
    }
    assert!(!guest.bus.line.high());
}

#[test]
fn requests_interrupt_by_the_pin_without_msix() {
    let mut guest = Guest::new();
    guest.start(VERSION_1);
    assert_eq!(guest.ask(8), (0, 8));
    wait(|| guest.bus.line.high().then_some(()));
    assert_eq!(guest.bus.config(6, 2) & 8, 8, "Interrupt Status");
    // Interrupt Disable hides it from the line, and from nothing else.
    guest.bus.set_config(4, 2, 0x0406);
    assert!(!guest.bus.line.high());
    guest.bus.set_config(4, 2, 0x0006);
    assert!(guest.bus.line.high());
    assert_eq!(guest.bus.read(MMIO + ISR), [1]);
    assert!(!guest.bus.line.high());
    assert_eq!(guest.bus.read(MMIO + ISR), [0]);
    assert_eq!(guest.bus.config(6, 2) & 8, 0);
}

/// Has one queue, and panics when it is served.
struct Panics;

impl VirtioDevice for Panics {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn queues(&self) -> &[u16] {
        &[8]
    }

    fn serve(&mut self, _: usize, _: &mut Ring, _: &Dma) -> Result<bool, RingError> {
        panic!("for a test");
    }
}

fn blk(disk: &TestDisk, events: &GuestEvents) -> Blk {
    let mut blk = Blk::new(BlkOptions {
        backend: disk.backend(),
        id: "disk0".to_owned(),
        serial: [0; 20],
        queues: 1,
        topology: Topology::default(),
        write_cache: None,
        on_error: OnError::Report,
        events: events.clone(),
        limits: Limits::default(),
    });
    blk.acquire().unwrap();
    blk
}

/// A disk whose requests end when the test says so, and its driver, which has a flush under way.
fn busy_disk() -> (TestDisk, Guest) {
    let mut driver = Driver::new(8);
    let disk = TestDisk::new(8);
    let (events, ..) = life::channel();
    let blk = blk(&disk, &events);
    driver.describe(RING.descriptors, 0, (BUFFERS, 16, NEXT, 1));
    driver.describe(RING.descriptors, 1, (BUFFERS + 16, 1, WRITE, 0));
    driver.put(BUFFERS, &[4]);
    driver.offer(0);
    let guest = Guest::on(bus_with(Box::new(blk), &driver.ram, &events), driver);
    guest.start(VERSION_1);
    wait(|| (disk.submitted() == ["flush"]).then_some(()));
    (disk, guest)
}

#[test]
fn the_driver_reads_the_devices_configuration() {
    let (_disk, guest) = busy_disk();
    assert_eq!(guest.bus.config(0x00, 4), 0x1042_1af4);
    assert_eq!(guest.bus.config(0x08, 4), 0x0100_0001);
    assert_eq!(guest.bus.read(MMIO + DEVICE), 8_u64.to_le_bytes());
    assert_eq!(guest.bus.read(MMIO + DEVICE + 0xffc), [0; 4]);
}

#[test]
fn the_driver_writes_the_devices_configuration() {
    // virtio 1.2, 5.2.3 and 5.2.4.
    const FLUSH: u64 = 1 << 9;
    const CONFIG_WCE: u64 = 1 << 11;
    const WRITEBACK: u64 = MMIO + DEVICE + 32;
    let (disk, mut guest) = busy_disk();
    disk.end(0, Ok(()));
    assert_eq!(guest.used(), (0, 1));
    guest.driver.rewind();
    let write = |value: u8| {
        assert!(guest.bus.mmio.write(WRITEBACK, &[value]));
        guest.bus.read::<1>(WRITEBACK)
    };
    assert_eq!(write(0), [1], "not agreed on");
    guest.start(VERSION_1 | FLUSH | CONFIG_WCE);
    assert_eq!(write(0), [0]);
    assert!(!guest.bus.line.high(), "the driver knows");
    let body = save(&guest.bus);
    assert_eq!(write(1), [1]);
    guest.bus.slot.quiesce();
    wait(|| guest.bus.slot.drained().then_some(()));
    load(&guest.bus, &body).unwrap();
    assert_eq!(guest.bus.read(WRITEBACK), [0]);
    guest.bus.slot.resume();
    guest.start(VERSION_1 | CONFIG_WCE);
    assert_eq!(guest.bus.read(WRITEBACK), [0], "it cannot flush");
    guest.start(VERSION_1 | FLUSH | CONFIG_WCE);
    assert_eq!(guest.bus.read(WRITEBACK), [1]);
}

#[test]
fn a_driver_with_packed_rings_is_served_and_goes_on_where_it_was_saved() {
    let mut driver = PackedDriver::new(8);
    let guest = Guest::on(bus(&driver.ram), Driver::new(8));
    guest.enable_msix();
    guest.start(VERSION_1 | EVENT_IDX | RING_PACKED);
    // In a lap and a half.
    for id in 0..12 {
        driver.set_event(driver.used.event(), 2);
        driver.offer(id, &[(BUFFERS, 32, WRITE)]);
        guest.notify();
        assert_eq!(wait(|| driver.take_used()), (id, 32));
        assert_eq!(messages(&guest, 1), [0x41]);
    }
    guest.bus.slot.quiesce();
    driver.offer(12, &[(BUFFERS, 8, 0), (BUFFERS, 5, WRITE)]);
    let body = save(&guest.bus);
    let moved = Guest::on(bus(&driver.ram), Driver::new(8));
    load(&moved.bus, &body).unwrap();
    assert_eq!(save(&moved.bus), body);
    moved.bus.slot.resume();
    assert_eq!(wait(|| driver.take_used()), (12, 5));
    for length in 0..body.len() {
        load(&guest.bus, &body[..length]).unwrap_err();
    }
    // Where they are not offered.
    let place = DevFn::new(3, 0).unwrap();
    let split = TestBus::new(&driver.ram, 2, |requester| {
        let (device, doorbells) = (Box::<Rng>::default(), Doorbells::default());
        let events = life::channel().0;
        slot(place, device, false, requester, &doorbells, &events).unwrap()
    });
    let refused = load(&split, &body).unwrap_err().to_string();
    assert!(refused.contains("not offered"), "{refused}");
}

fn grow(guest: &Guest, sectors: u64) {
    let resize = Resize {
        size: Some(sectors * 512),
        shrink: false,
    };
    let request = DeviceRequest::Disk(DiskRequest::Resize(resize));
    guest.bus.slot.request(&request).unwrap();
}

fn generation(guest: &Guest) -> u8 {
    let [generation] = guest.bus.read(MMIO + 0x15);
    generation
}

#[test]
fn a_driver_is_told_of_another_configuration() {
    let (_disk, guest) = busy_disk();
    let before = generation(&guest);
    grow(&guest, 16);
    assert_ne!(generation(&guest), before);
    assert_eq!(guest.bus.read(MMIO + DEVICE), 16_u64.to_le_bytes());
    wait(|| guest.bus.line.high().then_some(()));
    assert_eq!(guest.bus.read(MMIO + ISR), [2]);
    guest.enable_msix();
    grow(&guest, 24);
    assert_eq!(messages(&guest, 1), [0x40]);
    // A size that it has is no news.
    grow(&guest, 24);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.bus.messages.take(), [0_u32; 0]);
}

#[test]
fn a_driver_that_is_stopped_or_not_ready_is_told_later() {
    let (disk, guest) = busy_disk();
    disk.end(0, Ok(()));
    guest.enable_msix();
    guest.bus.slot.quiesce();
    wait(|| guest.bus.slot.drained().then_some(()));
    let unchanged = save(&guest.bus);
    grow(&guest, 16);
    std::thread::sleep(Duration::from_millis(20));
    guest.bus.messages.take();
    // Also in another process.
    let body = save(&guest.bus);
    assert_ne!(body, unchanged);
    let (events, ..) = life::channel();
    let of_16 = TestDisk::new(16);
    let blk = blk(&of_16, &events);
    let moved = Guest {
        bus: bus_with(Box::new(blk), &guest.driver.ram, &events),
        driver: Driver::new(8),
    };
    load(&moved.bus, &body).unwrap();
    assert_eq!(save(&moved.bus), body);
    for guest in [&guest, &moved] {
        guest.bus.slot.resume();
        assert_eq!(messages(guest, 1), [0x40]);
        guest.bus.slot.quiesce();
    }
    guest.bus.slot.resume();
    // It reads the configuration when it begins.
    guest.common(0x14, &[0]);
    grow(&guest, 24);
    guest.common(0x14, &[0]);
    guest.start(VERSION_1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.bus.messages.take(), [0_u32; 0]);
}

#[test]
fn what_a_limit_holds_back_begins_without_another_notification() {
    let (disk, mut guest) = busy_disk();
    let change = ThrottleChange {
        iops: Some(50),
        bps: None,
    };
    let request = DeviceRequest::Disk(DiskRequest::Throttle(change));
    guest.bus.slot.request(&request).unwrap();
    guest.driver.put(BUFFERS + 0x100, &[0; 16]);
    for (index, descriptor) in (2..).zip([
        (BUFFERS + 0x100, 16, NEXT, 3),
        (BUFFERS + 0x200, 512, NEXT | WRITE, 4),
        (BUFFERS + 16, 1, WRITE, 0),
    ]) {
        guest.driver.describe(RING.descriptors, index, descriptor);
    }
    for _ in 0..8 {
        guest.driver.offer(2);
    }
    guest.notify();
    let mut begun = 0;
    wait(|| {
        begun += disk.submitted().len();
        (begun == 8).then_some(())
    });
    let report = guest.bus.slot.gauge().unwrap().read().disk.unwrap();
    // At most six come at once, and those two wait one after the other.
    assert!((1..=8).contains(&report.throttle.held), "{report:?}");
    guest.bus.slot.quiesce();
}

#[test]
fn a_device_of_another_kind_refuses() {
    let guest = Guest::new();
    let request = DeviceRequest::Disk(DiskRequest::Resize(Resize::default()));
    let refused = guest.bus.slot.request(&request);
    assert_eq!(refused, Err(RequestError::OtherKind));
    assert!(guest.bus.slot.gauge().is_none());
}

#[test]
fn a_reset_ends_when_no_request_is_under_way() {
    let (disk, mut guest) = busy_disk();
    guest.common(0x14, &[0]);
    assert_eq!(guest.status(), 0xb, "not ready, and not reset");
    guest.common(0x14, &[1]);
    guest.common(0x14, &[0]);
    assert_eq!(guest.status(), 0xb, "registers wait for the reset");
    disk.end(0, Ok(()));
    wait(|| (guest.status() == 0).then_some(()));
    assert_eq!(guest.driver.take_used(), None, "the ring is the driver's");
    assert_eq!(guest.driver.get(BUFFERS + 16), [0]);
}

#[test]
fn a_stopped_machine_is_drained_when_no_request_is_under_way() {
    let (disk, mut guest) = busy_disk();
    guest.bus.slot.quiesce();
    assert!(!guest.bus.slot.drained());
    guest.driver.offer(0);
    guest.notify();
    disk.end(0, Ok(()));
    wait(|| guest.bus.slot.drained().then_some(()));
    assert_eq!(guest.used(), (0, 1));
    assert_eq!(disk.submitted(), [""; 0]);
    guest.bus.slot.resume();
    wait(|| (disk.submitted() == ["flush"]).then_some(()));
    // A reset that waits ends as well.
    guest.common(0x14, &[0]);
    guest.bus.slot.quiesce();
    disk.end(0, Ok(()));
    wait(|| guest.bus.slot.drained().then_some(()));
    assert_eq!(guest.status(), 0);
}

#[test]
fn what_is_done_is_returned_when_the_function_may_write_again() {
    let (disk, mut guest) = busy_disk();
    guest.bus.set_config(0x04, 2, 0x0002);
    disk.end(0, Ok(()));
    wait(|| guest.bus.slot.drained().then_some(()));
    assert_eq!(guest.driver.take_used(), None);
    guest.bus.set_config(0x04, 2, 0x0006);
    assert_eq!(guest.used(), (0, 1));
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_panic_of_the_devices_thread_ends_the_vm() {
    let driver = Driver::new(8);
    let (events, _, inbox) = life::channel();
    let guest = Guest::on(bus_with(Box::new(Panics), &driver.ram, &events), driver);
    assert_eq!(inbox.panicked_thread(), None);
    guest.start(VERSION_1);
    let thread = wait(|| inbox.panicked_thread());
    assert_eq!(thread, "virtio 00:03.0");
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut guest = Guest::new();
    guest.enable_msix();
    guest.start(VERSION_1);
    guest.driver.offer(8);
    guest.notify();
    assert_eq!(messages(&guest, 1), [0x40], "the configuration has changed");
    assert_eq!(guest.status(), 0x4f);
    guest.notify();
    guest.driver.rewind();
    guest.start(VERSION_1);
    assert_eq!(guest.ask(1), (0, 1));
}

#[test]
fn a_ring_that_cannot_be_is_found_when_it_is_enabled() {
    let guest = Guest::new();
    guest.start(VERSION_1);
    guest.common(0x14, &[0]);
    guest.common(0x14, &[3]);
    guest.common(0x08, &1_u32.to_le_bytes());
    guest.common(0x0c, &1_u32.to_le_bytes());
    guest.common(0x14, &[0xb]);
    guest.common(0x20, &1_u64.to_le_bytes());
    guest.common(0x1c, &[1, 0]);
    assert_eq!(guest.status(), 0x4b);
}

#[test]
fn nothing_is_served_while_it_is_no_bus_master_or_quiesced() {
    let mut guest = Guest::new();
    guest.enable_msix();
    guest.start(VERSION_1);
    guest.bus.set_config(4, 2, 0x0002);
    guest
        .driver
        .describe(RING.descriptors, 0, (BUFFERS, 8, WRITE, 0));
    guest.driver.offer(0);
    guest.notify();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.driver.take_used(), None);
    guest.bus.slot.quiesce();
    assert!(guest.bus.slot.drained());
    guest.bus.set_config(4, 2, 0x0006);
    guest.notify();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.driver.take_used(), None);
    guest.bus.slot.resume();
    assert_eq!(guest.used(), (0, 8));
    assert_eq!(messages(&guest, 1), [0x41]);
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_reset_forgets_everything() {
    let mut guest = Guest::new();
    guest.start(VERSION_1);
    guest.ask(8);
    wait(|| guest.bus.line.high().then_some(()));
    guest.bus.slot.quiesce();
    guest.bus.slot.reset();
    assert!(!guest.bus.line.high());
    assert!(!guest.bus.mmio.write(MMIO, &[0; 4]), "nothing is decoded");
    assert_eq!(guest.bus.config(4, 4), 0x0010_0000);
    let fresh = bus(&guest.driver.ram);
    assert_eq!(save(&guest.bus), save(&fresh));
}

#[test]
fn bars_move() {
    let mut guest = Guest::new();
    guest.start(VERSION_1);
    guest.bus.set_config(0x10, 4, 0xd000_0000);
    assert!(!guest.bus.mmio.write(MMIO + 0x14, &[0]));
    let [status] = guest.bus.read(0xd000_0014);
    assert_eq!(status, 0xf);
    guest.bus.set_config(0x14, 4, 0x1);
    let [status] = guest.bus.read(0x1_d000_0014);
    assert_eq!(status, 0xf);
    guest.bus.set_config(0x10, 4, 0xe000_0000);
    guest.bus.set_config(0x14, 4, 0);
    assert_eq!(guest.ask(8), (0, 8));
}

#[test]
fn the_structures_are_reached_by_configuration_space() {
    let guest = Guest::new();
    let window = guest.bus.capabilities(9)[4];
    let set = |bar: u32, offset: u32, len: u32| {
        guest.bus.set_config(window + 4, 1, bar);
        guest.bus.set_config(window + 8, 4, offset);
        guest.bus.set_config(window + 12, 4, len);
    };
    set(0, 0x14, 1);
    guest.bus.set_config(window + 16, 1, 3);
    assert_eq!(guest.status(), 3);
    assert_eq!(guest.bus.config(window + 16, 4), 3);
    set(0, 0x12, 2);
    assert_eq!(guest.bus.config(window + 16, 2), 1, "one queue");
    for (bar, offset, len) in [
        (2, 0, 4),
        (0, 0x14, 3),
        (0, 0x15, 2),
        (0, u32::MAX, 4),
        (0, 0x14, 8),
    ] {
        set(bar, offset, len);
        guest.bus.set_config(window + 16, 4, 0);
        let _nothing = guest.bus.config(window + 16, 4);
        assert_eq!(guest.status(), 3);
    }
}

fn save(bus: &TestBus) -> Vec<u8> {
    let mut e = Encoder::new();
    bus.slot.save(&mut e);
    e.into_body()
}

fn load(bus: &TestBus, body: &[u8]) -> Result<(), StateError> {
    let mut d = Decoder::new("device/test", bus.slot.state_version(), body);
    bus.slot.load(&mut d)?;
    d.finish()
}

#[test]
fn it_goes_on_where_it_was_saved() {
    let mut guest = Guest::new();
    guest.start(VERSION_1 | EVENT_IDX);
    guest.ask(8);
    wait(|| guest.bus.line.high().then_some(()));
    guest.bus.slot.quiesce();
    // What came after the worker looked last, and its notification, which is not saved.
    guest.driver.offer(0);
    let body = save(&guest.bus);
    let mut moved = Guest {
        bus: bus(&guest.driver.ram),
        driver: guest.driver,
    };
    load(&moved.bus, &body).unwrap();
    assert_eq!(save(&moved.bus), body);
    assert!(moved.bus.line.high(), "the interrupt is still pending");
    moved.bus.slot.resume();
    assert_eq!(moved.used(), (0, 8));
    assert_eq!(moved.ask(5), (0, 5));
    for length in 0..body.len() {
        load(&moved.bus, &body[..length]).unwrap_err();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Config(u16, usize, u32),
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Ram(u64, Vec<u8>),
    Quiesce,
    Resume,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || proptest::collection::vec(any::<u8>(), 1..=8);
    let small = prop_oneof![0..16_u32, any::<u32>()];
    let page = prop_oneof![
        4 => Just(MMIO),
        1 => Just(MMIO + ISR),
        1 => Just(MMIO + DEVICE),
        2 => Just(MMIO + NOTIFY),
        2 => Just(MSIX),
        1 => Just(MSIX + 0x800),
    ];
    let at = (page, 0..0x44_u64).prop_map(|(page, at)| page + at);
    prop_oneof![
        2 => (0..64_u16, Just(4_usize), small.clone()).prop_map(|(r, len, v)| Step::Config(r * 4, len, v)),
        1 => (0..0x1000_u16, 1..=4_usize, any::<u32>())
            .prop_filter("within a register", |(at, len, _)| usize::from(at % 4) + len <= 4)
            .prop_map(|(at, len, v)| Step::Config(at, len, v)),
        1 => Just(Step::Config(4, 2, 6)),
        8 => (at.clone(), prop_oneof![bytes(), small.prop_map(|v| v.to_le_bytes().to_vec())])
            .prop_map(|(at, data)| Step::Write(at, data)),
        4 => (at, 1..=8_usize).prop_map(|(at, len)| Step::Read(at, len)),
        4 => (0..RAM - 8, bytes()).prop_map(|(at, data)| Step::Ram(at, data)),
        1 => Just(Step::Quiesce),
        1 => Just(Step::Resume),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_driver_harms(
        steps in proptest::collection::vec(step(), 0..120),
        started: bool,
        hostile in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..16),
    ) {
        let mut guest = Guest::new();
        if started {
            guest.enable_msix();
            guest.start(VERSION_1 | EVENT_IDX | INDIRECT_DESC);
            for n in 0..8 {
                let flags = [WRITE, NEXT, WRITE | NEXT, INDIRECT][usize::from(n % 4)];
                guest.driver.describe(RING.descriptors, n, (BUFFERS, 64, flags, n + 1));
                guest.driver.offer(n);
            }
        }
        for step in steps {
            match step {
                Step::Config(at, len, value) => {
                    guest.bus.set_config(at, len, value);
                    let _read = guest.bus.config(at, len);
                }
                Step::Write(at, data) => drop(guest.bus.mmio.write(at, &data)),
                Step::Read(at, len) => drop(guest.bus.mmio.read(at, &mut vec![0; len])),
                Step::Ram(at, data) => guest.driver.put(at, &data),
                Step::Quiesce => guest.bus.slot.quiesce(),
                Step::Resume => guest.bus.slot.resume(),
                Step::Reset => {
                    guest.bus.slot.quiesce();
                    guest.bus.slot.reset();
                }
            }
        }
        guest.bus.slot.quiesce();
        let mut body = save(&guest.bus);
        let fresh = bus(&guest.driver.ram);
        fresh.slot.quiesce();
        load(&fresh, &body).unwrap();
        prop_assert_eq!(&save(&fresh), &body);
        for (at, value) in hostile {
            let at = at % body.len();
            body[at] = value;
        }
        if load(&fresh, &body).is_ok() {
            fresh.slot.resume();
            let _ = fresh.slot.read_config(0);
            fresh.slot.quiesce();
            let _saved = save(&fresh);
        }
    }
}
