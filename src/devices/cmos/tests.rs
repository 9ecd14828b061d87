use proptest::prelude::*;

use super::*;
use crate::devices::io_thread::IoThread;
use crate::devices::testing::{
    HandClock, LineRecorder, accesses, assert_comes_back, hostile, inb, inw, load, outb, outw,
    replay, saved,
};
use crate::life::channel;

/// 2024-02-29 12:34:56 UTC.
const START: u64 = 1_709_210_096;

struct Bench {
    cmos: Cmos,
    line: Arc<LineRecorder>,
    clock: Arc<HandClock>,
}

fn bench() -> Bench {
    let (line, irq) = LineRecorder::line();
    let clock = HandClock::at_wall(Duration::from_secs(START));
    let io = IoThread::new(channel().1).unwrap();
    let memory = MemorySizes {
        below_4g: 1 << 30,
        above_4g: 0,
    };
    let cmos = Cmos::new(irq, clock.clone(), io.waker(), memory, 1);
    Bench { cmos, line, clock }
}

impl Bench {
    fn get(&mut self, index: u8) -> u8 {
        outb(&mut self.cmos, INDEX, index);
        inb(&mut self.cmos, DATA)
    }

    fn put(&mut self, index: u8, value: u8) {
        outb(&mut self.cmos, INDEX, index);
        outb(&mut self.cmos, DATA, value);
    }

    /// Century, year, month, day, hour, minute, second.
    fn time(&mut self) -> [u8; 7] {
        [CENTURY, YEAR, MONTH, DAY, HOUR, MINUTE, SECOND].map(|index| self.get(index))
    }

    fn run(&mut self, by: Duration) {
        self.clock.advance(by);
        self.cmos.tick();
    }
}

#[test]
fn the_time_is_the_hosts_in_every_mode() {
    for (b, want) in [
        (0x02, [0x20, 0x24, 0x02, 0x29, 0x12, 0x34, 0x56]),
        (0x06, [20, 24, 2, 29, 12, 34, 56]),
        (0x00, [0x20, 0x24, 0x02, 0x29, 0x92, 0x34, 0x56]),
        (0x04, [20, 24, 2, 29, 0x8c, 34, 56]),
    ] {
        let mut bench = bench();
        bench.put(B, b);
        assert_eq!(bench.time(), want, "register B = {b:#x}");
        assert_eq!(bench.get(WEEKDAY), 5);
        assert_eq!(bench.get(D), D_VALID);
    }
}

#[test]
fn the_time_moves_on_and_a_set_bit_stops_it() {
    let mut b = bench();
    b.clock.advance(Duration::from_secs(5));
    assert_eq!(b.get(SECOND), 0x01);
    b.put(B, B_24_HOURS | B_SET);
    b.clock.advance(Duration::from_secs(5));
    assert_eq!(b.get(SECOND), 0x01);
}

#[test]
fn setting_the_time_keeps_it_off_the_hosts_by_as_much() {
    let mut b = bench();
    b.put(B, B_24_HOURS | B_SET);
    // An intermediate February 31: the month is written after the day.
    for (index, value) in [
        (DAY, 0x31),
        (MONTH, 0x12),
        (YEAR, 0x99),
        (CENTURY, 0x19),
        (HOUR, 0x23),
        (MINUTE, 0x59),
        (SECOND, 0x58),
    ] {
        b.put(index, value);
        assert_eq!(b.get(index), value);
    }
    b.put(B, B_24_HOURS);
    assert_eq!(b.time(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]);
    b.clock.advance(Duration::from_secs(3));
    assert_eq!(b.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01]);
    b.cmos.reset();
    assert_eq!(b.get(YEAR), 0x00, "a reset leaves the time alone");
}

#[test]
fn a_running_clock_can_be_set_too() {
    let mut b = bench();
    b.put(MINUTE, 0x05);
    assert_eq!(b.time(), [0x20, 0x24, 0x02, 0x29, 0x12, 0x05, 0x56]);
}

#[test]
fn update_in_progress_shows_before_the_second_changes() {
    let mut b = bench();
    for (into, updating) in [
        (0, false),
        (500_000, false),
        (997_700, false),
        (997_800, true),
        (999_999, true),
        (1_000_000, false),
    ] {
        let mut b = bench();
        b.clock.advance(Duration::from_micros(into));
        assert_eq!(b.get(A) & A_UPDATE_IN_PROGRESS != 0, updating, "{into} us");
    }
    b.clock.advance(Duration::from_micros(999_999));
    b.put(B, B_24_HOURS | B_SET);
    assert_eq!(b.get(A) & A_UPDATE_IN_PROGRESS, 0, "stopped");
}

#[test]
fn flags_can_be_polled_without_interrupts() {
    let mut b = bench();
    b.get(C);
    assert_eq!(b.get(C), 0);
    b.clock.advance(Duration::from_secs(1));
    assert_eq!(b.get(C), B_UPDATE_ENDED | B_PERIODIC);
    assert_eq!(b.get(C), 0, "reading clears them");
    assert_eq!(b.line.edges(), 0);
    assert_eq!(b.cmos.until_due(), None);
}

#[test]
fn the_update_interrupt_comes_every_second() {
    let mut b = bench();
    b.clock.advance(Duration::from_millis(400));
    b.put(B, B_24_HOURS | B_UPDATE_ENDED);
    for _ in 0..3 {
        let due = b.cmos.until_due().unwrap();
        b.run(due - Duration::from_millis(1));
        assert!(!b.line.high());
        b.run(Duration::from_millis(1));
        assert!(b.line.high());
        assert_eq!(b.cmos.until_due(), None, "until it is acknowledged");
        assert_eq!(
            b.get(C) & (C_REQUEST | B_UPDATE_ENDED),
            C_REQUEST | B_UPDATE_ENDED
        );
        assert!(!b.line.high());
    }
    assert_eq!(b.line.edges(), 3);
}

#[test]
fn the_alarm_rings_at_its_time() {
    let mut b = bench();
    b.put(SECOND_ALARM, 0x00);
    b.put(MINUTE_ALARM, 0x35);
    b.put(HOUR_ALARM, 0x12);
    b.put(B, B_24_HOURS | B_ALARM);
    assert_eq!(b.cmos.until_due(), Some(Duration::from_secs(4)));
    b.run(Duration::from_secs(3));
    assert!(!b.line.high());
    b.run(Duration::from_secs(1));
    assert!(b.line.high());
    assert_eq!(b.get(C) & (C_REQUEST | B_ALARM), C_REQUEST | B_ALARM);
    // The same time tomorrow.
    assert_eq!(b.cmos.until_due(), Some(Duration::from_secs(86_400)));
    // Any minute, any hour.
    b.put(MINUTE_ALARM, 0xff);
    b.put(HOUR_ALARM, 0xc0);
    assert_eq!(b.cmos.until_due(), Some(Duration::from_secs(60)));
}

#[test]
fn the_periodic_interrupt_keeps_its_rate() {
    for (rate, hz) in [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)] {
        let mut b = bench();
        b.put(A, 0x20 | rate);
        b.put(B, B_24_HOURS | B_PERIODIC);
        b.get(C);
        let mut elapsed = Duration::ZERO;
        for _ in 0..hz {
            let due = b.cmos.until_due().unwrap();
            elapsed += due;
            b.run(due);
            assert!(b.line.high());
            assert_eq!(b.get(C) & B_PERIODIC, B_PERIODIC);
        }
        let second = Duration::from_secs(1);
        assert!(
            second.abs_diff(elapsed) < Duration::from_millis(1),
            "rate {rate}"
        );
    }
    let mut b = bench();
    b.put(A, 0x20);
    b.put(B, B_24_HOURS | B_PERIODIC);
    assert_eq!(b.cmos.until_due(), None, "rate 0 is off");
}

#[test]
fn ram_is_kept_and_the_index_ignores_the_nmi_bit() {
    let mut b = bench();
    b.put(0x0f, 0x0a);
    assert_eq!(b.get(0x8f), 0x0a);
    outw(&mut b.cmos, INDEX, 0x5533);
    assert_eq!(b.get(0x33), 0x55, "index and data in one access");
    assert_eq!(inw(&mut b.cmos, INDEX), 0x55ff, "the index cannot be read");
    assert_eq!(b.get(0x34), 0x00);
    assert_eq!(b.get(0x35), 0x3f, "1 GiB less 16 MiB");
    b.cmos.reset();
    assert_eq!(b.get(0x0f), 0x0a);
}

#[test]
fn reset_disables_interrupts() {
    let mut b = bench();
    b.put(B, B_24_HOURS | B_UPDATE_ENDED);
    b.run(Duration::from_secs(1));
    assert!(b.line.high());
    b.cmos.reset();
    assert!(!b.line.high());
    assert_eq!(b.get(B), B_24_HOURS);
    assert_eq!(b.cmos.until_due(), None);
}

#[test]
fn a_restored_clock_follows_the_host_with_the_guests_own_offset() {
    let mut b = bench();
    // One hour ahead of the host, and an alarm in 20 minutes.
    b.put(HOUR, 0x13);
    b.put(HOUR_ALARM, 0x13);
    b.put(MINUTE_ALARM, 0x54);
    b.put(SECOND_ALARM, 0x56);
    b.put(B, B_24_HOURS | B_ALARM);
    b.get(C);
    let (mut restored, body) = (bench(), saved(&b.cmos));
    restored.clock.advance(Duration::from_secs(600));
    load(&mut restored.cmos, &body).unwrap();
    assert_eq!(restored.time(), [0x20, 0x24, 0x02, 0x29, 0x13, 0x44, 0x56]);
    assert!(!restored.line.high());
    restored.run(Duration::from_secs(600));
    assert!(restored.line.high());
    // It also fires if its time was while the VM was saved.
    let mut late = bench();
    late.clock.advance(Duration::from_secs(3600));
    load(&mut late.cmos, &body).unwrap();
    late.cmos.tick();
    assert!(late.line.high());
    let both = C_REQUEST | B_ALARM;
    assert_eq!(late.get(C) & both, both);
}

proptest! {
    #[test]
    fn it_comes_back_after_any_accesses(seq in accesses(PORTS + 2), skip in 0_u64..10_000_000) {
        let (mut b, mut fresh) = (bench(), bench());
        for chunk in seq.chunks(4) {
            replay(&mut b.cmos, Region::ONLY, chunk.to_vec());
            b.run(Duration::from_millis(skip));
            fresh.clock.advance(Duration::from_millis(skip));
        }
        assert_comes_back(&b.cmos, &mut fresh.cmos);
        prop_assert_eq!(b.line.high(), fresh.line.high());
        prop_assert_eq!(b.time(), fresh.time());
        prop_assert_eq!(b.cmos.until_due(), fresh.cmos.until_due());
    }

    #[test]
    fn no_state_harms(body in hostile(), seq in accesses(PORTS + 2), skip in 0_u64..10_000_000) {
        let mut b = bench();
        b.run(Duration::from_millis(skip));
        body.load_into(&mut b.cmos);
        for chunk in seq.chunks(4) {
            b.cmos.until_due();
            replay(&mut b.cmos, Region::ONLY, chunk.to_vec());
            b.run(Duration::from_millis(skip));
        }
        b.time();
    }

    #[test]
    fn no_access_sequence_panics(seq in accesses(PORTS + 2), skip in 0_u64..10_000_000_000) {
        let mut b = bench();
        for chunk in seq.chunks(4) {
            replay(&mut b.cmos, Region::ONLY, chunk.to_vec());
            b.run(Duration::from_millis(skip));
            b.cmos.until_due();
        }
    }
}
