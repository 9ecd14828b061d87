use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use proptest::prelude::*;

use super::*;
use crate::state::{Decoder, Encoder};
use crate::units::{Msr, VpIndex};

const VP: VpIndex = VpIndex(0);
const PLAIN: NestedCpu = NestedCpu {
    vmx: false,
    evmcs: false,
    svm: false,
    physical_address_bits: 36,
};

fn vm(kvm: &Kvm) -> VmFd {
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    vm.create_pit2(Default::default()).unwrap();
    vm
}

fn written(state: &VcpuState) -> Vec<u8> {
    let mut e = Encoder::new();
    state.encode(&mut e);
    e.into_body()
}

#[test]
fn a_vcpu_goes_into_a_section_and_into_another_vcpu() {
    let Ok(kvm) = Kvm::new() else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let msrs: Arc<[Msr]> = listed(&kvm).unwrap().into();
    let (first, second) = (vm(&kvm), vm(&kvm));
    let extent = Extent::of(&first, msrs, Arc::new([])).unwrap();
    let (from, to) = (
        first.create_vcpu(0).unwrap(),
        second.create_vcpu(0).unwrap(),
    );
    let mut regs = from.get_regs().unwrap();
    (regs.rax, regs.rip, regs.rflags) = (0x1234, 0x5678, 2);
    from.set_regs(&regs).unwrap();
    let saved = VcpuState::save(VP, &from, &extent).unwrap();
    assert_eq!(saved.regs, regs);
    let body = written(&saved);
    let mut d = Decoder::new("vcpu/0", VcpuState::VERSION, &body);
    let read = VcpuState::decode(&mut d).unwrap();
    d.finish().unwrap();
    assert_eq!(read, saved);
    read.restore(VP, &to, &extent, PLAIN).unwrap();
    let again = VcpuState::save(VP, &to, &extent).unwrap();
    assert_eq!(again, saved);
}

#[test]
fn the_interrupt_controllers_go_into_another_vm() {
    let Ok(kvm) = Kvm::new() else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let (first, second) = (vm(&kvm), vm(&kvm));
    let mut saved = VmState::save(&first).unwrap();
    // The I/O APIC's id, after its base address and register selector (struct kvm_ioapic_state).
    saved.chips[2][12] = 5;
    let mut e = Encoder::new();
    saved.encode(&mut e);
    let body = e.into_body();
    let read = VmState::decode(&mut Decoder::new("vm", VmState::VERSION, &body)).unwrap();
    assert_eq!(read, saved);
    read.restore(&second).unwrap();
    assert_eq!(VmState::save(&second).unwrap().chips, saved.chips);
}

#[test]
fn every_cut_of_a_vcpus_section_is_refused() {
    let body = written(&VcpuState {
        xcrs: Some(Default::default()),
        msrs: vec![(Msr(1), 2)],
        nested: vec![0; 128],
        xsave: vec![0; 4096],
        ..Default::default()
    });
    for len in 0..body.len() {
        let mut d = Decoder::new("vcpu/0", VcpuState::VERSION, &body[..len]);
        assert!(VcpuState::decode(&mut d).is_err(), "{len}");
    }
}

#[test]
fn nested_state_that_is_not_what_it_says_never_gets_to_kvm() {
    let Ok(kvm) = Kvm::new() else {
        return eprintln!("skipped: /dev/kvm does not open");
    };
    let vm = vm(&kvm);
    let fd = vm.create_vcpu(0).unwrap();
    let extent = Extent::of(&vm, Arc::new([]), Arc::new([])).unwrap();
    let state = VcpuState {
        nested: vec![0xff; 128],
        ..VcpuState::save(VP, &fd, &extent).unwrap()
    };
    let refused = state.restore(VP, &fd, &extent, PLAIN).unwrap_err();
    assert!(matches!(refused, TransferError::Nested { .. }), "{refused}");
}

proptest! {
    #[test]
    fn no_body_panics(body: Vec<u8>) {
        let _refused = VcpuState::decode(&mut Decoder::new("vcpu/0", VcpuState::VERSION, &body));
        let _refused = VmState::decode(&mut Decoder::new("vm", VmState::VERSION, &body));
    }
}
