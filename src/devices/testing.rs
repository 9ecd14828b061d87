//! Shared parts of the device tests: a recorder of interrupt lines, a manual clock, short forms of port
//! accesses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clock::Clock;
use crate::bus::{LockedDevice, Region, lock};
use crate::irq::{IrqLine, IrqSink};
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gsi;

/// Records the level of one line and counts its rising edges.
#[derive(Debug, Default)]
pub(crate) struct LineRecorder(Mutex<(bool, u32)>);

impl LineRecorder {
    pub(crate) fn line() -> (Arc<Self>, IrqLine) {
        let recorder = Arc::new(Self::default());
        (recorder.clone(), IrqLine::new(recorder, Gsi(4)))
    }

    pub(crate) fn high(&self) -> bool {
        lock(&self.0).0
    }

    pub(crate) fn edges(&self) -> u32 {
        lock(&self.0).1
    }
}

impl IrqSink for LineRecorder {
    fn set_level(&self, _gsi: Gsi, high: bool) {
        let mut state = lock(&self.0);
        if high && !state.0 {
            state.1 += 1;
        }
        state.0 = high;
    }
}

/// A clock that advances only when it is set.
#[derive(Debug, Default)]
pub(crate) struct HandClock {
    now: Mutex<(Duration, Duration)>,
}

impl HandClock {
    pub(crate) fn at_wall(wall: Duration) -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::new((Duration::ZERO, wall)),
        })
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut now = lock(&self.now);
        now.0 += by;
        now.1 += by;
    }
}

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        lock(&self.now).0
    }

    fn wall(&self) -> Duration {
        lock(&self.now).1
    }
}

pub(crate) fn inb(device: &mut dyn LockedDevice, offset: u64) -> u8 {
    let mut data = [0xff];
    device.read(Region::ONLY, offset, &mut data);
    data[0]
}

pub(crate) fn outb(device: &mut dyn LockedDevice, offset: u64, value: u8) {
    device.write(Region::ONLY, offset, &[value]);
}

pub(crate) fn inw(device: &mut dyn LockedDevice, offset: u64) -> u16 {
    let mut data = [0xff; 2];
    device.read(Region::ONLY, offset, &mut data);
    u16::from_le_bytes(data)
}

pub(crate) fn outw(device: &mut dyn LockedDevice, offset: u64, value: u16) {
    device.write(Region::ONLY, offset, &value.to_le_bytes());
}

pub(crate) fn inl(device: &mut dyn LockedDevice, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    device.read(Region::ONLY, offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn outl(device: &mut dyn LockedDevice, offset: u64, value: u32) {
    device.write(Region::ONLY, offset, &value.to_le_bytes());
}

/// Arbitrary accesses to a region: (is a write, offset, data).
pub(crate) fn accesses(
    span: u64,
) -> impl proptest::strategy::Strategy<Value = Vec<(bool, u64, Vec<u8>)>> {
    use proptest::prelude::*;
    proptest::collection::vec(
        (
            any::<bool>(),
            0..span,
            proptest::collection::vec(any::<u8>(), 1..=8),
        ),
        0..64,
    )
}

/// Performs such accesses; the device must not panic.
pub(crate) fn replay(
    device: &mut dyn LockedDevice,
    region: Region,
    accesses: Vec<(bool, u64, Vec<u8>)>,
) {
    for (write, offset, mut data) in accesses {
        if write {
            device.write(region, offset, &data);
        } else {
            device.read(region, offset, &mut data);
        }
    }
}

pub(crate) fn saved(device: &dyn LockedDevice) -> Vec<u8> {
    let mut body = Encoder::new();
    device.save(&mut body);
    body.into_body()
}

pub(crate) fn load(device: &mut dyn LockedDevice, body: &[u8]) -> Result<(), StateError> {
    let mut decoder = Decoder::new("device/test", device.state_version(), body);
    device.load(&mut decoder)?;
    decoder.finish()
}

/// Checks that saving, loading and saving again gives the same state.
pub(crate) fn assert_comes_back(device: &dyn LockedDevice, fresh: &mut dyn LockedDevice) {
    let body = saved(device);
    load(fresh, &body).unwrap();
    assert_eq!(saved(fresh), body);
    // No shorter body is accepted.
    for length in 0..body.len() {
        load(fresh, &body[..length]).unwrap_err();
    }
    load(fresh, &body).unwrap();
}

/// Invented bodies: a real one with arbitrary bytes in some places, or arbitrary bytes.
#[derive(Clone, Debug)]
pub(crate) struct Hostile {
    changes: Option<Vec<(usize, u8)>>,
    bytes: Vec<u8>,
}

pub(crate) fn hostile() -> impl proptest::strategy::Strategy<Value = Hostile> {
    use proptest::prelude::*;
    let changes = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..64);
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (proptest::option::weighted(0.8, changes), bytes)
        .prop_map(|(changes, bytes)| Hostile { changes, bytes })
}

impl Hostile {
    /// Loads it; returns whether the device accepted it. The caller then uses the device.
    pub(crate) fn load_into(self, device: &mut dyn LockedDevice) -> bool {
        let mut body = saved(device);
        match self.changes {
            Some(changes) if !body.is_empty() => {
                for (at, value) in changes {
                    let at = at % body.len();
                    body[at] = value;
                }
            }
            _ => body = self.bytes,
        }
        load(device, &body).is_ok()
    }
}
