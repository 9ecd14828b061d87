use std::io::{Error, ErrorKind};

use proptest::prelude::*;

use super::super::testing::{BUFFERS, Driver, NEXT, PackedDriver, RING, WRITE};
use std::collections::HashSet;

use super::config::{F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_RO, F_WRITE_ZEROES};
use super::*;
use crate::block::testing::TestDisk;
use crate::life::{self, Inbox};
use crate::virtio::queue::RingFeatures;

pub(super) const SECTORS: u64 = 1 << 20;
const HEADER: u64 = BUFFERS;
pub(super) const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0xf00;
/// Not what a device writes.
const UNTOUCHED: u8 = 0xee;

pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;

/// A device and its driver, which has one request at a time but for [`Guest::begin`].
pub(super) struct Guest {
    pub(super) driver: Driver,
    pub(super) dma: Dma,
    pub(super) disk: TestDisk,
    pub(super) blk: Blk,
    pub(super) rings: [Option<Ring>; 1],
    inbox: Inbox,
}

fn options(disk: &TestDisk, events: GuestEvents) -> BlkOptions {
    BlkOptions {
        backend: disk.backend(),
        id: "disk0".to_owned(),
        serial: *b"SERIAL-OF-20-LETTERS",
        queues: 1,
        topology: Topology::default(),
        write_cache: None,
        on_error: OnError::Report,
        events,
        limits: Limits::default(),
    }
}

impl Guest {
    pub(super) fn new(disk: TestDisk, on_error: OnError) -> Self {
        let driver = Driver::new(256);
        let (events, _, inbox) = life::channel();
        let mut blk = Blk::new(BlkOptions {
            on_error,
            ..options(&disk, events)
        });
        blk.set_features(F_FLUSH);
        blk.acquire().unwrap();
        Self {
            dma: driver.dma(),
            rings: [Some(driver.ring(RingFeatures::default()))],
            driver,
            disk,
            blk,
            inbox,
        }
    }

    pub(super) fn plain() -> Self {
        Self::new(TestDisk::new(SECTORS), OnError::PauseIfFull)
    }

    fn header(&self, command: u32, sector: u64) {
        self.driver.put(HEADER, &command.to_le_bytes());
        self.driver.put(HEADER + 4, &[0; 4]);
        self.driver.put(HEADER + 8, &sector.to_le_bytes());
        self.driver.put(STATUS, &[UNTOUCHED]);
    }

    /// Offers a request with `len` bytes of data, which the device writes for reads. Its head is `head`, and
    /// its descriptors are the three from there on.
    pub(super) fn begin(&mut self, head: u16, command: u32, sector: u64, len: u32) {
        self.header(command, sector);
        let flags = if command == IN || command == GET_ID {
            WRITE
        } else {
            0
        };
        let table = RING.descriptors;
        self.driver
            .describe(table, head, (HEADER, 16, NEXT, head + 1));
        self.driver
            .describe(table, head + 1, (DATA, len, flags | NEXT, head + 2));
        self.driver.describe(table, head + 2, (STATUS, 1, WRITE, 0));
        self.driver.offer(head);
        assert_eq!(self.serve(), Ok(false));
    }

    pub(super) fn serve(&mut self) -> Result<bool, RingError> {
        let ring = self.rings[0].as_mut().unwrap();
        self.blk.serve(0, ring, &self.dma)
    }

    pub(super) fn complete(&mut self) -> Result<(), RingError> {
        self.blk.complete(&mut self.rings, &self.dma)
    }

    pub(super) fn end(&mut self, result: io::Result<()>) {
        self.disk.end(0, result);
        self.complete().unwrap();
    }

    pub(super) fn status(&self) -> u8 {
        let [status] = self.driver.get(STATUS);
        status
    }

    /// What a request ends with that is not the disk's to decide: (bytes, status).
    pub(super) fn at_once(&mut self, command: u32, sector: u64, len: u32) -> (u32, u8) {
        self.begin(0, command, sector, len);
        assert_eq!(self.disk.submitted(), [""; 0]);
        let (head, written) = self.driver.take_used().unwrap();
        assert_eq!(head, 0);
        (written, self.status())
    }
}

fn full() -> io::Result<()> {
    Err(ErrorKind::StorageFull.into())
}

#[test]
fn requests_become_operations_and_end_with_them() {
    let mut guest = Guest::plain();
    let range = |sector: u64, sectors: u32, flags: u32| {
        [
            &sector.to_le_bytes()[..],
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    };
    for (command, sector, data, len, operation, written) in [
        (IN, 8, vec![], 4096, "read 4096 4096", 4097),
        (IN, SECTORS - 1, vec![], 512, "read 536870400 512", 513),
        (IN, 0, vec![], 0, "read 0 0", 1),
        (OUT, 1, vec![], 512, "write 512 512", 1),
        (FLUSH, 0, vec![], 0, "flush", 1),
        (DISCARD, 0, range(2, 8, 0), 16, "discard 1024 4096", 1),
        (
            WRITE_ZEROES,
            9,
            range(2, 8, 0),
            16,
            "zero 1024 4096 false",
            1,
        ),
        (WRITE_ZEROES, 0, range(0, 1, 1), 16, "zero 0 512 true", 1),
    ] {
        for (result, status) in [
            (Ok(()), 0),
            (Err(Error::from(ErrorKind::PermissionDenied)), 1),
        ] {
            guest.driver.put(DATA, &data);
            guest.begin(0, command, sector, len);
            assert_eq!(guest.disk.submitted(), [operation]);
            assert!(guest.blk.in_flight());
            assert_eq!(guest.driver.take_used(), None);
            let written = if command == IN && result.is_err() {
                0
            } else {
                written
            };
            guest.end(result);
            assert!(!guest.blk.in_flight());
            assert_eq!(guest.driver.take_used(), Some((0, written)), "{operation}");
            assert_eq!(guest.status(), status, "{operation}");
        }
    }
    assert!(guest.inbox.take_guest_events().is_empty());
}

#[test]
fn what_no_disk_can_do_ends_at_once() {
    let ranges: [(u64, u32, u32, u32, u8); 6] = [
        // sector, sectors, flags, bytes of data, status
        (0, MAX_SECTORS + 1, 0, 16, 1),
        (SECTORS, 1, 0, 16, 1),
        (u64::MAX, 1, 0, 16, 1),
        (0, 1, 2, 16, 2),
        (0, 1, 0, 15, 2),
        (0, 1, 0, 32, 2),
    ];
    for command in [DISCARD, WRITE_ZEROES] {
        for (sector, sectors, flags, len, status) in ranges {
            let mut guest = Guest::plain();
            guest.driver.put(DATA, &sector.to_le_bytes());
            guest.driver.put(DATA + 8, &sectors.to_le_bytes());
            guest.driver.put(DATA + 12, &flags.to_le_bytes());
            assert_eq!(guest.at_once(command, 0, len), (1, status), "{sector}");
        }
    }
    for (command, sector, len, result) in [
        (IN, SECTORS, 512, (0, 1)),
        (IN, SECTORS - 1, 1024, (0, 1)),
        (IN, u64::MAX, 512, (0, 1)),
        (IN, u64::MAX / SECTOR, 512, (0, 1)),
        (IN, 0, 511, (0, 1)),
        (OUT, 0, 513, (1, 1)),
        (OUT, SECTORS, 512, (1, 1)),
        (2, 0, 512, (1, 2)),
        (u32::MAX, 0, 512, (1, 2)),
        (GET_ID, 0, 20, (21, 0)),
        (GET_ID, 0, 4, (5, 0)),
        (GET_ID, 0, 0, (1, 0)),
    ] {
        let what = format!("{command} {sector} {len}");
        assert_eq!(
            Guest::plain().at_once(command, sector, len),
            result,
            "{what}"
        );
    }
}

#[test]
fn the_disk_is_described() {
    let config = |disk: TestDisk| {
        let guest = Guest::new(disk, OnError::Report);
        let mut config = [0xff; 64];
        guest.blk.read_config(0, &mut config);
        let mut capacity = [0; 4];
        guest.blk.read_config(1, &mut capacity);
        assert_eq!(capacity, config[1..5]);
        guest.blk.read_config(0x800, &mut capacity);
        assert_eq!(capacity, [0; 4]);
        (guest.blk.features(), config)
    };
    let (features, config) = config(TestDisk::new(SECTORS));
    assert_eq!(features, 0b0111_1110_0100_0100);
    let dword = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!((dword(0), dword(4)), (1 << 20, 0));
    assert_eq!((dword(12), dword(20)), (254, 512));
    assert_eq!(config[24..36], [3, 0, 8, 0, 0, 0, 0, 0, 1, 0, 1, 0]);
    assert_eq!(
        [36, 40, 44, 48, 52].map(dword),
        [MAX_SECTORS, 1, 8, MAX_ZEROED, 1]
    );
    assert_eq!(config[56..], [1, 0, 0, 0, 0, 0, 0, 0]);

    let features = |change: fn(&mut Info)| {
        let disk = TestDisk::new(8).with(change);
        Guest::new(disk, OnError::Report).blk.features() ^ features
    };
    assert_eq!(features(|i| i.write_through = true), 0);
    assert_eq!(features(|i| i.discard = false), F_DISCARD);
    let read_only = F_RO | F_DISCARD | F_WRITE_ZEROES;
    assert_eq!(features(|i| i.read_only = true), read_only);
}

#[test]
fn blocks_are_as_they_are_configured() {
    let config = |disk: &TestDisk, topology: Topology| {
        let (events, ..) = life::channel();
        let blk = Blk::new(BlkOptions {
            topology,
            ..options(disk, events)
        });
        let mut config = [0; 60];
        blk.read_config(0, &mut config);
        let dword = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        let min_io = u16::from_le_bytes([config[26], config[27]]);
        // Logical, physical, minimum, optimum; discard alignment in sectors.
        (dword(20), config[24], min_io, dword(28), dword(44))
    };
    let disk = TestDisk::new(SECTORS);
    let none = Topology::default();
    assert_eq!(config(&disk, none), (512, 3, 8, 0, 8));
    let all = Topology {
        physical_block: Some(1 << 16),
        min_io: Some(4096),
        opt_io: 1 << 20,
        discard_granularity: Some(1 << 15),
    };
    assert_eq!(config(&disk, all), (512, 7, 8, 2048, 64));
    let disk = disk.with(|info| info.logical_block = 4096);
    assert_eq!(config(&disk, all), (4096, 4, 1, 256, 64));
    // The host's physical block is the smaller one.
    let disk = disk.with(|info| info.logical_block = 1 << 13);
    assert_eq!(config(&disk, none), (1 << 13, 0, 1, 0, 16));
}

#[test]
fn requests_are_of_whole_logical_blocks() {
    let disk = || TestDisk::new(SECTORS).with(|info| info.logical_block = 4096);
    let guest = || Guest::new(disk(), OnError::Report);
    for (command, sector, len, result) in [
        (IN, 7, 4096, (0, 1)),
        (IN, 8, 512, (0, 1)),
        (IN, 8, 4096 + 512, (0, 1)),
        (OUT, 1, 4096, (1, 1)),
        (OUT, 16, 3584, (1, 1)),
    ] {
        let what = format!("{command} {sector} {len}");
        assert_eq!(guest().at_once(command, sector, len), result, "{what}");
    }
    for command in [DISCARD, WRITE_ZEROES] {
        for (sector, sectors) in [(8_u64, 7_u32), (4, 8)] {
            let mut guest = guest();
            guest.driver.put(DATA, &sector.to_le_bytes());
            guest.driver.put(DATA + 8, &sectors.to_le_bytes());
            guest.driver.put(DATA + 12, &[0; 4]);
            assert_eq!(guest.at_once(command, 0, 16), (1, 1));
        }
    }
    let mut guest = guest();
    guest.begin(0, OUT, 8, 8192);
    assert_eq!(guest.disk.submitted(), ["write 4096 8192"]);
}

/// The driver writes the mode; the configuration shows it then.
fn switch(blk: &mut Blk, writeback: u8) -> u8 {
    blk.write_config(config::WRITEBACK, &[writeback]);
    let mut shown = [0xff];
    blk.read_config(config::WRITEBACK, &mut shown);
    shown[0]
}

#[test]
fn a_driver_switches_when_writes_are_durable() {
    let mut guest = Guest::plain();
    guest.blk.set_features(F_FLUSH | F_CONFIG_WCE);
    let write = |guest: &mut Guest, flushed: bool| {
        guest.begin(0, OUT, 0, 512);
        guest.end(Ok(()));
        if flushed {
            assert_eq!(guest.driver.take_used(), None);
            guest.end(Ok(()));
        }
        assert_eq!(guest.driver.take_used(), Some((0, 1)));
        let expected = ["write 0 512", "flush"];
        let count = if flushed { 2 } else { 1 };
        assert_eq!(guest.disk.submitted(), expected[..count]);
    };
    write(&mut guest, false);
    let generation = guest.blk.config_generation();
    assert_eq!(switch(&mut guest.blk, 0), 0);
    // What has ended before is durable too.
    assert_eq!(guest.disk.submitted(), ["sync"]);
    assert_eq!(switch(&mut guest.blk, 0), 0);
    write(&mut guest, true);
    let body = saved(&guest.blk);
    assert_eq!(switch(&mut guest.blk, 1), 1);
    write(&mut guest, false);
    // Other fields are not written, and wider accesses reach this one.
    let before: [u8; 60] = read_all(&guest.blk);
    for at in (0..32).chain(33..64) {
        guest.blk.write_config(at, &[0x77]);
    }
    guest.blk.write_config(u64::MAX, &[0x77]);
    guest.blk.write_config(24, &[0x77; 8]);
    assert_eq!(read_all(&guest.blk), before);
    guest.blk.write_config(28, &[0; 8]);
    assert_eq!(switch(&mut guest.blk, 2), 1);
    guest.blk.write_config(28, &[0; 8]);
    assert_eq!(guest.disk.submitted(), ["sync", "sync"]);
    write(&mut guest, true);
    assert_eq!(guest.blk.config_generation(), generation, "it knows");
    guest.blk.reset();
    assert_eq!(read_all(&guest.blk)[32], 1, "as configured");

    // The mode is the guest's also where another is configured.
    let disk = TestDisk::new(SECTORS);
    let mut other = Guest::new(disk, OnError::Report);
    other.blk.set_features(F_FLUSH | F_CONFIG_WCE);
    let mut from = Decoder::new("function", 1, &body);
    other.blk.load(&mut from).unwrap();
    from.finish().unwrap();
    write(&mut other, true);
    let cut = Decoder::new("function", 1, &body[..body.len() - 1]);
    assert!(other.blk.load(&mut cut.clone()).is_err());
}

fn read_all(blk: &Blk) -> [u8; 60] {
    let mut config = [0; 60];
    blk.read_config(0, &mut config);
    config
}

#[test]
fn a_disk_that_writes_through_needs_no_flushes() {
    for (write_through, write_cache, shown) in [
        (false, None, 1),
        (true, None, 0),
        (false, Some(false), 0),
        (true, Some(true), 1),
    ] {
        let disk = TestDisk::new(8).with(|info| info.write_through = write_through);
        let (events, ..) = life::channel();
        let mut blk = Blk::new(BlkOptions {
            write_cache,
            ..options(&disk, events)
        });
        blk.set_features(F_FLUSH | F_CONFIG_WCE);
        assert_eq!(read_all(&blk)[32], shown);
        let flushes = blk.flushes_writes();
        assert_eq!(flushes, !write_through && shown == 0);
        assert_eq!(switch(&mut blk, 1), 1);
        assert!(!blk.flushes_writes());
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = TestDisk::new(SECTORS).with(|info| info.read_only = true);
    let mut guest = Guest::new(disk, OnError::PauseIfFull);
    for command in [OUT, DISCARD, WRITE_ZEROES] {
        assert_eq!(guest.at_once(command, 0, 512), (1, 1));
    }
    guest.begin(0, IN, 0, 512);
    assert_eq!(guest.disk.submitted(), ["read 0 512"]);
}

#[test]
fn parts_of_a_request_may_be_split_anywhere() {
    let mut guest = Guest::plain();
    guest.header(OUT, 3);
    let table = RING.descriptors;
    let descriptors = [
        (HEADER, 1, NEXT, 1),
        (HEADER + 1, 14, NEXT, 2),
        // The last byte of the header is before the data.
        (HEADER + 15, 1, NEXT, 3),
        (DATA, 500, NEXT, 4),
        (DATA + 0x800, 12, NEXT, 5),
        (STATUS - 3, 4, NEXT | WRITE, 6),
        (DATA, 0, WRITE, 0),
    ];
    for (index, descriptor) in (0..).zip(descriptors) {
        guest.driver.describe(table, index, descriptor);
    }
    guest.driver.offer(0);
    assert_eq!(guest.serve(), Ok(false));
    assert_eq!(guest.disk.submitted(), ["write 1536 512"]);
    guest.end(Ok(()));
    assert_eq!(
        (guest.driver.take_used(), guest.status()),
        (Some((0, 1)), 0)
    );
}

#[test]
fn requests_without_header_or_status_break_the_ring() {
    let table = RING.descriptors;
    for descriptors in [
        [(HEADER, 16, NEXT, 1), (DATA, 512, 0, 0)],
        [(HEADER, 15, NEXT, 1), (STATUS, 1, WRITE, 0)],
        [(HEADER, 0, WRITE | NEXT, 1), (STATUS, 1, WRITE, 0)],
        [(HEADER, 16, NEXT, 1), (STATUS, 0, WRITE, 0)],
    ] {
        let mut guest = Guest::plain();
        guest.header(FLUSH, 0);
        for (index, descriptor) in (0..).zip(descriptors) {
            guest.driver.describe(table, index, descriptor);
        }
        guest.driver.offer(0);
        let error = guest.serve().unwrap_err();
        assert!(matches!(error, RingError::Request { .. }), "{error}");
        assert_eq!(guest.disk.submitted(), [""; 0]);
    }
}

#[test]
fn data_that_is_not_in_memory_breaks_the_ring_and_nothing_is_under_way() {
    for command in [IN, OUT] {
        let mut guest = Guest::plain();
        guest.header(command, 0);
        let flags = if command == IN { WRITE } else { 0 };
        let table = RING.descriptors;
        guest.driver.describe(table, 0, (HEADER, 16, NEXT, 1));
        guest
            .driver
            .describe(table, 1, (DATA, 512, flags | NEXT, 2));
        guest
            .driver
            .describe(table, 2, (1 << 40, 512, flags | NEXT, 3));
        guest.driver.describe(table, 3, (STATUS, 1, WRITE, 0));
        guest.driver.offer(0);
        let error = guest.serve().unwrap_err();
        assert!(matches!(error, RingError::Memory(_)), "{error}");
        assert!(!guest.blk.in_flight());
        assert_eq!(guest.blk.outstanding().count(), 0);
    }
}

#[test]
fn requests_end_in_any_order_and_wait_for_a_free_slot() {
    let mut guest = Guest::plain();
    // The driver offers one request again and again.
    for _ in 0..SLOTS {
        guest.begin(0, FLUSH, 0, 0);
    }
    assert_eq!(guest.disk.submitted().len(), SLOTS);
    guest.begin(0, IN, 0, 512);
    assert_eq!(guest.disk.submitted(), [""; 0], "no slot is free");
    guest.disk.end(200, Ok(()));
    guest.disk.end(3, Ok(()));
    guest.complete().unwrap();
    assert_eq!(guest.driver.take_used(), Some((0, 1)));
    assert_eq!(guest.driver.take_used(), Some((0, 1)));
    assert_eq!(guest.driver.take_used(), None);
    assert_eq!(guest.serve(), Ok(false));
    assert_eq!(guest.disk.submitted(), ["read 0 512"]);
}

#[test]
fn a_driver_that_cannot_flush_has_durable_writes() {
    let mut guest = Guest::plain();
    guest.blk.set_features(0);
    guest.begin(0, OUT, 0, 512);
    assert_eq!(guest.disk.submitted(), ["write 0 512"]);
    guest.end(Ok(()));
    assert_eq!(guest.disk.submitted(), ["flush"]);
    assert_eq!(guest.driver.take_used(), None);
    assert!(guest.blk.in_flight());
    guest.end(Ok(()));
    assert_eq!(
        (guest.driver.take_used(), guest.status()),
        (Some((0, 1)), 0)
    );
    // A read needs none, and neither does a write to a disk that writes through.
    guest.begin(0, IN, 0, 512);
    guest.end(Ok(()));
    assert_eq!(guest.disk.submitted(), ["read 0 512"]);
    let disk = TestDisk::new(8).with(|info| info.write_through = true);
    let mut guest = Guest::new(disk, OnError::Report);
    guest.blk.set_features(0);
    guest.begin(0, OUT, 0, 512);
    guest.end(Ok(()));
    assert_eq!(guest.disk.submitted(), ["write 0 512"]);
    assert_eq!(guest.driver.take_used(), Some((0, 1)));
}

#[test]
fn a_full_disk_pauses_the_vm_and_a_resume_makes_the_request_again() {
    let mut guest = Guest::plain();
    guest.begin(0, OUT, 0, 512);
    guest.begin(8, OUT, 1, 512);
    guest.begin(16, OUT, 2, 512);
    guest.disk.submitted();
    guest.disk.end(1, full());
    guest.disk.end(0, full());
    guest.disk.end(0, Ok(()));
    guest.complete().unwrap();
    // The third has overwritten the headers of the others, which share one.
    assert_eq!(guest.driver.take_used(), Some((16, 1)));
    assert!(!guest.blk.in_flight());
    let events = guest.inbox.take_guest_events();
    let [GuestEvent::DiskFailed { device, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(device, "disk0");
    // Not before the resume.
    guest.blk.begin_waiting(&guest.rings, &guest.dma).unwrap();
    assert_eq!(guest.disk.submitted(), [""; 0]);
    guest.blk.resume();
    guest.blk.begin_waiting(&guest.rings, &guest.dma).unwrap();
    assert_eq!(guest.disk.submitted(), ["write 1024 512"; 2]);
    guest.disk.end(0, full());
    guest.complete().unwrap();
    assert_eq!(guest.inbox.take_guest_events().len(), 1);
    guest.end(Ok(()));
    assert!(guest.driver.take_used().is_some());
    assert_eq!(guest.driver.take_used(), None);
}

#[test]
fn errors_pause_by_the_policy() {
    for (on_error, error, pauses) in [
        (OnError::Report, ErrorKind::StorageFull, false),
        (OnError::Pause, ErrorKind::StorageFull, true),
        (OnError::Pause, ErrorKind::Other, true),
        (OnError::PauseIfFull, ErrorKind::StorageFull, true),
        (OnError::PauseIfFull, ErrorKind::QuotaExceeded, true),
        (OnError::PauseIfFull, ErrorKind::Other, false),
    ] {
        let mut guest = Guest::new(TestDisk::new(8), on_error);
        guest.begin(0, IN, 0, 512);
        guest.end(Err(error.into()));
        let events = guest.inbox.take_guest_events();
        assert_eq!(events.len(), usize::from(pauses), "{on_error:?} {error}");
        assert_eq!(guest.driver.take_used().is_none(), pauses);
    }
}

#[test]
fn what_is_done_waits_until_the_function_may_write() {
    let mut guest = Guest::plain();
    guest.begin(0, FLUSH, 0, 0);
    guest.dma.gate().set(false);
    guest.disk.end(0, Ok(()));
    assert!(guest.complete().unwrap_err().is_gate_closed());
    assert!(!guest.blk.in_flight(), "it can be saved");
    assert_eq!(
        (guest.driver.take_used(), guest.status()),
        (None, UNTOUCHED)
    );
    guest.dma.gate().set(true);
    guest.complete().unwrap();
    assert_eq!(
        (guest.driver.take_used(), guest.status()),
        (Some((0, 1)), 0)
    );
}

#[test]
fn what_the_driver_gave_up_is_dropped() {
    let mut guest = Guest::plain();
    guest.begin(0, FLUSH, 0, 0);
    guest.begin(8, OUT, 0, 512);
    guest.rings = [None];
    guest.disk.end(0, Ok(()));
    guest.disk.end(0, full());
    guest.complete().unwrap();
    guest.blk.resume();
    guest.blk.begin_waiting(&guest.rings, &guest.dma).unwrap();
    assert_eq!(guest.blk.outstanding().count(), 0);
    assert_eq!(guest.driver.take_used(), None);
    guest.blk.reset();
    assert_eq!(guest.blk.free.len(), SLOTS);
}

pub(super) fn saved(blk: &Blk) -> Vec<u8> {
    let mut e = Encoder::new();
    blk.save(&mut e);
    e.into_body()
}

#[test]
fn a_restored_device_makes_its_requests_again() {
    let mut guest = Guest::plain();
    guest.begin(0, OUT, 5, 512);
    guest.disk.submitted();
    guest.end(full());
    guest.begin(8, OUT, 6, 512);
    guest.dma.gate().set(false);
    guest.disk.end(0, Ok(()));
    assert!(guest.complete().is_err());
    let body = saved(&guest.blk);

    let disk = TestDisk::new(SECTORS);
    let mut restored = Guest::new(disk, OnError::Report);
    let mut from = Decoder::new("function", 1, &body);
    restored.blk.load(&mut from).unwrap();
    from.finish().unwrap();
    assert_eq!(saved(&restored.blk), body);
    guest.dma.gate().set(true);
    let driver = (guest.dma.clone(), guest.rings.clone());
    restored.blk.begin_waiting(&driver.1, &driver.0).unwrap();
    assert_eq!(restored.disk.submitted(), ["write 3072 512"; 2]);
    // Of another size it is another disk.
    let mut other = Guest::new(TestDisk::new(SECTORS + 1), OnError::Report);
    let error = other
        .blk
        .load(&mut Decoder::new("function", 1, &body))
        .unwrap_err();
    assert!(error.to_string().contains("disk0"), "{error}");
}

/// In a packed ring a request that ends is written over the first descriptors, which may be another's.
#[test]
fn requests_in_a_packed_ring_are_made_again_after_others_have_ended() {
    let mut driver = PackedDriver::new(8);
    let disk = TestDisk::new(SECTORS);
    let (events, ..) = life::channel();
    let mut blk = Blk::new(options(&disk, events.clone()));
    blk.set_features(F_FLUSH);
    blk.acquire().unwrap();
    let dma = driver.dma();
    let mut rings = [Some(driver.ring(RingFeatures::default()))];
    for (n, kind) in (0_u16..).zip([OUT, FLUSH]) {
        let header = HEADER + u64::from(n) * 0x100;
        driver.put(header, &kind.to_le_bytes());
        driver.put(header + 8, &5_u64.to_le_bytes());
        let data = [(DATA, 512, 0)];
        let data = if kind == OUT { &data[..] } else { &[] };
        let parts = [&[(header, 16, 0)], data, &[(header + 16, 1, WRITE)]].concat();
        driver.offer(7 - n, &parts);
    }
    let ring = rings[0].as_mut().unwrap();
    assert_eq!(blk.serve(0, ring, &dma), Ok(false));
    assert_eq!(disk.submitted(), ["write 2560 512", "flush"]);
    disk.end(1, Ok(()));
    blk.complete(&mut rings, &dma).unwrap();
    assert_eq!(driver.take_used(), Some((6, 1)));
    // The write has not ended when the device is saved.
    disk.hold();
    blk.withdraw();
    let mut e = Encoder::new();
    rings[0].as_ref().unwrap().save(&mut e);
    blk.save(&mut e);
    let body = e.into_body();

    let mut from = Decoder::new("function", 1, &body);
    let disk = TestDisk::new(SECTORS);
    let mut restored = Blk::new(options(&disk, events));
    restored.set_features(F_FLUSH);
    restored.acquire().unwrap();
    let mut ring = driver.ring(RingFeatures::default());
    ring.load(&mut from).unwrap();
    restored.load(&mut from).unwrap();
    from.finish().unwrap();
    let mut rings = [Some(ring)];
    restored.restart(&mut rings, &dma).unwrap();
    assert_eq!(disk.submitted(), ["write 2560 512"]);
    disk.end(0, Ok(()));
    restored.complete(&mut rings, &dma).unwrap();
    assert_eq!(driver.take_used(), Some((7, 1)));
    assert_eq!(driver.get(HEADER + 16), [0]);
}

proptest! {
    #[test]
    fn a_hostile_state_is_refused_or_harmless(
        requests in prop::collection::vec((0_u16..3, any::<u16>()), 0..300),
        twice in any::<bool>(),
        cut in 0_usize..64,
    ) {
        let mut requests = requests;
        if twice {
            requests.extend(requests.first().copied());
        }
        let mut e = Encoder::new();
        e.u64(SECTORS * SECTOR);
        e.u64(requests.len() as u64);
        for (queue, head) in &requests {
            e.u16(*queue);
            e.u16(*head);
        }
        let body = e.into_body();
        let mut guest = Guest::plain();
        let loaded = guest.blk.load(&mut Decoder::new("function", 1, &body));
        let once: HashSet<_> = requests.iter().collect();
        let good = requests.len() <= SLOTS
            && once.len() == requests.len()
            && requests.iter().all(|(queue, _)| *queue == 0);
        prop_assert_eq!(loaded.is_ok(), good);
        // Whatever the heads are.
        let _restarted = guest.blk.begin_waiting(&guest.rings, &guest.dma);
        if cut > 0 && cut <= body.len() {
            let cut = &body[..body.len() - cut];
            prop_assert!(Guest::plain().blk.load(&mut Decoder::new("function", 1, cut)).is_err());
        }
    }
}

#[test]
fn nothing_is_served_without_the_image() {
    let mut guest = Guest::plain();
    guest.blk.release();
    guest.begin(0, FLUSH, 0, 0);
    assert_eq!(guest.disk.submitted(), [""; 0]);
    guest.blk.acquire().unwrap();
    assert_eq!(guest.serve(), Ok(false));
    assert_eq!(guest.disk.submitted(), ["flush"]);
}

#[test]
fn what_the_disk_has_not_begun_is_withdrawn_and_made_again() {
    let mut guest = Guest::plain();
    guest.begin(0, IN, 5, 512);
    guest.disk.submitted();
    guest.blk.withdraw();
    assert!(guest.blk.in_flight(), "it has begun");
    guest.disk.hold();
    guest.blk.withdraw();
    assert!(!guest.blk.in_flight());
    assert_eq!(guest.driver.take_used(), None);
    assert_eq!(guest.blk.outstanding().count(), 1, "it is saved");
    guest.blk.begin_waiting(&guest.rings, &guest.dma).unwrap();
    assert_eq!(guest.disk.submitted(), ["read 2560 512"]);
    guest.end(Ok(()));
    assert_eq!(guest.driver.take_used(), Some((0, 513)));
}

#[test]
fn after_a_flush_that_failed_the_guest_gets_errors_and_the_vm_stays() {
    let mut guest = Guest::new(TestDisk::new(8), OnError::Pause);
    assert_eq!(guest.blk.blocker(), None);
    guest.disk.fail();
    guest.begin(0, FLUSH, 0, 0);
    guest.end(Err(ErrorKind::Other.into()));
    assert!(guest.inbox.take_guest_events().is_empty());
    assert_eq!(
        (guest.driver.take_used(), guest.status()),
        (Some((0, 1)), 1)
    );
    assert!(guest.blk.blocker().is_some());
}
