//! The calls that a device receives when its VM is paused, saved, reset and ended, and their order.

use std::sync::{Arc, Mutex, PoisonError};

use hypernest::bus::{Device, Handler, Region};
use hypernest::config::{Flags, HostLimits, build};
use hypernest::life::{MachineHandle, Request};
use hypernest::machine::{AfterSave, ExtraPorts, Machine, Running, save};
use hypernest::state::{Decoder, Encoder, StateError};
use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::Site;

pub(crate) const TESTS: &[Test] = &[Test::new(
    "world::devices_are_quiet_before_they_are_saved_reset_or_ended",
    order,
)
.needs(needs::guests)];

/// A port without a device of a PC.
const PORT: u16 = 0xc20;

#[derive(Debug, Default)]
struct Recorder {
    calls: Mutex<Vec<&'static str>>,
    blocker: Mutex<Option<String>>,
}

impl Recorder {
    fn add(&self, call: &'static str) {
        let calls = self.calls.lock();
        calls.unwrap_or_else(PoisonError::into_inner).push(call);
    }

    /// Checks that these were the calls since the last check.
    fn expect(&self, what: &str, expected: &[&str]) -> TestResult {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = std::mem::take(&mut *calls);
        if calls != expected {
            return Err(format!("{what}: {calls:?}, not {expected:?}").into());
        }
        Ok(())
    }

    fn block(&self, why: Option<&str>) {
        let mut blocker = self.blocker.lock().unwrap_or_else(PoisonError::into_inner);
        *blocker = why.map(str::to_owned);
    }
}

impl Handler for Recorder {
    fn read(&self, _region: Region, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _region: Region, _offset: u64, _data: &[u8]) {}
}

impl Device for Recorder {
    fn name(&self) -> String {
        "recorder".to_owned()
    }

    fn quiesce(&self) {
        self.add("quiesce");
    }

    fn drained(&self) -> bool {
        self.add("drained");
        true
    }

    fn resume(&self) {
        self.add("resume");
    }

    fn reset(&self) {
        self.add("reset");
    }

    fn blocker(&self) -> Option<String> {
        let blocker = self.blocker.lock();
        blocker.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn save(&self, _to: &mut Encoder) {
        self.add("save");
    }

    fn load(&self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

fn order() -> TestResult {
    let site = Site::new()?;
    let kernel = site.path("guest");
    let flags = Flags::from_pairs([
        ("name", "world"),
        ("kernel", kernel.to_str().ok_or("not UTF-8")?),
        ("cmdline", "beat"),
        ("memory", "32M"),
        ("hv", "none"),
        ("serial", "none"),
    ]);
    let config = build(None, &flags, HostLimits::default())?.config;
    let device = Arc::new(Recorder::default());
    let machine = Machine::new(config, &[ExtraPorts::new(PORT, 1, Arc::clone(&device))])?;
    let handle = machine.handle();
    let (recorder, saved) = (Arc::clone(&device), site.path("saved"));
    let steps = std::thread::spawn(move || {
        let taken = steps(&handle, &recorder, &saved).map_err(|e| e.to_string());
        handle.request(Request::Kill);
        taken
    });
    machine.run()?;
    steps.join().map_err(|_| "the steps panicked")??;
    device.expect("ended", &["quiesce", "drained"])
}

fn steps(handle: &MachineHandle, device: &Recorder, saved: &std::path::Path) -> TestResult {
    let on_main = |work: fn(&mut Running<'_>)| handle.run_on_main(work);
    on_main(|_| ())?;
    device.expect("powered on", &["reset", "resume"])?;
    on_main(|vm| vm.pause())?;
    device.expect("paused", &["quiesce", "drained"])?;
    on_main(|vm| vm.resume())?;
    device.expect("resumed", &["resume"])?;

    device.block(Some("it is passed through"));
    let refused = save(handle, saved, AfterSave::AsBefore).map_err(|e| e.to_string());
    let expected = "this VM cannot be saved or migrated: recorder: it is passed through";
    if refused != Err(expected.to_owned()) || saved.exists() {
        return Err(format!("a blocked save: {refused:?}").into());
    }
    device.expect("blocked", &[])?;
    device.block(None);

    // Held, and again when the vCPUs' last instructions have been completed.
    let quiet = ["quiesce", "drained", "quiesce", "drained"];
    save(handle, saved, AfterSave::AsBefore)?;
    device.expect("saved", &[&quiet[..], &["save", "resume"]].concat())?;
    save(handle, saved, AfterSave::Pause)?;
    on_main(|_| ())?;
    device.expect(
        "saved and paused",
        &[&quiet[..], &["save"], &quiet[..]].concat(),
    )?;

    // A VM runs after a reset, even if it was paused.
    for state in ["paused", "running"] {
        handle.request(Request::Reset);
        on_main(|_| ())?;
        device.expect(state, &["quiesce", "drained", "reset", "resume"])?;
    }
    Ok(())
}
