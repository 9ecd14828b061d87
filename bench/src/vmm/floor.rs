//! A lower bound for any VMM: KVM_RUN in a loop that ignores the exit's details. A VMM's time above this
//! bound is its own cost.

use std::path::Path;

use hypernest::boot;
use hypernest::config::{Flags, HostLimits, build};
use hypernest::hyperv::msr::REENLIGHTENMENT_CONTROL;
use hypernest::kvm::msr::{MsrRange, send_to_user_space};
use hypernest::kvm::{cap, memory};
use hypernest::layout::{self, AddressWidth};
use hypernest::memory::GuestRam;
use hypernest::units::VpIndex;
use hypernest::vcpu::create;
use hypernest_nested::probe::{CONSOLE_PORT, EXIT_PORT};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Kvm, MsrExitReason, VcpuExit};

use super::VmmError;

/// The boot vCPU.
const VP: VpIndex = VpIndex(0);

/// Runs the program `cmdline` of the guest image `kernel` and returns its output on the debug console.
pub(super) fn run(kernel: &Path, cmdline: &str) -> Result<Vec<u8>, VmmError> {
    loop_around(kernel, cmdline).map_err(VmmError::Floor)
}

fn loop_around(kernel: &Path, cmdline: &str) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let path = kernel.display().to_string();
    let flags = [("kernel", path.as_str()), ("cmdline", cmdline)];
    let flags = Flags::from_pairs(flags.into_iter().chain([("memory", "32M")]));
    let config = build(None, &flags, HostLimits::read())?.config;
    let ram = GuestRam::new(&config.memory, &config.ram_ranges())?;

    let kvm = Kvm::new()?;
    // Interrupt controllers and timer as hypernest's: KVM looks them up at each port access.
    let vm = kvm.create_vm()?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP.0)?;
    vm.set_tss_address(usize::try_from(layout::KVM_TSS.0)?)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_bindings::kvm_pit_config::default())?;
    if kvm.check_extension_raw(kvm_bindings::KVM_CAP_X86_MSR_FILTER.into()) > 0 {
        cap::user_space_msrs(&vm, MsrExitReason::Filter)?;
        let first = REENLIGHTENMENT_CONTROL;
        send_to_user_space(&vm, &[MsrRange { first, count: 1 }])?;
    }
    memory::add_ram(&vm, &ram)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    create::set_cpuid(VP, &vcpu, cpuid.as_slice())?;
    let platform = boot::Platform {
        name: config.name,
        apic_ids: vec![0],
        topology: config.cpus.topology,
        pic: true,
        map: config.machine.map(),
        address_width: AddressWidth {
            bits: 36,
            firmware: None,
        },
        fw_cfg: false,
    };
    let kernel = config.boot.kernel().ok_or("it boots a kernel")?;
    let entry = boot::load(kernel, &ram, &platform)?;
    create::set_entry(VP, &vcpu, &entry)?;

    let mut console = Vec::new();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(CONSOLE_PORT, data) => console.extend(data.iter()),
            VcpuExit::IoOut(EXIT_PORT, [0]) => return Ok(console),
            VcpuExit::IoOut(EXIT_PORT, code) => {
                let said = String::from_utf8_lossy(&console);
                return Err(format!("the guest ended with {code:?}; its output: {said}").into());
            }
            VcpuExit::X86Rdmsr(exit) => *exit.error = 0,
            VcpuExit::IoOut(..)
            | VcpuExit::IoIn(..)
            | VcpuExit::MmioRead(..)
            | VcpuExit::MmioWrite(..)
            | VcpuExit::Intr => {}
            other => return Err(format!("unexpected exit: {other:?}").into()),
        }
    }
}
