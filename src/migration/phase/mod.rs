//! How far each end has come, what may happen next, and who has the VM. Pure: the two ends only carry out what is said here.
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
//! Sending Commit is the single point of commitment. Before it the VM is the source's, whatever happens; a destination that
//! has read it runs the VM, whatever happens. In between neither end alone can know: a source that has sent Commit and hears
//! nothing does not run the VM again unless the destination's process is known to have ended, and a destination that holds
//! everything and hears nothing runs it only if the source's process is known to have ended. So there are never two.

#[cfg(test)]
mod model_tests;

use serde::{Deserialize, Serialize};

/// How far the source has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// It looks for the destination, and greets it.
    Connecting,
    /// The destination compares what the guest was promised with what it has.
    Comparing,
    /// RAM is copied while the guest runs.
    Copying,
    /// The guest is stopped; the rest is sent.
    HandingOver,
    /// Commit was sent, or may have been.
    Committed,
    /// The VM runs at the destination.
    Gone,
    /// The VM stayed, and goes on if it ran.
    Kept,
    /// The VM is kept stopped: the destination may run it, and cannot be asked.
    Undecided,
}

/// What can happen to a source.
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
    /// The connection is of no use any more, a user wants no more of it, or the VM cannot be stopped or saved.
    Trouble,
    /// The destination said that it gave up, after which it never runs the VM.
    PeerGaveUp,
    /// The destination's process is known to have ended.
    PeerEnded,
}

/// Whether this end's vCPUs may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vm {
    /// They may.
    Runs,
    /// They are stopped, and everything is kept.
    Stopped,
    /// It is not here.
    NotHere,
}

impl Source {
    /// All of them, in order.
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

    /// What follows; `None` if this cannot happen here.
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
            // A VM that had begun to run there is over as well.
            (Self::Committed | Self::Undecided, E::PeerEnded) => Self::Kept,
            _ => return None,
        })
    }

    /// Whether the vCPUs may run here.
    pub fn vm(self) -> Vm {
        match self {
            Self::Connecting | Self::Comparing | Self::Copying | Self::Kept => Vm::Runs,
            Self::HandingOver | Self::Committed | Self::Undecided => Vm::Stopped,
            Self::Gone => Vm::NotHere,
        }
    }

    /// Whether a user may still stop the migration.
    pub fn can_be_cancelled(self) -> bool {
        matches!(
            self,
            Self::Connecting | Self::Comparing | Self::Copying | Self::HandingOver
        )
    }

    /// Whether it is over.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Gone | Self::Kept | Self::Undecided)
    }

    /// One word or two.
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

/// How far the destination has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// Nobody has come yet.
    Waiting,
    /// It learns what the guest was promised.
    Checking,
    /// RAM and state come in.
    Receiving,
    /// It has everything and could run.
    Holding,
    /// The VM is its own.
    Running,
    /// It has nothing, and never ran anything.
    GaveUp,
}

/// What can happen to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// A source greeted.
    Hello,
    /// The promise came and can be kept.
    PromiseKept,
    /// RAM and state came, and the VM is complete.
    Complete,
    /// The source gave the VM away.
    Commit,
    /// The source gave up, the connection is of no use any more, or the VM cannot be built.
    Trouble,
    /// The connection is gone and the source's process is known to have ended.
    PeerEnded,
}

impl Destination {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Checking,
        Self::Receiving,
        Self::Holding,
        Self::Running,
        Self::GaveUp,
    ];

    /// What follows; `None` if this cannot happen here.
    pub fn after(self, event: DestinationEvent) -> Option<Self> {
        use DestinationEvent as E;
        Some(match (self, event) {
            (Self::Waiting, E::Hello) => Self::Checking,
            (Self::Checking, E::PromiseKept) => Self::Receiving,
            (Self::Receiving, E::Complete) => Self::Holding,
            (Self::Holding, E::Commit) => Self::Running,
            // Nobody else has it, and here is all of it.
            (Self::Holding, E::PeerEnded) => Self::Running,
            (Self::Waiting | Self::Checking | Self::Receiving, E::Trouble | E::PeerEnded)
            | (Self::Holding, E::Trouble) => Self::GaveUp,
            _ => return None,
        })
    }

    /// Whether the vCPUs may run here.
    pub fn vm(self) -> Vm {
        match self {
            Self::Waiting | Self::Checking | Self::GaveUp => Vm::NotHere,
            Self::Receiving | Self::Holding => Vm::Stopped,
            Self::Running => Vm::Runs,
        }
    }
}
