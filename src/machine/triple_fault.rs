//! The reaction to a triple fault: a PC resets, but not forever.

use std::time::Duration;

use crate::config::OnTripleFault;

/// A guest that faults earlier than this after its power cycle's start has made no progress.
const NOWHERE: Duration = Duration::from_secs(3);
/// This many in a row, each that early, stop the VM.
const MAX_IN_A_ROW: u32 = 5;

/// Counts consecutive triple faults.
#[derive(Debug, Default)]
pub(super) struct TripleFaults {
    in_a_row: u32,
}

/// The reaction to a triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// The machine is reset.
    Reset,
    /// The VM ends with the report, as `on-triple-fault` requests.
    Stop,
    /// The VM ends with the report: this many resets before it made no progress.
    GiveUp(u32),
}

impl TripleFaults {
    /// Called for a triple fault of a guest that had run for `ran` since the start of its power cycle.
    pub(super) fn next(&mut self, action: OnTripleFault, ran: Duration) -> Consequence {
        if action == OnTripleFault::Stop {
            return Consequence::Stop;
        }
        self.in_a_row = match ran < NOWHERE {
            true => self.in_a_row + 1,
            false => 0,
        };
        match self.in_a_row {
            MAX_IN_A_ROW.. => Consequence::GiveUp(MAX_IN_A_ROW - 1),
            _ => Consequence::Reset,
        }
    }

    /// Called when the machine was reset for another reason.
    pub(super) fn other_reset(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Consequence::{GiveUp, Reset, Stop};
    use super::*;

    const EARLY: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_secs(60);

    #[test]
    fn five_early_ones_in_a_row_stop_the_vm() {
        let mut faults = TripleFaults::default();
        for _ in 0..4 {
            assert_eq!(faults.next(OnTripleFault::Reset, EARLY), Reset);
        }
        assert_eq!(faults.next(OnTripleFault::Reset, EARLY), GiveUp(4));
    }

    #[test]
    fn a_guest_that_gets_somewhere_may_fault_for_ever() {
        let mut faults = TripleFaults::default();
        for round in 0..100 {
            let ran = if round % 5 == 4 { LATE } else { EARLY };
            assert_eq!(faults.next(OnTripleFault::Reset, ran), Reset, "{round}");
        }
        let mut faults = TripleFaults::default();
        for round in 0..100 {
            assert_eq!(faults.next(OnTripleFault::Reset, EARLY), Reset, "{round}");
            if round % 4 == 3 {
                faults.other_reset();
            }
        }
    }

    #[test]
    fn the_first_one_stops_the_vm_if_asked_for() {
        let mut faults = TripleFaults::default();
        assert_eq!(faults.next(OnTripleFault::Stop, LATE), Stop);
    }
}
