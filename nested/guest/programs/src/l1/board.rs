//! The board in which the host finds the samples, and the doorbell that notifies the host.

use core::mem::offset_of;

use hypernest_nested::board::{Board, Status};
use hypernest_nested::l2exit::Kind;
use hypernest_nested::probe::{DOORBELL_PORT, DOORBELL_PRESENT, Doorbell};

use super::vcpu::LastExit;
use crate::cpu;
use crate::pages::Page;

/// Whether the host has a doorbell.
pub(crate) fn is_heard() -> bool {
    cpu::in32(DOORBELL_PORT) == DOORBELL_PRESENT
}

/// A board. L1 and its L2 both write to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoardPage {
    page: Page,
    heard: bool,
}

impl BoardPage {
    /// A board whose address is sent to the host if it has a doorbell.
    pub(crate) fn announced() -> Self {
        let board = Self {
            page: Page::new(),
            heard: is_heard(),
        };
        board.ring(Doorbell::Board {
            gpa: board.page.address(),
        });
        board
    }

    /// A board that the host does not read.
    pub(crate) fn unheard() -> Self {
        Self {
            page: Page::new(),
            heard: false,
        }
    }

    /// Whether the host reads the board.
    pub(crate) const fn is_heard(self) -> bool {
        self.heard
    }

    /// L1 begins with a kind.
    pub(crate) fn begin(self, kind: Kind, capacity: u64, samples: u64) {
        let words = Board::new(kind, capacity, samples).words();
        for (index, word) in words.into_iter().enumerate() {
            self.page.write64(index * 8, word);
        }
    }

    /// L2 begins with the samples that count.
    pub(crate) fn measuring(self) {
        self.set_status(Status::Measuring);
        self.ring(Doorbell::Begin);
        let now = cpu::tsc_serialised();
        self.page.write64(offset_of!(Board, stopwatch_begin), now);
    }

    /// L2 has taken them.
    pub(crate) fn measured(self) {
        let now = cpu::tsc_serialised();
        self.page.write64(offset_of!(Board, stopwatch_end), now);
        self.ring(Doorbell::End);
    }

    /// L1 has seen an exit.
    #[inline(always)]
    pub(crate) fn exited(self, reason: u64) {
        self.page
            .write64(offset_of!(Board, last_exit_reason), reason);
        if self.page.read64(offset_of!(Board, status)) == Status::Measuring as u64 {
            let exits = self.page.read64(offset_of!(Board, exits));
            self.page.write64(offset_of!(Board, exits), exits + 1);
        }
    }

    /// L1 has all samples.
    pub(crate) fn complete(self) {
        self.set_status(Status::Complete);
        self.ring(Doorbell::Done);
    }

    /// L1 aborts.
    pub(crate) fn fail(self, last: LastExit) {
        self.set_status(Status::Failed);
        self.page
            .write64(offset_of!(Board, last_exit_reason), last.reason);
        self.page.write64(
            offset_of!(Board, last_exit_qualification),
            last.qualification,
        );
        self.page
            .write64(offset_of!(Board, last_guest_rip), last.rip);
    }

    /// L2's TSC ticks from before the first sample to after the last one.
    pub(crate) fn stopwatch(self) -> u64 {
        let begin = self.page.read64(offset_of!(Board, stopwatch_begin));
        let end = self.page.read64(offset_of!(Board, stopwatch_end));
        end.wrapping_sub(begin)
    }

    /// The kind being measured, if any.
    pub(crate) fn kind(self) -> Option<Kind> {
        (self.page.read64(0) != 0)
            .then(|| Kind::from_index(self.page.read64(offset_of!(Board, kind))))?
    }

    /// The reason of the last exit that L1 saw.
    pub(crate) fn last_reason(self) -> u64 {
        self.page.read64(offset_of!(Board, last_exit_reason))
    }

    fn set_status(self, status: Status) {
        self.page.write64(offset_of!(Board, status), status as u64);
    }

    fn ring(self, doorbell: Doorbell) {
        if let (true, Some(value)) = (self.heard, doorbell.value()) {
            cpu::out32(DOORBELL_PORT, value);
        }
    }
}
