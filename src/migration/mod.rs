//! Live migration: moves a running VM to another process, on this host or on another.
//!
//! The source copies RAM while the guest runs ([`precopy`] decides for how long). Then it stops the guest,
//! sends the remaining pages and the state of everything else, and the destination resumes the VM.
//! [`phase`] decides which end owns the VM, and why two copies never run. [`source`] and [`destination`]
//! carry this out over [`transport`] in the frames of [`wire`]; the traits [`SourceVm`] and
//! [`DestinationVm`] are what they require of the VM. docs/migration.md describes migration for users, and
//! the wire format.

mod arrivals;
mod channel;
pub mod destination;
#[cfg(test)]
mod fault_tests;
pub mod pace;
pub mod pages;
pub mod peer;
pub mod phase;
pub mod precopy;
pub mod progress;
pub mod source;
#[cfg(test)]
mod stranger_tests;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod wire;

use std::time::Duration;

use thiserror::Error;

pub use channel::Channel;
pub use destination::{Received, receive};
pub use progress::{MigrationReport, Progress};
pub use source::{End, migrate};
pub use transport::{Address, Cancel, Dialer, Listener, Security};

use crate::boot::BootFiles;
use crate::error::{bullets, chain};
use crate::memory::GuestRam;
use crate::memory::dirty::PageSet;
use pages::PagesError;
use transport::TransportError;
use wire::{Versions, WireError};

/// The default timeout: the longest that one end waits for the other to send or read.
pub const STALL: Duration = Duration::from_secs(30);
/// The default downtime budget.
pub const DOWNTIME: Duration = Duration::from_millis(300);
/// The maximum number of connections.
pub const MAX_CONNECTIONS: u16 = 64;

/// An error of the VM itself, opaque to this module.
pub type MigrationVmError = Box<dyn std::error::Error + Send + Sync>;

/// Why a migration failed.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The other end could not be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection failed, or the peer sent an invalid frame or message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer sent invalid guest memory.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The two ends have no protocol version in common.
    #[error(
        "the source supports version {source_speaks} of the migration protocol, the destination \
         {destination_speaks}"
    )]
    Versions {
        /// The source's.
        source_speaks: Versions,
        /// The destination's.
        destination_speaks: Versions,
    },
    /// The source requires a feature that this end does not support.
    #[error(
        "the source requires the feature {0:?} of the migration protocol, which the destination's version \
         of hypernest does not support"
    )]
    Unknown(String),
    /// The destination cannot keep the promise to the guest.
    #[error("the destination cannot run this VM:{}", bullets(.0))]
    Refused(Vec<String>),
    /// The other end aborted and sent this reason.
    #[error("the other end aborted: {0}")]
    Peer(String),
    /// The VM failed to perform a step.
    #[error("cannot {doing}")]
    Vm {
        /// The step that failed, after "cannot".
        doing: &'static str,
        /// The cause.
        source: MigrationVmError,
    },
    /// A thread or a buffer could not be created.
    #[error("cannot {doing}")]
    Resources {
        /// The step that failed, after "cannot".
        doing: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Some of the source's additional connections did not arrive in time.
    #[error("{missing} of the source's additional connections did not arrive in time")]
    MissingConnections {
        /// The number of missing connections.
        missing: usize,
    },
    /// A user cancelled the migration.
    #[error("the migration was cancelled")]
    Cancelled,
}

impl MigrationError {
    fn vm(doing: &'static str) -> impl FnOnce(MigrationVmError) -> Self {
        move |source| Self::Vm { doing, source }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// The source's interface to its VM.
pub trait SourceVm {
    /// Returns the promise to the guest, as an opaque blob for [`DestinationVm::prepare`].
    ///
    /// # Errors
    /// If the VM has ended.
    fn promise(&mut self) -> Result<Vec<u8>, MigrationVmError>;

    /// Returns the files that a reset boots, if the VM keeps them.
    ///
    /// # Errors
    /// If the VM has ended.
    fn boot_files(&mut self) -> Result<Option<BootFiles>, MigrationVmError>;

    /// The guest's RAM.
    fn ram(&self) -> GuestRam;

    /// From now on written pages are logged.
    ///
    /// # Errors
    /// If KVM refuses.
    fn start_log(&mut self) -> Result<(), MigrationVmError>;

    /// Adds the pages that were written since the last call to `dirty`.
    ///
    /// # Errors
    /// If KVM refuses.
    fn collect(&mut self, dirty: &mut PageSet) -> Result<(), MigrationVmError>;

    /// Reduces the vCPUs' running time by this percentage.
    fn throttle(&mut self, percent: u8);

    /// Stops all vCPUs and saves everything but RAM. Pages that saving writes are in the next
    /// [`SourceVm::collect`].
    ///
    /// # Errors
    /// If something cannot be saved; the caller then calls [`SourceVm::resume`].
    fn stop(&mut self) -> Result<Stopped, MigrationVmError>;

    /// Keeps the VM here: ends the dirty log and the throttle, and lets the vCPUs run if they ran before.
    fn resume(&mut self);

    /// Keeps the VM stopped until a user resumes it, since the destination may run it.
    fn keep_stopped(&mut self);
}

/// A stopped VM that is ready to be handed off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Everything but RAM, as an opaque blob for [`DestinationVm::load`].
    pub state: Vec<u8>,
    /// Whether its vCPUs ran before.
    pub running: bool,
}

/// The destination's interface to the VM that it receives.
pub trait DestinationVm {
    /// Compares the promise to the guest with this host, and returns the RAM to fill.
    ///
    /// # Errors
    /// All reasons why this host cannot run the VM.
    fn prepare(&mut self, promise: &[u8]) -> Result<GuestRam, Vec<String>>;

    /// Stores the files that a reset boots, in the order of [`BootFiles::all`]; called at most once, after
    /// [`DestinationVm::prepare`].
    ///
    /// # Errors
    /// If these are not the files of the promised VM.
    fn keep_boot_files(&mut self, files: Vec<Vec<u8>>) -> Result<(), MigrationVmError>;

    /// Builds the VM around the complete RAM. The VM is then ready to run; its vCPUs will run only if they
    /// ran at the source.
    ///
    /// # Errors
    /// If it cannot be built.
    fn load(&mut self, state: Vec<u8>, running: bool) -> Result<(), MigrationVmError>;

    /// Called when this end owns the VM. This cannot fail.
    fn run(&mut self);
}
