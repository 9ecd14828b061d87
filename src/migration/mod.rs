//! Moving a running VM to another process, here or on another host.
//!
//! RAM is copied while the guest runs ([`precopy`] says for how long), then the guest is stopped, the rest and the state of
//! everything else is sent, and the destination goes on. [`phase`] is the heart: it says who has the VM, and why there are
//! never two. [`source`] and [`destination`] carry it out over [`transport`] in the frames of [`wire`]; what they need of the
//! VM are the traits [`Origin`] and [`Target`]. docs/migration.md describes it for users, with the format on the wire.

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
pub use progress::{Progress, Report};
pub use source::{End, migrate};
pub use transport::{Address, Cancel, Dialer, Listener, Security};

use crate::boot::BootFiles;
use crate::error::{bullets, chain};
use crate::memory::GuestRam;
use crate::memory::dirty::PageSet;
use pages::PagesError;
use transport::TransportError;
use wire::{Versions, WireError};

/// The longest that one end waits for a sign of the other.
pub const STALL: Duration = Duration::from_secs(30);
/// The budget for the guest's stop, unless told otherwise.
pub const DOWNTIME: Duration = Duration::from_millis(300);
/// The most connections.
pub const MAX_CONNECTIONS: u16 = 64;

/// What goes wrong with a VM, in its own words.
pub type VmError = Box<dyn std::error::Error + Send + Sync>;

/// Why a migration did not succeed.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The other end could not be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection failed, or something came over it that makes no sense.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Guest memory that came makes no sense.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The two ends speak no common version.
    #[error(
        "the source speaks version {source_speaks} of the migration protocol, the destination {destination_speaks}"
    )]
    Versions {
        /// The source's.
        source_speaks: Versions,
        /// The destination's.
        destination_speaks: Versions,
    },
    /// The source needs what this end does not know.
    #[error("the source needs {0:?}, which this version does not know")]
    Unknown(String),
    /// The destination cannot keep what the guest was promised.
    #[error("the destination cannot run this VM:{}", bullets(.0))]
    Refused(Vec<String>),
    /// The other end gave up and said why.
    #[error("the other end gave up: {0}")]
    Peer(String),
    /// The VM could not do its part.
    #[error("cannot {doing}")]
    Vm {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: VmError,
    },
    /// A thread or a buffer.
    #[error("cannot {doing}")]
    Resources {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Further connections of the source have not come.
    #[error("{missing} of the source's further connections have not come in time")]
    MissingConnections {
        /// How many.
        missing: usize,
    },
    /// A user wants no more of it.
    #[error("the migration was cancelled")]
    Cancelled,
}

impl MigrationError {
    fn vm(doing: &'static str) -> impl FnOnce(VmError) -> Self {
        move |source| Self::Vm { doing, source }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// What the source needs of its VM.
pub trait Origin {
    /// What the guest was promised, as an opaque blob for [`Target::prepare`].
    ///
    /// # Errors
    /// If it cannot be told.
    fn promise(&mut self) -> Result<Vec<u8>, VmError>;

    /// What a reset boots, if the VM has it.
    ///
    /// # Errors
    /// If the VM has ended.
    fn boot_files(&mut self) -> Result<Option<BootFiles>, VmError>;

    /// The guest's RAM.
    fn ram(&self) -> GuestRam;

    /// From now on written pages are logged.
    ///
    /// # Errors
    /// If KVM refuses.
    fn start_log(&mut self) -> Result<(), VmError>;

    /// Adds the pages that were written since the last call to `dirty`.
    ///
    /// # Errors
    /// If KVM refuses.
    fn collect(&mut self, dirty: &mut PageSet) -> Result<(), VmError>;

    /// Takes this share of their time from the vCPUs, in percent.
    fn throttle(&mut self, percent: u8);

    /// Stops all vCPUs and saves everything but RAM. What saving writes into RAM is in the next [`Origin::collect`].
    ///
    /// # Errors
    /// If something cannot be saved; then [`Origin::go_on`] follows.
    fn stop(&mut self) -> Result<Stopped, VmError>;

    /// The VM stays: no more log, no throttle, and the vCPUs run if they ran.
    fn go_on(&mut self);

    /// The VM stays stopped until its user says otherwise, since the destination may run it.
    fn keep_stopped(&mut self);
}

/// A VM that was stopped to be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Everything but RAM, as an opaque blob for [`Target::load`].
    pub state: Vec<u8>,
    /// Whether its vCPUs ran before.
    pub running: bool,
}

/// What the destination needs to become the VM.
pub trait Target {
    /// Compares what the guest was promised with what is here, and gets the RAM.
    ///
    /// # Errors
    /// Every reason why it cannot be.
    fn prepare(&mut self, promise: &[u8]) -> Result<GuestRam, Vec<String>>;

    /// Keeps what a reset boots, in the order of [`BootFiles::all`]; called at most once, after [`Target::prepare`].
    ///
    /// # Errors
    /// If these are not the files of the VM that was promised.
    fn keep_boot_files(&mut self, files: Vec<Vec<u8>>) -> Result<(), VmError>;

    /// Builds the VM around the RAM, which is complete. It could run then; its vCPUs will only if they ran at the source.
    ///
    /// # Errors
    /// If it cannot be built.
    fn load(&mut self, state: Vec<u8>, running: bool) -> Result<(), VmError>;

    /// The VM is this end's. This cannot fail.
    fn run(&mut self);
}
