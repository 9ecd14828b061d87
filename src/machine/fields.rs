//! The fields of a [`Machine`](super::Machine), grouped by what they are about.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvm_ioctls::Kvm;

use super::attachments::Attachments;
use super::cycle::PowerCycle;
use super::guest_log::GuestLog;
use super::moving::Moving;
use super::plugged::Plugged;
use super::stand_in::StandIns;
use super::status::StatusBoard;
use super::triple_fault::TripleFaults;
use crate::bus::SharedDevice;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::clock::HostClock;
use crate::devices::flash::Flash;
use crate::devices::io_thread::RunningIo;
use crate::kvm::host::HostCaps;
use crate::life::{Inbox, LifeState, MachineHandle};
use crate::time::HostTsc;
use crate::time::switch::{SwitchStep, Switched};
use crate::vcpu::platform::VcpuPlatform;

/// The host that the VM runs on.
pub(super) struct Host {
    pub(super) kvm: Kvm,
    /// What the TSC can do; its frequency is known while a VM is powered on.
    pub(super) tsc: HostTsc,
    /// Exits may be timed by the TSC.
    pub(super) tsc_is_a_clock: bool,
}

impl Host {
    pub(super) fn new(caps: &HostCaps, kvm: Kvm) -> Self {
        Self {
            kvm,
            tsc: HostTsc::from(caps),
            tsc_is_a_clock: caps.system.tsc_is_a_clock(),
        }
    }
}

/// The requests to the main thread and its decisions.
pub(super) struct Session {
    pub(super) handle: MachineHandle,
    pub(super) inbox: Inbox,
    pub(super) life: LifeState,
    pub(super) board: StatusBoard,
    pub(super) guest_log: GuestLog,
    pub(super) triple_faults: TripleFaults,
    /// When this power cycle began to run.
    pub(super) powered_on: Instant,
    /// vCPUs, devices and I/O are stopped, by [`world`](super::world).
    pub(super) stopped: bool,
    /// The devices have what they use of the host alone.
    pub(super) acquired: bool,
}

impl Session {
    /// Of a machine that is not powered on.
    pub(super) fn new(handle: MachineHandle, inbox: Inbox, board: StatusBoard) -> Self {
        Self {
            handle,
            inbox,
            life: LifeState::new(),
            board,
            guest_log: GuestLog::default(),
            triple_faults: TripleFaults::default(),
            powered_on: Instant::now(),
            stopped: true,
            acquired: false,
        }
    }
}

/// What the guest sees of the machine besides its vCPUs. It outlives power cycles.
pub(super) struct Hardware {
    pub(super) platform: Arc<VcpuPlatform>,
    pub(super) devices: Vec<SharedDevice>,
    /// Those of them that users name.
    pub(super) plugged: Plugged,
    /// The devices' time.
    pub(super) clock: Arc<HostClock>,
    /// Has the power button.
    pub(super) acpi: Arc<Mutex<AcpiPm>>,
    /// The flash memory of a VM that starts in firmware.
    pub(super) flash: Option<Arc<Flash>>,
    /// What each power cycle's VM in KVM gets.
    pub(super) attachments: Attachments,
    /// Serves consoles and the devices' deadlines.
    pub(super) io: RunningIo,
}

/// The guest's TSC.
#[derive(Default)]
pub(super) struct GuestTime {
    /// The TSC keeps its frequency, even if the guest has requested the host's on an earlier host.
    pub(super) keeps_frequency: bool,
    /// Steps that each change of the frequency leaves out.
    pub(super) left_out: Vec<SwitchStep>,
    /// The last change of the frequency in this power cycle.
    pub(super) switched: Option<Switched>,
}

/// What saving, restoring and migrating need.
#[derive(Default)]
pub(super) struct Transfer {
    /// Restored, and not running yet.
    pub(super) restored: Option<PowerCycle>,
    /// What KVM has of enlightened VMCSs since the VM was restored.
    pub(super) stand_ins: StandIns,
    /// The migration that is under way.
    pub(super) moving: Moving,
}
