//! Every device, accessed by a guest and loaded from a saved state.

use hypernest::config::VmConfig;
use hypernest::devices::flash;
use hypernest::machine::DevicesWithoutVm;
use hypernest::state::Sections;

use crate::Input;

/// All devices but the flash memory that depend neither on the interrupt controller nor on the machine type.
const CONFIG: &str = "name = \"fuzz\"\nmemory = \"64M\"\nhv = \"none\"\n\
                      serial = \"none\"\nserial2 = \"none\"\ndebugcon = \"none\"\ndebug-exit = 0xf4\nfw-cfg \
                      = true\n";

thread_local! {
    static DEVICES: [DevicesWithoutVm; BOARDS] = [
        ("kernel", "direct-1", "kernel"),
        ("split", "direct-1", "kernel"),
        ("kernel", "pc-1", "kernel"),
        ("split", "pc-1", "kernel"),
        ("kernel", "pc-1", "firmware"),
    ]
    .map(devices);
}

const BOARDS: usize = 5;

/// Bytes of variables, which the flash memory begins with.
const VARS: usize = 0x2000;

/// With these interrupt controllers, of this machine type, and what starts: a kernel or firmware.
fn devices((irqchip, machine, boot): (&str, &str, &str)) -> DevicesWithoutVm {
    let config = format!(
        "{CONFIG}irqchip = \"{irqchip}\"\nmachine = \"{machine}\"\n{boot} = \"/nowhere\"\n"
    );
    let config = VmConfig::from_saved(config).expect("a configuration");
    let devices = DevicesWithoutVm::new(&config).expect("devices can be made without a VM");
    if let Some(flash) = devices.flash() {
        let most = usize::try_from(flash::MAX_LEN).expect("8 MiB");
        flash.set_code(&vec![0xf4; most - VARS]).expect("code");
        flash.set_vars(&[0xff; VARS], None).expect("variables");
    }
    devices
}

/// `board`, then accesses of `what, place, offset, data u64`: bits 1:0 of `what` are the size's logarithm,
/// bit 2 writes, bit 3 is memory, bit 4 uses the address from the data; else `place` is the number of a
/// device's range.
pub(crate) fn accesses(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let which = usize::from(input.u8()) % BOARDS;
    DEVICES.with(|all| {
        let devices = &all[which];
        devices.reset();
        let mut found = false;
        while !input.is_empty() {
            found |= access(devices, &mut input);
        }
        // Any state that a guest causes can be saved and loaded again.
        let saved = devices.save().expect("devices can be saved");
        devices
            .load(&mut saved.clone())
            .expect("saved devices can be loaded");
        assert_eq!(
            devices.save().map(|again| bodies(&again)).ok(),
            Some(bodies(&saved))
        );
        found
    })
}

/// The devices' sections; their clock keeps running.
fn bodies(sections: &Sections) -> Vec<(String, Vec<u8>)> {
    let devices = sections
        .iter()
        .filter(|section| section.name.starts_with("device/"));
    devices
        .map(|section| (section.name.clone(), section.body.clone()))
        .collect()
}

fn access(devices: &DevicesWithoutVm, input: &mut Input<'_>) -> bool {
    let (what, place, offset, data) = (input.u8(), input.u8(), input.u8(), input.u64());
    let memory = what & 8 != 0;
    // Port accesses have at most four bytes.
    let len = 1 << (what & 3).min(if memory { 3 } else { 2 });
    let mut bytes = data.to_le_bytes();
    let bytes = &mut bytes[..len];
    let ranges = devices.ranges(memory);
    let address = match ranges.get(usize::from(place) % ranges.len().max(1)) {
        Some(&(first, last)) if what & 16 == 0 => first + u64::from(offset) % (last - first + 1),
        _ if memory => data,
        _ => data & 0xffff,
    };
    if what & 4 != 0 {
        devices.write(memory, address, bytes)
    } else {
        devices.read(memory, address, bytes)
    }
}

/// `board, section u8, position u16`, and bytes that replace the section's from that position: each device's
/// own section, damaged. Then accesses of a guest.
pub(crate) fn state(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let which = usize::from(input.u8()) % BOARDS;
    let (section, position, len) = (input.u8(), input.u16(), input.u8());
    let replacement = input.bytes(len.into());
    DEVICES.with(|all| {
        let devices = &all[which];
        devices.reset();
        let whole = devices.save().expect("devices can be saved");
        let count = whole.iter().count();
        let mut damaged = Sections::new();
        for (index, section_there) in whole.iter().enumerate() {
            let mut body = section_there.body.clone();
            if index == usize::from(section) % count {
                let at = usize::from(position).min(body.len());
                for (byte, new) in body[at..].iter_mut().zip(replacement) {
                    *byte = *new;
                }
            }
            damaged.push(section_there.name.clone(), section_there.version, body);
        }
        let loaded = devices.load(&mut damaged).is_ok();
        while !input.is_empty() {
            access(devices, &mut input);
        }
        loaded
    })
}
