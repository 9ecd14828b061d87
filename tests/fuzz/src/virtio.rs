//! A virtio device as its driver accesses it: by configuration space, by its BARs, and by guest memory.

use hypernest::block::{DiskRequest, Resize, ThrottleChange};
use hypernest::bus::{DeviceRequest, lock};
use hypernest::config::VmConfig;
use hypernest::layout::AddressMap;
use hypernest::machine::DevicesWithoutVm;
use hypernest::memory::balloon::BalloonRequest;
use hypernest::net::control::NetRequest;
use hypernest::state::Sections;
use hypernest::units::Gpa;

use crate::Input;

const CONFIG: &str = "name = \"fuzz\"\nmemory = \"64M\"\nkernel = \"/nowhere\"\nhv = \"none\"\n\
                      serial = \"none\"\nserial2 = \"none\"\ndebugcon = \"none\"\ndebug-exit = \
                      false\nfw-cfg = false\n";

/// Configuration space of slot 3 (PCI Express Base 5.0, 7.2.2).
const FUNCTION: u64 = AddressMap::DIRECT_1.ecam.start + (3 << 15);
/// What the block device is called.
const DISK: &str = "virtio-blk0";
/// The id of the network card.
const CARD: &str = "virtio-net0";
/// The id of the console or port.
const CONSOLE: &str = "virtio-console0";
/// The id of the balloon.
const BALLOON: &str = "virtio-balloon0";
/// The RAM that the balloon knows of.
const BALLOON_RAM: u64 = 64 << 20;
/// Its section in a saved VM.
const SECTION: &str = "device/pci-00:03.0";
/// Where the targets place the BARs before the input's accesses.
const STRUCTURES: u64 = 0xd000_0000;
const MSIX: u64 = 0xd010_0000;
/// Device status, and its bit for a driver that is ready (virtio 1.2, 4.1.4.3 and 2.1).
const STATUS: u64 = 0x14;
const DRIVER_OK: u8 = 4;

thread_local! {
    static RNG: DevicesWithoutVm = machine("virtio-rng");
    /// Its blocks are in memory.
    static BLK: DevicesWithoutVm = machine("virtio-blk");
    /// Each frame comes back.
    static NET: DevicesWithoutVm = machine("virtio-net,queues=2,mtu=1500");
    static CONSOLE_DEVICE: DevicesWithoutVm = machine("virtio-console");
    static PORT: DevicesWithoutVm = machine("virtio-console,name=org.hypernest.fuzz");
    static BALLOON_DEVICE: DevicesWithoutVm =
        machine("virtio-balloon,deflate-on-oom=on,free-page-reporting=on");
}

/// A machine with a device of this type, whose driver chooses the form of its rings.
fn machine(device: &str) -> DevicesWithoutVm {
    let config = format!("{CONFIG}device = \"{device},packed,slot=3\"\n");
    let config = VmConfig::from_saved(config).expect("a configuration");
    DevicesWithoutVm::new(&config).expect("devices can be made without a VM")
}

/// A driver of the entropy device, see [`driver`].
pub(crate) fn rng(bytes: &[u8]) -> bool {
    RNG.with(|devices| driver(devices, bytes))
}

/// A driver of the block device, see [`driver`].
pub(crate) fn blk(bytes: &[u8]) -> bool {
    BLK.with(|devices| driver(devices, bytes))
}

/// A driver of the network card, see [`driver`].
pub(crate) fn net(bytes: &[u8]) -> bool {
    NET.with(|devices| driver(devices, bytes))
}

/// The network card's state, see [`state`].
pub(crate) fn net_state(bytes: &[u8]) -> bool {
    NET.with(|devices| state(devices, bytes))
}

/// A driver of the console, see [`driver`].
pub(crate) fn console(bytes: &[u8]) -> bool {
    CONSOLE_DEVICE.with(|devices| driver(devices, bytes))
}

/// A driver of the port with a name, see [`driver`].
pub(crate) fn port(bytes: &[u8]) -> bool {
    PORT.with(|devices| driver(devices, bytes))
}

/// The port's state, see [`state`].
pub(crate) fn port_state(bytes: &[u8]) -> bool {
    PORT.with(|devices| state(devices, bytes))
}

/// A driver of the balloon, see [`driver`].
pub(crate) fn balloon(bytes: &[u8]) -> bool {
    BALLOON_DEVICE.with(|devices| driver(devices, bytes))
}

/// The balloon's state, see [`state`].
pub(crate) fn balloon_state(bytes: &[u8]) -> bool {
    BALLOON_DEVICE.with(|devices| state(devices, bytes))
}

/// The entropy device's state, see [`state`].
pub(crate) fn rng_state(bytes: &[u8]) -> bool {
    RNG.with(|devices| state(devices, bytes))
}

/// The block device's state, see [`state`].
pub(crate) fn blk_state(bytes: &[u8]) -> bool {
    BLK.with(|devices| state(devices, bytes))
}

/// Steps of `what, offset u16, data u64`: bits 2:0 of `what` select the space or a user's request, bits 4:3
/// are the size's logarithm, bit 5 writes. Returns whether the driver's initialization was completed.
fn driver(devices: &DevicesWithoutVm, bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    power_on(devices);
    let mut ready = false;
    while !input.is_empty() {
        step(devices, &mut input);
        let mut status = [0];
        ready |= devices.read(true, STRUCTURES + STATUS, &mut status)
            && status[0] != 0xff
            && status[0] & DRIVER_OK != 0;
    }
    comes_back(devices);
    ready
}

/// `position u16, length u8`, bytes that replace so many of the device's saved state from that position on,
/// which is counted from the end, `before u8`, and steps as above: so many before the state is saved, damaged
/// and loaded, and the rest after that. Whether the damaged state was loaded.
fn state(devices: &DevicesWithoutVm, bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let (position, len) = (input.u16(), input.u8());
    let replacement = input.bytes(len.into());
    let before = input.u8();
    power_on(devices);
    for _ in 0..before {
        step(devices, &mut input);
    }
    devices.quiesce();
    let mut damaged = Sections::new();
    for section in devices.save().expect("devices can be saved").iter() {
        let mut body = section.body.clone();
        if section.name == SECTION {
            let at = body.len().saturating_sub(position.into());
            for (byte, new) in body[at..].iter_mut().zip(replacement) {
                *byte = *new;
            }
        }
        damaged.push(section.name.clone(), section.version, body);
    }
    let loaded = devices.load(&mut damaged).is_ok();
    devices.resume();
    while !input.is_empty() {
        step(devices, &mut input);
    }
    devices.quiesce();
    assert_eq!(devices.panicked_thread(), None);
    // After a refusal a device may be anything that does no harm, and its VM has ended.
    if loaded {
        comes_back(devices);
    }
    loaded
}

/// Running, with empty RAM and the BARs in their places.
fn power_on(devices: &DevicesWithoutVm) {
    devices.quiesce();
    devices.reset();
    // What users have asked for stays.
    if devices.report(CARD).is_some() {
        request(devices, 0, 0);
    }
    if devices.report(DISK).is_some() {
        request(devices, 2, 1 << 20);
        request(devices, 1, 0);
    }
    if devices.line(CONSOLE).is_some() {
        for what in 1..4 {
            request(devices, what, 0);
        }
    }
    if devices
        .report(BALLOON)
        .is_some_and(|report| report.balloon.is_some())
    {
        request(devices, 0, BALLOON_RAM);
    }
    devices.ram().discard().expect("RAM can be emptied");
    for (offset, value) in [(0x10, 0xd000_0000_u32), (0x18, 0xd010_0000), (0x04, 6)] {
        devices.write(true, FUNCTION + offset, &value.to_le_bytes());
    }
    devices.resume();
}

/// Stops the devices; whatever happened to them, their state can be loaded.
fn comes_back(devices: &DevicesWithoutVm) {
    devices.quiesce();
    assert_eq!(devices.panicked_thread(), None);
    let mut saved = devices.save().expect("devices can be saved");
    devices.load(&mut saved).expect("what was saved is loaded");
}

/// A user's request to the card or the balloon, or what the host's end of a console does: input, output, to
/// come and go, another size. To the disk, if it is one: `what` has in bit 0 whether limits are set or the
/// size, in bit 1 whether it may be less, and in bit 2 whether a value is given. Any may be refused.
fn request(devices: &DevicesWithoutVm, what: u64, data: u64) {
    if devices.report(CARD).is_some() {
        let plug = DeviceRequest::Net(NetRequest::Plug(data & 1 == 0));
        return devices.request(CARD, &plug).expect("a cable");
    }
    if let Some(line) = devices.line(CONSOLE) {
        let mut line = lock(&line);
        match what & 3 {
            0 => {
                let input = data.to_le_bytes().repeat(64);
                let room = line.input_room();
                line.input(&input[..input.len().min(room)]);
            }
            1 => {
                let mut taken = [0; 4096];
                let mut left = 8;
                while line.take_output(&mut taken) > 0 {
                    left -= 1;
                    assert!(left > 0, "there is more output than there can be");
                }
            }
            2 => line.connected(data & 1 != 0),
            _ => line.resized((data >> 16 & 0xffff) as u16, (data & 0xffff) as u16),
        }
        return;
    }
    if let Some(before) = devices.report(BALLOON).and_then(|report| report.balloon) {
        let target = DeviceRequest::Balloon(BalloonRequest::Target(data));
        let refused = devices.request(BALLOON, &target).is_err();
        let after = devices.report(BALLOON).and_then(|report| report.balloon);
        let after = after.map_or(0, |report| report.target);
        assert_eq!(
            after,
            if refused {
                before.target
            } else {
                data / 4096 * 4096
            }
        );
        assert!(after <= BALLOON_RAM);
        return;
    }
    let given = what & 4 == 0;
    let request = match what & 1 {
        0 => DiskRequest::Resize(Resize {
            size: given.then_some(data),
            shrink: what & 2 != 0,
        }),
        _ => DiskRequest::Throttle(ThrottleChange {
            iops: given.then_some(data & 0xffff_ffff),
            bps: Some(data >> 32),
        }),
    };
    let before = devices.report(DISK).and_then(|report| report.disk);
    let refused = devices
        .request(DISK, &DeviceRequest::Disk(request))
        .is_err();
    let after = devices.report(DISK).and_then(|report| report.disk);
    if let (Some(before), Some(after)) = (before, after) {
        let same = (before.size, before.throttle.iops, before.throttle.bps)
            == (after.size, after.throttle.iops, after.throttle.bps);
        assert!(
            same || !refused,
            "{request:?} was refused and changed the disk"
        );
        assert!(
            after.size >= before.size || what & 2 != 0,
            "{request:?} has shrunk the disk"
        );
    }
}

fn step(devices: &DevicesWithoutVm, input: &mut Input<'_>) {
    let (what, offset, data) = (input.u8(), u64::from(input.u16()), input.u64());
    let mut bytes = data.to_le_bytes();
    let bytes = &mut bytes[..1 << (what >> 3 & 3)];
    let address = match what & 7 {
        0 => FUNCTION + offset % 0x1000,
        1 => STRUCTURES + offset % 0x4000,
        2 => MSIX + offset % 0x1000,
        3 => STRUCTURES + 0x3000,
        4 => return devices.quiesce(),
        5 => return devices.resume(),
        7 => return request(devices, offset, data),
        _ => {
            // RAM is larger than any offset.
            let written = devices.ram().write(Gpa(offset), bytes);
            return written.expect("RAM at its beginning");
        }
    };
    if what & 0x20 != 0 {
        devices.write(true, address, bytes);
    } else {
        devices.read(true, address, bytes);
    }
}
