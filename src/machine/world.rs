//! Stops everything that could change the machine's state, and starts it again.
//!
//! A save, a migration's stop, a hold, a pause, a reset and the power-off all stop the same parts in the same
//! order. A new machine is stopped.

use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::{error, warn};

use super::cycle::PowerCycle;
use super::{Machine, MachineError};
use crate::block::Syncer;
use crate::bus::SharedDevice;
use crate::devices::io_thread::RunningIo;
use crate::error::chain;

/// The timeout for devices and the I/O thread to complete their requests.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a reset waits for that long.
const RESET_ATTEMPTS: u32 = 6;
/// The interval for polling devices meanwhile.
const DRAIN_POLL: Duration = Duration::from_millis(1);
/// The timeout for another process to end that uses what a device needs alone.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const ACQUIRE_POLL: Duration = Duration::from_millis(20);

/// The parts that are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// They make requests to devices.
    Vcpus,
    /// They have requests in flight, which write guest memory, raise interrupts and change the device when
    /// they complete.
    Devices,
    /// It completes requests, and delivers input and deadlines to devices.
    Io,
}

/// The order in which the parts are stopped: each could create work for later ones. They start in reverse, so
/// that the receivers of a part's work run before it.
pub(super) const STOP: [Part; 3] = [Part::Vcpus, Part::Devices, Part::Io];

/// Some parts have not stopped.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "these parts of the VM have not finished their work within {} s: {}", DRAIN_TIMEOUT.as_secs(),
    .0.join(", ")
)]
pub struct NotStopped(Vec<String>);

/// Parts that can be stopped.
pub(super) trait Parts {
    /// Stops a part; returns the names of those that have not stopped in time. The part may already be
    /// stopped.
    fn stop(&mut self, part: Part) -> Vec<String>;

    /// Starts a part.
    fn start(&mut self, part: Part);
}

/// Stops all parts. After an error they are stopped nevertheless, except those that it names.
pub(super) fn stop(parts: &mut impl Parts) -> Result<(), NotStopped> {
    let at_work: Vec<_> = STOP.iter().flat_map(|part| parts.stop(*part)).collect();
    if at_work.is_empty() {
        Ok(())
    } else {
        Err(NotStopped(at_work))
    }
}

/// Starts all parts.
pub(super) fn start(parts: &mut impl Parts) {
    for part in STOP.iter().rev() {
        parts.start(*part);
    }
}

struct OfMachine<'a> {
    cycle: &'a PowerCycle,
    devices: &'a [SharedDevice],
    io: &'a RunningIo,
}

impl Parts for OfMachine<'_> {
    fn stop(&mut self, part: Part) -> Vec<String> {
        match part {
            Part::Vcpus => {
                self.cycle.vcpus().pause();
                Vec::new()
            }
            Part::Devices => quiesce(self.devices, DRAIN_TIMEOUT),
            Part::Io if self.io.park(DRAIN_TIMEOUT) => Vec::new(),
            Part::Io => vec!["the I/O thread".to_owned()],
        }
    }

    fn start(&mut self, part: Part) {
        match part {
            Part::Vcpus => self.cycle.vcpus().resume(),
            Part::Devices => self.devices.iter().for_each(|device| device.resume()),
            Part::Io => self.io.unpark(),
        }
    }
}

/// Quiesces all devices, then waits for each; returns the names of those that are not drained in time.
pub(super) fn quiesce(devices: &[SharedDevice], timeout: Duration) -> Vec<String> {
    for device in devices {
        device.quiesce();
    }
    let deadline = Instant::now() + timeout;
    let drained = |device: &SharedDevice| {
        loop {
            if device.drained() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(DRAIN_POLL);
        }
    };
    let at_work = devices.iter().filter(|device| !drained(device));
    at_work.map(|device| device.name()).collect()
}

impl Machine {
    /// Takes what the devices use of the host alone, such as the images of disks, unless they have it.
    ///
    /// # Errors
    /// If another process uses it; then none is taken.
    pub fn acquire(&mut self) -> Result<(), MachineError> {
        if self.session.acquired {
            return Ok(());
        }
        let mut devices = self.hardware.devices.iter();
        let acquired = devices
            .try_for_each(|device| device.acquire())
            .map_err(MachineError::InUse);
        match acquired {
            Ok(()) => self.session.acquired = true,
            Err(_) => self.release(),
        }
        acquired
    }

    /// The same after a migration that has failed, whose destination may take a moment to end. An error is
    /// found again when the VM is to run.
    pub(super) fn reacquire(&mut self) {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        while self.acquire().is_err() && Instant::now() < deadline {
            std::thread::sleep(ACQUIRE_POLL);
        }
    }

    /// What puts all that the guest has written onto stable storage, for each device.
    pub(super) fn syncers(&self) -> Vec<Syncer> {
        let devices = self.hardware.devices.iter();
        devices.filter_map(|device| device.syncer()).collect()
    }

    /// [`Machine::acquire`] for a VM that may otherwise run: after an error it stays paused.
    pub(super) fn acquired(&mut self) -> bool {
        let acquired = self.acquire();
        if let Err(e) = &acquired {
            error!("the VM stays paused: {}", chain(e));
        }
        acquired.is_ok()
    }

    /// Lets another process have it. The VM is stopped.
    pub(super) fn release(&mut self) {
        self.hardware
            .devices
            .iter()
            .for_each(|device| device.release());
        self.session.acquired = false;
    }

    /// Stops vCPUs, devices and I/O, and waits until the guest's state no longer changes.
    pub(super) fn stop_world(&mut self, cycle: &PowerCycle) -> Result<(), NotStopped> {
        self.session.stopped = true;
        stop(&mut self.parts(cycle))
    }

    /// The same for a reset, which waits for slow storage.
    pub(super) fn stop_for_reset(&mut self, cycle: &PowerCycle) -> Result<(), NotStopped> {
        for _ in 1..RESET_ATTEMPTS {
            match self.stop_world(cycle) {
                Ok(()) => return Ok(()),
                Err(e) => warn!("the reset waits: {e}"),
            }
        }
        self.stop_world(cycle)
    }

    /// The same where parts that are still busy do no harm.
    pub(super) fn stop_world_or_warn(&mut self, cycle: &PowerCycle) {
        if let Err(e) = self.stop_world(cycle) {
            warn!("{e}");
        }
    }

    /// Starts everything that [`Machine::stop_world`] stops; only the vCPUs, if only they were parked.
    pub(super) fn start_world(&mut self, cycle: &PowerCycle) {
        if std::mem::take(&mut self.session.stopped) {
            start(&mut self.parts(cycle));
        } else {
            cycle.vcpus().resume();
        }
    }

    /// Resets all devices. The world is stopped.
    pub(super) fn reset_devices(&self) {
        debug_assert!(
            self.session.stopped,
            "a device is reset only while it is quiesced"
        );
        for device in &self.hardware.devices {
            device.reset();
        }
    }

    fn parts<'a>(&'a self, cycle: &'a PowerCycle) -> OfMachine<'a> {
        OfMachine {
            cycle,
            devices: &self.hardware.devices,
            io: &self.hardware.io,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::bus::{Device, lock};
    use crate::state::{Decoder, Encoder, StateError};

    #[derive(Default)]
    struct Recorder {
        calls: Vec<(bool, Part)>,
        at_work: Option<(Part, &'static str)>,
    }

    impl Parts for Recorder {
        fn stop(&mut self, part: Part) -> Vec<String> {
            self.calls.push((false, part));
            let at_work = self.at_work.filter(|(of, _)| *of == part);
            at_work
                .map(|(_, name)| name.to_owned())
                .into_iter()
                .collect()
        }

        fn start(&mut self, part: Part) {
            self.calls.push((true, part));
        }
    }

    #[test]
    fn start_is_stop_reversed() {
        let mut parts = Recorder::default();
        stop(&mut parts).unwrap();
        start(&mut parts);
        let (stopped, mut started) = parts.calls.split_at(STOP.len());
        let mut reversed = started.to_vec();
        reversed.reverse();
        started = &reversed;
        assert_eq!(stopped, STOP.map(|part| (false, part)));
        assert_eq!(started, STOP.map(|part| (true, part)));
    }

    #[test]
    fn a_part_at_work_is_named_and_the_others_are_stopped() {
        let mut parts = Recorder {
            at_work: Some((Part::Devices, "nvme0")),
            ..Recorder::default()
        };
        let error = stop(&mut parts).unwrap_err();
        assert_eq!(
            error.to_string(),
            "these parts of the VM have not finished their work within 10 s: nvme0"
        );
        assert_eq!(parts.calls.len(), STOP.len());
    }

    /// A device that is drained after a number of calls.
    struct Busy {
        name: &'static str,
        left: AtomicU32,
        calls: Arc<Mutex<Vec<String>>>,
    }

    impl Device for Busy {
        fn name(&self) -> String {
            self.name.to_owned()
        }

        fn quiesce(&self) {
            lock(&self.calls).push(format!("quiesce {}", self.name));
        }

        fn drained(&self) -> bool {
            let step = |left: u32| left.checked_sub(1);
            let left = self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
            if left.is_err() {
                lock(&self.calls).push(format!("drained {}", self.name));
            }
            left.is_err()
        }

        fn reset(&self) {}

        fn save(&self, _to: &mut Encoder) {}

        fn load(&self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
            Ok(())
        }
    }

    #[test]
    fn all_devices_are_quiesced_before_any_is_waited_for() {
        let calls = Arc::default();
        let device = |name, left| -> SharedDevice {
            Arc::new(Busy {
                name,
                left: AtomicU32::new(left),
                calls: Arc::clone(&calls),
            })
        };
        let devices = [device("a", 3), device("b", 0)];
        assert!(quiesce(&devices, DRAIN_TIMEOUT).is_empty());
        assert_eq!(
            *lock(&calls),
            ["quiesce a", "quiesce b", "drained a", "drained b"]
        );
        let devices = [device("stuck", u32::MAX), device("fine", 0)];
        assert_eq!(quiesce(&devices, Duration::from_millis(2)), ["stuck"]);
    }
}
