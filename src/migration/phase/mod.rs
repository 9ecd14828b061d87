//! The phases of both ends, their transitions, and which end owns the VM. Pure: the two ends only carry out
//! these decisions.
//!
//! ```text
//!  source        Connecting ─► Comparing ─► Copying ─► HandingOver ─► Committed ─► Gone
//!                    │             │           │            │             │
//!                    └─────────────┴───────────┴────────────┴─► Kept ◄────┴─► Undecided
//!
//!  destination   Waiting ─► Checking ─► Receiving ─► Holding ─► Running
//!                    │          │           │           │
//!                    └──────────┴───────────┴───────────┴─► GaveUp
//! ```
//!
//! Sending Commit is the single point of commitment. Before Commit the source owns the VM in every case; a
//! destination that has read Commit runs the VM in every case. In between neither end alone can decide: a
//! source that has sent Commit and receives no reply does not run the VM again unless the destination's
//! process is known to have ended, and a destination that holds everything and receives no Commit runs the
//! VM only if the source's process is known to have ended. So two copies never run.

#[cfg(test)]
mod model_tests;

use serde::{Deserialize, Serialize};

/// The phase of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourcePhase {
    /// Connects to the destination and exchanges Hello and Welcome.
    Connecting,
    /// The destination compares the promise to the guest with its host.
    Comparing,
    /// RAM is copied while the guest runs.
    Copying,
    /// The guest is stopped; the source sends the remaining pages and the state.
    HandingOver,
    /// Commit was sent, or may have been.
    Committed,
    /// The VM runs at the destination.
    Gone,
    /// The VM stays at the source, and resumes if it ran.
    Kept,
    /// The VM stays stopped at the source: the destination may run it, and cannot be reached.
    Undecided,
}

/// An event at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The destination greeted.
    Welcome,
    /// The destination can keep the promise.
    Accept,
    /// RAM has converged: the guest is to be stopped.
    Stop,
    /// The destination holds everything.
    Ready,
    /// The destination runs the VM.
    Running,
    /// The connection failed, a user cancelled, or the VM cannot be stopped or saved.
    Trouble,
    /// The destination reported that it aborted; it never runs the VM after that.
    PeerGaveUp,
    /// The destination's process is known to have ended.
    PeerEnded,
}

/// Whether this end's vCPUs may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalVm {
    /// They may.
    Runs,
    /// They are stopped, and everything is kept.
    Stopped,
    /// The VM is not here.
    Absent,
}

impl SourcePhase {
    /// All phases, in order.
    pub const ALL: [Self; 8] = [
        Self::Connecting,
        Self::Comparing,
        Self::Copying,
        Self::HandingOver,
        Self::Committed,
        Self::Gone,
        Self::Kept,
        Self::Undecided,
    ];

    /// Returns the phase after `event`; `None` if the event is not possible in this phase.
    pub fn after(self, event: SourceEvent) -> Option<Self> {
        use SourceEvent as E;
        Some(match (self, event) {
            (Self::Connecting, E::Welcome) => Self::Comparing,
            (Self::Comparing, E::Accept) => Self::Copying,
            (Self::Copying, E::Stop) => Self::HandingOver,
            // Commit is sent because of this, and not before the phase has changed.
            (Self::HandingOver, E::Ready) => Self::Committed,
            (Self::Committed, E::Running) => Self::Gone,
            (
                Self::Connecting | Self::Comparing | Self::Copying | Self::HandingOver,
                E::Trouble | E::PeerGaveUp | E::PeerEnded,
            )
            | (Self::Committed, E::PeerGaveUp) => Self::Kept,
            (Self::Committed, E::Trouble) => Self::Undecided,
            // If the VM had started at the destination, that copy is gone as well.
            (Self::Committed | Self::Undecided, E::PeerEnded) => Self::Kept,
            _ => return None,
        })
    }

    /// Whether the vCPUs may run at this end.
    pub fn vm(self) -> LocalVm {
        match self {
            Self::Connecting | Self::Comparing | Self::Copying | Self::Kept => LocalVm::Runs,
            Self::HandingOver | Self::Committed | Self::Undecided => LocalVm::Stopped,
            Self::Gone => LocalVm::Absent,
        }
    }

    /// Whether a user may still stop the migration.
    pub fn can_be_cancelled(self) -> bool {
        matches!(
            self,
            Self::Connecting | Self::Comparing | Self::Copying | Self::HandingOver
        )
    }

    /// Whether the migration has ended.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Gone | Self::Kept | Self::Undecided)
    }

    /// The name for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Comparing => "comparing",
            Self::Copying => "copying",
            Self::HandingOver => "handing over",
            Self::Committed => "committed",
            Self::Gone => "gone",
            Self::Kept => "kept",
            Self::Undecided => "undecided",
        }
    }
}

/// The phase of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DestinationPhase {
    /// No source has connected yet.
    Waiting,
    /// Receives the promise to the guest, and compares it with this host.
    Checking,
    /// Receives RAM and state.
    Receiving,
    /// Holds the complete VM, ready to run.
    Holding,
    /// This end owns the VM.
    Running,
    /// Holds nothing, and never ran the VM.
    GaveUp,
}

/// An event at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// A source greeted.
    Hello,
    /// The promise arrived and can be kept.
    PromiseKept,
    /// RAM and state arrived, and the VM is complete.
    Complete,
    /// The source handed off the VM.
    Commit,
    /// The source aborted, the connection failed, or the VM cannot be built.
    Trouble,
    /// The connection is lost and the source's process is known to have ended.
    PeerEnded,
}

impl DestinationPhase {
    /// All phases, in order.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Checking,
        Self::Receiving,
        Self::Holding,
        Self::Running,
        Self::GaveUp,
    ];

    /// Returns the phase after `event`; `None` if the event is not possible in this phase.
    pub fn after(self, event: DestinationEvent) -> Option<Self> {
        use DestinationEvent as E;
        Some(match (self, event) {
            (Self::Waiting, E::Hello) => Self::Checking,
            (Self::Checking, E::PromiseKept) => Self::Receiving,
            (Self::Receiving, E::Complete) => Self::Holding,
            (Self::Holding, E::Commit) => Self::Running,
            // No other process has the VM, and this end holds all of it.
            (Self::Holding, E::PeerEnded) => Self::Running,
            (Self::Waiting | Self::Checking | Self::Receiving, E::Trouble | E::PeerEnded)
            | (Self::Holding, E::Trouble) => Self::GaveUp,
            _ => return None,
        })
    }

    /// Whether the vCPUs may run at this end.
    pub fn vm(self) -> LocalVm {
        match self {
            Self::Waiting | Self::Checking | Self::GaveUp => LocalVm::Absent,
            Self::Receiving | Self::Holding => LocalVm::Stopped,
            Self::Running => LocalVm::Runs,
        }
    }
}
