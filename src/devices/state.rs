//! All devices' state: a section for each, `device/NAME`, and one for the clock that they share.

use std::time::Duration;

use super::clock::HostClock;
use crate::bus::SharedDevice;
use crate::state::{Encoder, Sections, StateError};

/// The section of the devices' clock.
pub const CLOCK_SECTION: &str = "device-clock";

const CLOCK_VERSION: u32 = 1;

/// The section of the device called `name`.
pub fn section_name(name: &str) -> String {
    format!("device/{name}")
}

/// Saves `devices` and their clock. No vCPU runs.
///
/// # Errors
/// If two devices have the same name.
pub fn save(
    devices: &[SharedDevice],
    clock: &HostClock,
    to: &mut Sections,
) -> Result<(), StateError> {
    let mut body = Encoder::new();
    body.u64(clock.nanos());
    to.push(CLOCK_SECTION, CLOCK_VERSION, body.into_body());
    for device in devices {
        let section = section_name(&device.name());
        if to.get(&section).is_some() {
            return Err(StateError::Duplicate { section });
        }
        let mut body = Encoder::new();
        device.save(&mut body);
        to.push(section, device.state_version(), body.into_body());
    }
    Ok(())
}

/// Loads `devices`, which were created from the same configuration, from their sections, and removes these.
///
/// The devices' clock continues from its saved value plus `missed`: the part of the time since then that
/// counts for the guest. Interrupt controllers must exist, in the state that was saved with the devices':
/// each device drives its lines at their saved levels.
///
/// # Errors
/// If a section is missing or invalid.
pub fn load(
    devices: &[SharedDevice],
    clock: &HostClock,
    missed: Duration,
    from: &mut Sections,
) -> Result<(), StateError> {
    let section = from.take(CLOCK_SECTION)?;
    let mut body = section.decoder(CLOCK_VERSION)?;
    let nanos = body.u64("monotonic clock")?;
    // 292 years: a larger value was never measured.
    if nanos > u64::MAX / 2 {
        return Err(body.invalid("monotonic clock", format!("{nanos} ns")));
    }
    body.finish()?;
    clock.go_on_from(Duration::from_nanos(nanos).saturating_add(missed));
    for device in devices {
        let section = from.take(&section_name(&device.name()))?;
        let mut body = section.decoder(device.state_version())?;
        device.load(&mut body)?;
        body.finish()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::bus::{Handler, LockedDevice, Region, lock};
    use crate::devices::clock::Clock;
    use crate::devices::debug::{DebugExit, Debugcon};
    use crate::devices::port61::Port61;
    use crate::devices::port92::Port92;
    use crate::devices::post::PostPort;
    use crate::devices::pvpanic::Pvpanic;
    use crate::devices::testing::{accesses, assert_comes_back, hostile, inb, replay};
    use crate::life::channel;

    proptest! {
        #[test]
        fn small_devices_come_back_after_any_accesses_and_no_state_harms(
            seq in accesses(4),
            body in hostile(),
        ) {
            let events = || channel().0;
            let pairs: [[Box<dyn LockedDevice>; 2]; 6] = [
                [(); 2].map(|()| Box::new(Port61::default()) as _),
                [(); 2].map(|()| Box::new(PostPort::default()) as _),
                [(); 2].map(|()| Box::new(Port92::new(events())) as _),
                [(); 2].map(|()| Box::new(Pvpanic::new(events())) as _),
                [(); 2].map(|()| Box::new(DebugExit::new(events())) as _),
                [(); 2].map(|()| Box::new(Debugcon::new(None)) as _),
            ];
            for [mut device, mut fresh] in pairs {
                replay(&mut *device, Region::ONLY, seq.clone());
                assert_comes_back(&*device, &mut *fresh);
                prop_assert_eq!(inb(&mut *device, 0), inb(&mut *fresh, 0));
                body.clone().load_into(&mut *device);
                replay(&mut *device, Region::ONLY, seq.clone());
            }
        }
    }

    fn devices() -> (Arc<Mutex<PostPort>>, Vec<SharedDevice>) {
        let events = channel().0;
        let post = Arc::new(Mutex::new(PostPort::default()));
        let devices: Vec<SharedDevice> =
            vec![post.clone(), Arc::new(Mutex::new(Port92::new(events)))];
        (post, devices)
    }

    #[test]
    fn devices_come_back_and_their_clock_never_goes_back() {
        let ((post, one), clock) = (devices(), HostClock::new());
        clock.go_on_from(Duration::from_secs(1000));
        post.write(Region::ONLY, 0, &[7]);
        let mut sections = Sections::new();
        save(&one, &clock, &mut sections).unwrap();
        assert_eq!(
            sections.names().collect::<Vec<_>>(),
            ["device-clock", "device/post", "device/port92"]
        );
        let saved_at = clock.monotonic();
        let ((post, two), clock) = (devices(), HostClock::new());
        load(&two, &clock, Duration::from_secs(5), &mut sections).unwrap();
        assert_eq!(lock(&post).last(), 7);
        let now = clock.monotonic();
        assert!(now >= Duration::from_secs(1005) && now < saved_at + Duration::from_secs(3600));
        sections.finish().unwrap();
    }

    #[test]
    fn what_is_missing_or_too_long_is_named() {
        let ((_, devices), clock) = (devices(), HostClock::new());
        let mut sections = Sections::new();
        save(&devices, &clock, &mut sections).unwrap();
        let mut without = sections.clone();
        without.take("device/post").unwrap();
        let error = load(&devices, &clock, Duration::ZERO, &mut without).unwrap_err();
        assert!(error.to_string().contains("device/post"), "{error}");
        sections.take("device/post").unwrap();
        sections.push("device/post", 1, vec![0; 2]);
        let error = load(&devices, &clock, Duration::ZERO, &mut sections).unwrap_err();
        assert!(error.to_string().contains("1 bytes too many"), "{error}");
    }

    #[test]
    fn two_devices_of_one_name_are_an_error() {
        let devices = [devices().1, devices().1].concat();
        assert!(matches!(
            save(&devices, &HostClock::new(), &mut Sections::new()),
            Err(StateError::Duplicate { section }) if section == "device/post"
        ));
    }
}
