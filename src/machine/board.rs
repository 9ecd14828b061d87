//! The differences between machine types: the chipset, the owner of the power management registers, and the
//! files for firmware.

use std::sync::{Arc, Mutex};

use super::firmware;
use super::pci_devices::{Backplane, CpuFacts};
use super::wiring::Wired;
use crate::boot::{self, Boot};
use crate::bus::{BusError, Region, lock};
use crate::config::{Irqchip, VmConfig};
use crate::cpuid::topology::apic_id;
use crate::devices::acpi_pm;
use crate::devices::flash::{self, Flash};
use crate::devices::fw_cfg::{self, FwCfg, Items};
use crate::layout::{self, AddressWidth, MachineType};
use crate::life::GuestEvents;
use crate::memory::Dma;
use crate::pci::chipset::{
    ECAM_SIZES, Lpc, OnBoard, PowerOn, Q35HostBridge, RCBA_LEN, RootComplexRegisters,
};
use crate::pci::{self, ConfigSpace, DevFn, PciHost};
use crate::units::Gpa;

const PM: &str = "acpi-pm";
const PCI: &str = "pci-host";

/// The host bridge of `pc-1`.
type HostBridge = Arc<OnBoard<Q35HostBridge>>;

/// Places the power management registers at a fixed address, if the machine type has one.
pub(super) fn power_management(machine: MachineType, wired: &Wired) -> Result<(), BusError> {
    if machine == MachineType::Direct1 {
        for (region, offset, len) in acpi_pm::BLOCKS {
            let first = u64::from(layout::PM1A_EVENT.start) + offset;
            let acpi = wired.acpi.clone();
            wired.ports.fixed(PM, region, first, len, acpi)?;
        }
    }
    Ok(())
}

/// Adds the root of PCI with the functions of the chipset.
pub(super) fn chipset(
    config: &VmConfig,
    wired: &mut Wired,
    events: &GuestEvents,
) -> Result<(Arc<Mutex<PciHost>>, Option<HostBridge>), BusError> {
    let machine = config.machine;
    let power_on = match config.boot {
        Boot::Kernel(_) => PowerOn::AfterFirmware,
        Boot::Firmware(_) => PowerOn::Reset,
    };
    let ports = layout::PCI_CONFIG_PORTS;
    let host = match machine {
        MachineType::Pc1 => PciHost::empty(events.clone()),
        MachineType::Direct1 => PciHost::new(events.clone()),
    };
    let len = (ports.end - ports.start).into();
    let host = wired.place(host, &[(pci::CONFIG_PORTS, ports.start, len)])?;
    let ecam = &machine.map().ecam;
    let bridge = match machine {
        MachineType::Pc1 => Some(q35(machine, power_on, wired, &host)),
        MachineType::Direct1 => {
            let len = ecam.end - ecam.start;
            let handler = host.clone();
            wired.mmio.fixed(PCI, pci::ECAM, ecam.start, len, handler)?;
            None
        }
    };
    Ok((host, bridge))
}

/// The chipset of `pc-1`; before a kernel that is booted directly, in the state that firmware leaves.
fn q35(
    machine: MachineType,
    power_on: PowerOn,
    wired: &mut Wired,
    host: &Arc<Mutex<PciHost>>,
) -> HostBridge {
    let windows = ECAM_SIZES.map(|len| wired.mmio.window(PCI, pci::ECAM, len, host.clone()));
    let ecam = u32::try_from(machine.map().ecam.start).expect("below 4 GiB");
    let bridge = Q35HostBridge::new(windows, power_on, ecam);
    let bridge = plug(DevFn::HOST_BRIDGE, bridge, wired, host);

    let pm = acpi_pm::BLOCKS.map(|(region, offset, len)| {
        let acpi = wired.acpi.clone();
        (offset, wired.ports.window(PM, region, len, acpi))
    });
    let rcba = Arc::new(RootComplexRegisters);
    let rcba = wired.mmio.window("rcba", Region::ONLY, RCBA_LEN, rcba);
    plug(DevFn::LPC, Lpc::new(pm.into(), rcba, power_on), wired, host);
    bridge
}

fn plug<F: pci::PciFunction + 'static>(
    place: DevFn,
    function: F,
    wired: &mut Wired,
    host: &Mutex<PciHost>,
) -> Arc<OnBoard<F>> {
    let function = Arc::new(OnBoard::new(place, function));
    let config: Arc<dyn ConfigSpace> = function.clone();
    lock(host).plug(place, config);
    wired.devices.push(function.clone());
    function
}

/// The input of the tables that describe a machine of `config`.
pub(super) fn boot_platform(config: &VmConfig, address_width: AddressWidth) -> boot::Platform {
    let topology = config.cpus.topology;
    boot::Platform {
        name: config.name.clone(),
        apic_ids: (0..config.cpus.count)
            .map(|vcpu| apic_id(topology, vcpu))
            .collect(),
        topology,
        pic: config.irqchip == Irqchip::Kernel,
        map: config.machine.map(),
        address_width,
        fw_cfg: config.fw_cfg,
    }
}

/// Adds fw_cfg: by its ports, and by DMA if the machine type has that.
pub(super) fn fw_cfg(
    config: &VmConfig,
    backplane: &Backplane<'_>,
    bridge: Option<HostBridge>,
    wired: &mut Wired,
) -> Result<(), BusError> {
    let items = fw_cfg_items(config, backplane.cpu);
    let first = layout::FW_CFG_PORT;
    let ports = (Region::ONLY, first, fw_cfg::PORTS);
    if config.machine.map().fw_cfg_dma {
        let mut device = FwCfg::with_dma(items, Dma::new(backplane.ram.clone()));
        if let Some(bridge) = bridge {
            let platform = boot_platform(config, backplane.cpu.address_width);
            device = device.with_renewed(acpi_files(platform, config.ram_ranges(), bridge));
        }
        let dma = (fw_cfg::DMA, first + fw_cfg::DMA_OFFSET, fw_cfg::DMA_PORTS);
        wired.place(device, &[ports, dma]).map(drop)
    } else {
        wired.place(FwCfg::new(items), &[ports]).map(drop)
    }
}

/// The files with the ACPI tables, which name the ECAM window where firmware has placed it.
fn acpi_files(
    platform: boot::Platform,
    ram: Vec<(Gpa, u64)>,
    bridge: HostBridge,
) -> fw_cfg::Renewed {
    fw_cfg::Renewed {
        names: &boot::acpi::FILES,
        make: Box::new(move || {
            let ecam = bridge.ecam_of_all_buses();
            let ecam = ecam.unwrap_or_else(|| platform.map.ecam.clone());
            boot::acpi_tables_with(&platform, &ram, ecam).files()
        }),
    }
}

fn fw_cfg_items(config: &VmConfig, cpu: CpuFacts) -> Items {
    let platform = boot_platform(config, cpu.address_width);
    // APIC ids rise with the vCPU's index.
    let limit = platform.apic_ids.last().map_or(0, |&id| id + 1);
    let [cpus, limit] = [config.cpus.count, limit].map(|n| u16::try_from(n).unwrap_or(u16::MAX));
    let items = Items::of_machine(config.memory.size, cpus, limit);
    match firmware_files(config, &platform, cpu.vmx) {
        Some(files) => items.with_files(files),
        None => items,
    }
}

/// The files of fw_cfg, if the machine type has any: the ACPI tables, as firmware installs them, and what
/// else it reads if there is some.
fn firmware_files(
    config: &VmConfig,
    platform: &boot::Platform,
    vmx: bool,
) -> Option<Vec<(&'static str, Vec<u8>)>> {
    match config.machine {
        MachineType::Pc1 => {
            let mut files = boot::acpi_tables(platform, &config.ram_ranges()).files();
            if config.boot.firmware().is_some() {
                files.extend(firmware::files(config, platform, vmx));
            }
            Some(files)
        }
        MachineType::Direct1 => None,
    }
}

/// Adds the flash memory of a VM that starts in firmware.
pub(super) fn flash(
    config: &VmConfig,
    backplane: &Backplane<'_>,
    wired: &mut Wired,
) -> Result<(), BusError> {
    if config.boot.firmware().is_some() {
        let flash = Arc::new(Flash::new(backplane.slots.clone()));
        wired.mmio.fixed(
            "flash",
            Region::ONLY,
            flash::START.0,
            flash::MAX_LEN,
            flash.clone(),
        )?;
        wired.devices.push(flash.clone());
        wired.flash = Some(flash);
    }
    Ok(())
}

/// Refuses devices at the power-on addresses of the power management registers: they would hide them.
pub(super) fn check(wired: &Wired) -> Result<(), BusError> {
    let ranges = wired.ports.ranges();
    for (_, offset, len) in acpi_pm::BLOCKS {
        let first = u64::from(layout::PM1A_EVENT.start) + offset;
        let last = first + len - 1;
        let hiding = ranges
            .iter()
            .find(|(start, end, name)| *start <= last && first <= *end && &**name != PM);
        if let Some((start, end, name)) = hiding {
            return Err(BusError::Overlap {
                bus: "port",
                name: name.to_string(),
                start: *start,
                last: *end,
                other: PM.to_owned(),
                other_start: first,
                other_last: last,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::config::VmConfig;
    use crate::machine::DevicesWithoutVm;

    fn devices(settings: &str) -> Result<DevicesWithoutVm, String> {
        let config = format!("kernel = '/nowhere'\nhv = 'none'\n{settings}\n");
        let config = VmConfig::from_saved(config).unwrap();
        DevicesWithoutVm::new(&config).map_err(|e| crate::error::chain(&e))
    }

    fn function(devices: &DevicesWithoutVm, at: u64) -> Option<u32> {
        let mut data = [0; 4];
        let found = devices.read(true, 0xe000_0000 + (at << 12), &mut data);
        found.then(|| u32::from_le_bytes(data))
    }

    fn sections(devices: &DevicesWithoutVm) -> Vec<(String, usize)> {
        let sections = devices.save().unwrap();
        let sections = sections.iter();
        sections
            .filter(|s| s.name.contains("pci-"))
            .map(|s| (s.name.clone(), s.body.len()))
            .collect()
    }

    #[test]
    fn each_machine_type_has_its_chipset() {
        let none = u32::MAX;
        let direct = devices("").unwrap();
        assert_eq!(function(&direct, 0), Some(0x0d57_8086));
        assert_eq!(function(&direct, 0xf8), Some(none));
        let pc = devices("machine = 'pc-1'").unwrap();
        assert_eq!(function(&pc, 0), Some(0x29c0_8086));
        assert_eq!(function(&pc, 0xf8), Some(0x2918_8086));
        assert_eq!(function(&pc, 0xf9), Some(none));
        for devices in [&direct, &pc] {
            let timer = devices.ranges(false).contains(&(0x608, 0x60b));
            assert!(timer, "{:x?}", devices.ranges(false));
        }
        // Address and reset control, and a function with its interrupt line; or none.
        let host = |len| ("device/pci-host".to_owned(), len);
        assert_eq!(sections(&direct), [host(4 + 1 + 8 + 1 + 8 + 4)]);
        let function = |name: &str, registers: usize| (format!("device/pci-{name}"), registers * 4);
        let expected = [
            host(4 + 1 + 8),
            function("00:00.0", 7),
            function("00:1f.0", 7),
        ];
        assert_eq!(sections(&pc), expected);
    }

    fn fw_cfg(devices: &DevicesWithoutVm, key: u16, len: usize) -> Vec<u8> {
        devices.write(false, 0x510, &key.to_le_bytes());
        let mut bytes = vec![0; len];
        for byte in bytes.chunks_mut(1) {
            assert!(devices.read(false, 0x511, byte));
        }
        bytes
    }

    #[test]
    fn only_pc_1_has_files_for_firmware() {
        let direct = devices("fw-cfg = true").unwrap();
        assert_eq!(fw_cfg(&direct, 0x19, 64), [0; 64]);
        assert_eq!(fw_cfg(&direct, 0x20, 64), [0; 64]);
        let pc = devices("machine = 'pc-1'\nfw-cfg = true").unwrap();
        let directory = fw_cfg(&pc, 0x19, 4 + 3 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 3]);
        let names = ["etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader"];
        let contents: [&[u8]; 3] = [b"RSD PTR ", b"FACS", &[1, 0, 0, 0]];
        for (n, (name, content)) in names.into_iter().zip(contents).enumerate() {
            assert!(directory[4 + n * 64 + 8..].starts_with(name.as_bytes()));
            let key = 0x20 + u16::try_from(n).unwrap();
            assert_eq!(fw_cfg(&pc, key, content.len()), content);
        }
    }

    #[test]
    fn nothing_hides_the_power_management_registers() {
        for machine in ["pc-1", "direct-1"] {
            let settings = |port| format!("machine = '{machine}'\ndebug-exit = {port}");
            let error = devices(&settings("0x601")).unwrap_err();
            assert!(
                error.contains("debug-exit") && error.contains("acpi-pm"),
                "{error}"
            );
            devices(&settings("0x60c")).unwrap();
        }
    }

    proptest! {
        /// A guest that moves the ECAM window and the power management registers over everything else.
        #[test]
        fn devices_outlast_any_configuration_writes(
            writes in proptest::collection::vec(
                (prop::sample::select(vec![0x60_u64, 0x64, 0xf_8040, 0xf_8044, 0xf_80f0, 0x9c]),
                 any::<u32>(), 0..4_u64, 1..=4_usize), 0..40),
            split in any::<bool>(),
        ) {
            let irqchip = if split { "split" } else { "kernel" };
            let pc = devices(&format!("machine = 'pc-1'\nirqchip = '{irqchip}'")).unwrap();
            for (register, value, byte, len) in writes {
                let address = 0x8000_0000 | u32::try_from(register >> 4 & 0xff00 | register & 0xff).unwrap();
                pc.write(false, 0xcf8, &address.to_le_bytes());
                let len = len.min(4 - usize::try_from(byte).unwrap());
                pc.write(false, 0xcfc + byte, &value.to_le_bytes()[..len]);
            }
            // CMOS has 640 KiB of base memory in bytes 0x15 and 0x16.
            pc.write(false, 0x70, &[0x15]);
            let mut low = [0];
            prop_assert!(pc.read(false, 0x71, &mut low) && low == [0x80]);
            let mut version = [0; 4];
            pc.write(true, 0xfec0_0000, &[1, 0, 0, 0]);
            if split {
                prop_assert!(pc.read(true, 0xfec0_0010, &mut version));
                prop_assert_eq!(version[2], 23);
            }
            let mut saved = pc.save().unwrap();
            let again = devices(&format!("machine = 'pc-1'\nirqchip = '{irqchip}'")).unwrap();
            again.load(&mut saved).unwrap();
            prop_assert_eq!(again.ranges(false), pc.ranges(false));
            pc.reset();
            prop_assert!(pc.ranges(false).contains(&(0x608, 0x60b)));
            prop_assert_eq!(function(&pc, 0), Some(0x29c0_8086));
        }
    }
}
