use std::time::{Duration, Instant};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::{Kvm, VcpuFd};
use zerocopy::IntoBytes;

use super::*;
use crate::irq::IrqLine;
use crate::kvm::cap;

/// A VM with a vCPU whose local APIC takes interrupts and that does not run.
struct Guest {
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
}

/// Spurious-interrupt vector register, and its APIC software enable bit (Intel SDM 3A, 11.9).
const SVR: usize = 0xf0;
const ENABLED: i8 = 1;
const IRR: usize = 0x200;

fn guest(controllers: Controllers) -> Option<Guest> {
    let vm = Kvm::new().ok()?.create_vm().unwrap();
    cap::x2apic_ids(&vm).unwrap();
    match controllers {
        Controllers::Kernel => vm.create_irq_chip().unwrap(),
        Controllers::Split => cap::split_irqchip(&vm, 24).unwrap(),
    }
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[SVR + 1] |= ENABLED;
    vcpu.set_lapic(&lapic).unwrap();
    Some(Guest {
        vm: Arc::new(vm),
        vcpu,
    })
}

impl Guest {
    /// Takes the vectors that are requested at the local APIC.
    fn requested(&self) -> Vec<u8> {
        let mut lapic = self.vcpu.get_lapic().unwrap();
        let mut found = Vec::new();
        for vector in 0..=255_u8 {
            let v = usize::from(vector);
            let byte = &mut lapic.regs[IRR + v / 32 * 0x10 + v % 32 / 8];
            if *byte >> (v % 8) & 1 != 0 {
                found.push(vector);
                *byte &= !(1 << (v % 8));
            }
        }
        // Not for nothing: what KVM's worker requests since the read would be overwritten.
        if !found.is_empty() {
            self.vcpu.set_lapic(&lapic).unwrap();
        }
        found
    }

    /// The same, once KVM's worker has delivered.
    fn requested_soon(&self) -> Vec<u8> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.requested();
            if !found.is_empty() || Instant::now() > end {
                return found;
            }
            std::thread::yield_now();
        }
    }
}

fn msi(vector: u8) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data: vector.into(),
    }
}

fn split() -> Routes {
    Routes::new(Controllers::Split, 4096)
}

#[test]
fn signals_from_user_space_go_where_the_message_says() {
    let Some(guest) = guest(Controllers::Split) else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let routes = split();
    let vector = routes.vector().unwrap();
    vector.set(Some(msi(0x51)));
    assert!(vector.signal());
    routes.attach(&guest.vm).unwrap();
    assert_eq!(guest.requested(), [0; 0]);
    assert!(vector.signal());
    assert_eq!(guest.requested(), [0x51]);
    vector.set(None);
    assert!(!vector.signal());
    // A write to memory is no interrupt (and is not the vector's to make).
    vector.set(Some(Msi {
        address: 0x1000,
        data: 0x52,
    }));
    assert!(!vector.signal(), "it stays pending, as with an eventfd");
    assert_eq!(guest.requested(), [0; 0]);
}

#[test]
fn an_eventfd_interrupts_only_while_its_vector_has_a_message() {
    let Some(guest) = guest(Controllers::Split) else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let routes = split();
    routes.attach(&guest.vm).unwrap();
    let vector = routes.vector().unwrap();
    let event = vector.eventfd().unwrap();
    vector.set(Some(msi(0x51)));
    event.write(1).unwrap();
    assert_eq!(guest.requested_soon(), [0x51]);
    assert!(!vector.is_pending());

    vector.set(None);
    event.write(1).unwrap();
    assert!(vector.is_pending());
    assert_eq!(guest.requested(), [0; 0]);
    vector.set(Some(msi(0x52)));
    assert_eq!(guest.requested_soon(), [0x52]);
    assert!(!vector.is_pending());

    vector.set(Some(msi(0x53)));
    event.write(1).unwrap();
    assert_eq!(guest.requested_soon(), [0x53]);

    vector.set(None);
    event.write(1).unwrap();
    vector.discard_pending();
    vector.set(Some(msi(0x54)));
    assert_eq!(guest.requested(), [0; 0]);
    drop(vector);
    event.write(1).unwrap();
    assert_eq!(guest.requested(), [0; 0]);
    assert_eq!(lock(&routes.0.core).table.routes(), []);
}

#[test]
fn the_io_apic_and_a_hostile_message_leave_other_vectors_alone() {
    let Some(guest) = guest(Controllers::Split) else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let routes = split();
    routes.attach(&guest.vm).unwrap();
    let vector = routes.vector().unwrap();
    vector.set(Some(msi(0x51)));
    let event = vector.eventfd().unwrap();
    let mut pins = [None; PINS];
    pins[3] = Some(msi(0x33));
    routes.routes_changed(&pins);
    event.write(1).unwrap();
    assert_eq!(guest.requested_soon(), [0x51]);

    let hostile = routes.vector().unwrap();
    let hostile_event = hostile.eventfd().unwrap();
    for address in [0, 0xfed0_0000, 0x1_fee0_0000, u64::MAX] {
        hostile.set(Some(Msi {
            address,
            data: u32::MAX,
        }));
        hostile_event.write(1).unwrap();
    }
    assert!(hostile.is_pending());
    vector.set(Some(msi(0x55)));
    event.write(1).unwrap();
    assert_eq!(guest.requested_soon(), [0x55]);
    routes.routes_changed(&[None; PINS]);
    event.write(1).unwrap();
    assert_eq!(guest.requested_soon(), [0x55]);
}

#[test]
fn the_next_vm_has_the_vectors_and_loses_signals_from_between() {
    let (Some(first), Some(second)) = (guest(Controllers::Split), guest(Controllers::Split)) else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let routes = split();
    let vector = routes.vector().unwrap();
    let event = vector.eventfd().unwrap();
    vector.set(Some(msi(0x51)));
    routes.attach(&first.vm).unwrap();
    routes.detach();
    event.write(1).unwrap();
    assert!(vector.signal());
    routes.send(msi(0x61));
    routes.attach(&second.vm).unwrap();
    assert_eq!(first.requested(), [0; 0]);
    assert_eq!(second.requested(), [0; 0]);
    event.write(1).unwrap();
    assert_eq!(second.requested_soon(), [0x51]);
    // Nothing holds the first VM any more.
    assert_eq!(Arc::strong_count(&first.vm), 1);
}

#[test]
fn lines_into_the_kernel_keep_their_level_across_vms() {
    let (Some(first), Some(second)) = (guest(Controllers::Kernel), guest(Controllers::Kernel))
    else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let routes = Routes::new(Controllers::Kernel, 4096);
    let sink: Arc<dyn IrqSink> = Arc::new(routes.clone());
    let line = |gsi| IrqLine::new(Arc::clone(&sink), Gsi(gsi));
    let inputs = |guest: &Guest| {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        guest.vm.get_irqchip(&mut chip).unwrap();
        // kvm_ioapic_state: base_address, ioregsel, id, irr.
        u32::from_le_bytes(chip.chip.as_bytes()[16..20].try_into().unwrap())
    };
    line(16).set(true);
    routes.attach(&first.vm).unwrap();
    assert_eq!(inputs(&first), 1 << 16);
    line(17).set(true);
    line(0).set(true);
    line(16).set(false);
    line(99).set(true);
    routes.detach();
    line(0).set(false);
    routes.attach(&second.vm).unwrap();
    assert_eq!(inputs(&second), 1 << 17);
    // The timer leads to pin 2.
    line(0).set(true);
    assert_eq!(inputs(&second), 1 << 17 | 1 << 2);
}

#[test]
fn the_error_for_no_more_vectors_has_the_limit() {
    let routes = Routes::new(Controllers::Kernel, 40);
    let first = routes.vector().unwrap();
    let second = routes.sint(VpIndex(0), 2).unwrap();
    let error = routes.vector().unwrap_err();
    assert_eq!(error, NoVector::Exhausted { limit: 40 });
    assert!(error.to_string().contains("40"));
    drop(first);
    drop(second);
    let (_third, _fourth) = (routes.vector().unwrap(), routes.vector().unwrap());
    let sint = NoVector::NoSuchSint { sint: 16 };
    assert_eq!(routes.sint(VpIndex(0), 16).unwrap_err(), sint);
}

#[test]
fn a_sint_of_a_vcpu_without_synic_is_routed_and_not_delivered() {
    let Some(guest) = guest(Controllers::Split) else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let routes = split();
    let sint = routes.sint(VpIndex(0), 2).unwrap();
    if routes.attach(&guest.vm).is_err() {
        return eprintln!("skipped: KVM has no SynIC");
    }
    assert!(!sint.signal());
    let event = sint.eventfd().unwrap();
    event.write(1).unwrap();
    assert_eq!(guest.requested(), [0; 0]);
}
