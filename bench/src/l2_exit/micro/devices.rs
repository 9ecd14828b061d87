//! The devices of the guest program: its console and the doorbell.

use std::sync::{Arc, Mutex};

use hypernest::bus::{LockedDevice, Region};
use hypernest::machine::{ExitCounters, ExtraPorts};
use hypernest::state::{Decoder, Encoder, StateError};
use hypernest::units::VpIndex;
use hypernest_nested::probe::{
    CONSOLE_PORT, DOORBELL_PORT, DOORBELL_PRESENT, Doorbell, Item, Malformed,
};

use super::reasons::Reasons;
use super::record::Shared;
use super::threads;
use crate::exit_port::ResetWatch;
use crate::probe_console::{ProbeConsole, Sink};
use crate::sync::lock;

/// Maximum number of kept bytes of an incomplete line.
const MAX_PENDING: usize = 1 << 20;

/// Receives the guest program's lines. If there is a doorbell, the guest program writes only lines.
#[derive(Debug)]
pub(super) struct Lines {
    record: Shared,
}

impl Sink for Lines {
    fn item(&mut self, item: Item<'_>) {
        if let Item::Line(line) = item {
            let line = String::from_utf8_lossy(line).into_owned();
            lock(&self.record).line(line);
        }
    }

    fn malformed(&mut self, malformed: Malformed) {
        lock(&self.record).malformed = Some(malformed);
    }
}

/// The debug console.
pub(super) type Console = ProbeConsole<Lines>;

/// A console that writes into `record`.
pub(super) fn console(record: &Shared) -> Console {
    let record = Arc::clone(record);
    ProbeConsole::new(Lines { record }, MAX_PENDING)
}

/// The doorbell. It is handled on the thread of the vCPU that rings it, which waits meanwhile.
#[derive(Debug)]
pub(super) struct Bell {
    record: Shared,
    counters: ExitCounters,
    cpus: u32,
    /// The host CPUs to which the vCPUs are bound.
    pins: Vec<u32>,
    /// The counters by reason, if they are requested.
    reasons: Option<Reasons>,
    resets: Arc<ResetWatch>,
}

impl Bell {
    /// A doorbell for a VM of `cpus` vCPUs, whose exits `counters` count. It reports every power-on to
    /// `resets`.
    pub(super) fn new(
        record: &Shared,
        counters: &ExitCounters,
        cpus: u32,
        pins: &[u32],
        reasons: Option<Reasons>,
        resets: &Arc<ResetWatch>,
    ) -> Self {
        Self {
            record: Arc::clone(record),
            counters: counters.clone(),
            cpus,
            pins: pins.to_vec(),
            reasons,
            resets: Arc::clone(resets),
        }
    }

    /// All vCPUs' exits so far.
    fn exits(&self) -> Option<u64> {
        (0..self.cpus)
            .map(|vp| self.counters.read(VpIndex(vp)))
            .sum()
    }

    /// The first ring: by now all vCPUs have their threads, and nothing has been measured.
    fn announced(&mut self, gpa: u64) {
        let mut warnings = Vec::new();
        let threads = threads::of_vcpus();
        if let Err(error) = threads::pin(&threads, &self.pins) {
            warnings.push(format!("cannot bind vCPUs to CPUs: {error}"));
        }
        if let Some(reasons) = &mut self.reasons {
            reasons.watch(threads);
        }
        let mut record = lock(&self.record);
        record.announce(gpa);
        record.warnings.extend(warnings);
    }
}

impl LockedDevice for Bell {
    fn name(&self) -> &str {
        "doorbell"
    }

    fn reset(&mut self) {
        self.resets.power_on();
    }

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Ok(data) = <&mut [u8; 4]>::try_from(data)
        {
            *data = DOORBELL_PRESENT.to_le_bytes();
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        // Read before any action that could cause a host exit.
        let exits = self.exits();
        let (true, Ok(data)) = (offset == 0, <[u8; 4]>::try_from(data)) else {
            return;
        };
        match Doorbell::from_value(u32::from_le_bytes(data)) {
            Some(Doorbell::Begin) => {
                let interval = &mut lock(&self.record).interval;
                interval.begin = exits;
                if let Some(Err(error)) = self.reasons.as_mut().map(Reasons::begin) {
                    lock(&self.record).warnings.push(error.to_string());
                }
            }
            Some(Doorbell::End) => {
                let reasons = self.reasons.as_mut().map(Reasons::end);
                let mut record = lock(&self.record);
                record.interval.end = exits;
                match reasons.transpose() {
                    Ok(reasons) => record.interval.reasons = reasons,
                    Err(error) => record.warnings.push(error.to_string()),
                }
            }
            Some(Doorbell::Done) => lock(&self.record).complete(),
            Some(Doorbell::Board { gpa }) => self.announced(gpa),
            None => {}
        }
    }

    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

/// Both devices at their ports. A 32-bit access to the console's port extends into the doorbell's; the first
/// byte of an access selects the device.
pub(super) fn ports(console: Console, bell: Bell) -> [ExtraPorts; 2] {
    [
        ExtraPorts::new(CONSOLE_PORT, 1, Arc::new(Mutex::new(console))),
        ExtraPorts::new(DOORBELL_PORT, 4, Arc::new(Mutex::new(bell))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2_exit::micro::record::{Ending, Record, Taken};
    use crate::progress::Steps;
    use hypernest::memory::GuestRam;
    use hypernest::memory::MemoryConfig;
    use hypernest::units::Gpa;
    use hypernest_nested::board::{Board, Status};
    use hypernest_nested::l2exit::Kind;

    const BOARD: u64 = 0x20_000;
    const SAMPLES: u64 = 0x30_000;

    struct Guest {
        ram: GuestRam,
        console: Console,
        bell: Bell,
        record: Shared,
    }

    impl Guest {
        fn new() -> Self {
            let config = MemoryConfig::of(0);
            let ram = GuestRam::new(&config, &[(Gpa(0), 0x10_0000)]).unwrap();
            let record = Arc::new(Mutex::new(Record::new(Steps::default())));
            lock(&record).use_ram(ram.clone());
            Self {
                console: console(&record),
                bell: Bell::new(
                    &record,
                    &ExitCounters::default(),
                    1,
                    &[],
                    None,
                    &Arc::default(),
                ),
                ram,
                record,
            }
        }

        fn say(&mut self, text: &str) {
            for piece in text.as_bytes().chunks(4) {
                self.console.write(Region::ONLY, 0, piece);
            }
        }

        fn ring(&mut self, value: Doorbell) {
            let value = value.value().unwrap().to_le_bytes();
            self.bell.write(Region::ONLY, 0, &value);
        }

        fn board(&self, board: &Board, samples: &[[u64; 4]]) {
            let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let bytes: Vec<u8> = words(&board.words());
            self.ram.write(Gpa(BOARD), &bytes).unwrap();
            let bytes: Vec<u8> = words(samples.as_flattened());
            self.ram.write(Gpa(SAMPLES), &bytes).unwrap();
        }

        fn endings(&self) -> Vec<(Kind, Ending)> {
            lock(&self.record).endings.clone()
        }
    }

    fn board(kind: Kind, status: Status, capacity: u64) -> Board {
        Board {
            status: status as u64,
            stopwatch_begin: 90,
            stopwatch_end: 300,
            last_exit_reason: 10,
            last_guest_rip: 0x10_1234,
            ..Board::new(kind, capacity, SAMPLES)
        }
    }

    #[test]
    fn a_complete_board_is_taken_apart() {
        let mut guest = Guest::new();
        guest.ring(Doorbell::Board { gpa: BOARD });
        guest.say("l1: running cpuid\n");
        guest.ring(Doorbell::Begin);
        guest.ring(Doorbell::End);
        let samples = [[100, 110, 130, 135], [200, 210, 205, 230], [240, 0, 0, 250]];
        guest.board(&board(Kind::Cpuid, Status::Complete, 3), &samples);
        guest.ring(Doorbell::Done);
        guest.say("l1: done\n");
        let wanted = Taken {
            l2_to_l1: vec![10],
            l1: vec![20],
            l1_to_l2: vec![5],
            round_trip: vec![35, 10],
            out_of_order: 1,
            stopwatch: Some(210),
            host_exits: None,
            reasons: None,
        };
        assert_eq!(guest.endings(), [(Kind::Cpuid, Ending::Complete(wanted))]);
        assert!(lock(&guest.record).done);
    }

    #[test]
    fn what_was_measured_before_the_end_is_kept() {
        let mut guest = Guest::new();
        guest.ring(Doorbell::Board { gpa: BOARD });
        guest.say("l1: running hlt\n");
        let samples = [[100, 110, 130, 135], [200, 210, 0, 0], [0; 4]];
        guest.board(&board(Kind::Hlt, Status::Measuring, 3), &samples);
        lock(&guest.record).cut_short("stuck");
        let (kind, ending) = guest.endings().remove(0);
        let Ending::Failed {
            why,
            last_exit,
            partial,
        } = ending
        else {
            panic!("{ending:?}");
        };
        assert_eq!((kind, &*why), (Kind::Hlt, "stuck"));
        assert_eq!(partial.unwrap().round_trip, [35]);
        assert_eq!(last_exit.unwrap().rip, 0x10_1234);
    }

    #[test]
    fn lines_tell_of_kinds_and_refusals() {
        let mut guest = Guest::new();
        guest.say("skip xsetbv: no XSAVE\nl1: running pause\nfail pause: odd\nrefused: no\n");
        assert_eq!(
            guest.endings(),
            [
                (Kind::Xsetbv, Ending::Skipped("no XSAVE".into())),
                (
                    Kind::Pause,
                    Ending::Failed {
                        why: "odd".into(),
                        last_exit: None,
                        partial: None
                    }
                ),
            ]
        );
        assert_eq!(lock(&guest.record).refused.as_deref(), Some("no"));
        lock(&guest.record).cut_short("end");
        assert_eq!(guest.endings().len(), 2);
    }

    #[test]
    fn no_board_harms_the_host() {
        let mut guest = Guest::new();
        guest.say("l1: running cpuid\n");
        guest.ring(Doorbell::Done);
        for gpa in [BOARD, 0xf_f000, 0xffff_f000] {
            guest.ring(Doorbell::Board { gpa });
            guest.say("l1: running mmio\n");
            guest.ring(Doorbell::Done);
        }
        let beyond = Board {
            samples_gpa: 0xf_fff8,
            ..board(Kind::Pause, Status::Complete, 1)
        };
        guest.board(&beyond, &[]);
        guest.ring(Doorbell::Board { gpa: BOARD });
        guest.say("l1: running pause\n");
        guest.ring(Doorbell::Done);
        let why: Vec<_> = guest
            .endings()
            .into_iter()
            .map(|(_, ending)| match ending {
                Ending::Failed { why, .. } => why,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(why.len(), 3);
        assert!(why[0].contains("did not report its board"), "{why:?}");
        assert!(why[1].contains("begins with"), "{why:?}");
        assert!(why[2].contains("no RAM"), "{why:?}");
    }

    #[test]
    fn a_guest_can_ask_whether_somebody_listens() {
        let mut guest = Guest::new();
        let mut present = [0; 4];
        guest.bell.read(Region::ONLY, 0, &mut present);
        assert_eq!(u32::from_le_bytes(present), DOORBELL_PRESENT);
        let mut other = [0xff; 2];
        guest.bell.read(Region::ONLY, 0, &mut other);
        assert_eq!(other, [0xff; 2]);
    }
}
