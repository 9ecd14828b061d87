//! One power cycle: a KVM VM and its vCPU threads. A reset creates a new one.
//!
//! Destroying the KVM VM at a reset removes all state that KVM does not reset by itself: Hyper-V state,
//! nested state, in-kernel interrupt controllers, a TSC that has run for months (which some Windows versions
//! do not survive).

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, MsrExitReason, VmFd};
use thiserror::Error;

use super::attachments::{Attachments, Stage};
use crate::config::Irqchip;
use crate::kvm::msr::MsrRange;
use crate::kvm::{KvmError, cap, msr, pit};
use crate::layout;

/// Why a VM could not be created.
#[derive(Debug, Error)]
pub enum VmError {
    /// An ioctl failed.
    #[error("cannot create the VM: {ioctl} failed")]
    Ioctl {
        /// The ioctl's name.
        ioctl: &'static str,
        /// The kernel's error.
        source: kvm_ioctls::Error,
    },
    /// A KVM wrapper failed.
    #[error("cannot create the VM")]
    Kvm(#[from] KvmError),
}

fn failed(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Ioctl { ioctl, source }
}

/// Creates a VM with its interrupt controllers and RAM, without vCPUs.
///
/// The order is required: the real-mode areas and the irqchip before the first vCPU (KVM refuses later), the
/// MSR filter before the guest runs.
///
/// # Errors
/// If KVM refuses a request; the error names it.
pub(super) fn create(
    kvm: &Kvm,
    irqchip: Irqchip,
    attachments: &Attachments,
    user_msrs: &[MsrRange],
    pit_reinjects: bool,
) -> Result<Arc<VmFd>, VmError> {
    let vm = Arc::new(kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?);
    let identity_map = layout::KVM_IDENTITY_MAP.0;
    vm.set_identity_map_address(identity_map)
        .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(layout::KVM_TSS.0).expect("below 4 GiB");
    vm.set_tss_address(tss)
        .map_err(failed("KVM_SET_TSS_ADDR"))?;
    attachments.attach_before(Stage::InterruptControllers, &vm)?;
    cap::x2apic_ids(&vm)?;
    // Without these, a vCPU's pending events could not be saved exactly.
    cap::exception_payload(&vm)?;
    if vm.check_extension_raw(KVM_CAP_X86_TRIPLE_FAULT_EVENT.into()) > 0 {
        cap::triple_fault_event(&vm)?;
    }
    match irqchip {
        Irqchip::Kernel => {
            vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
            let pit = kvm_pit_config {
                // KVM handles port 0x61 as well.
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
            if !pit_reinjects {
                pit::do_not_reinject(&vm)?;
            }
        }
        Irqchip::Split => {
            let pins = u8::try_from(layout::IOAPIC_PINS).expect("24 pins");
            cap::split_irqchip(&vm, pins)?;
        }
    }
    if !user_msrs.is_empty() {
        cap::user_space_msrs(&vm, MsrExitReason::Filter)?;
        msr::send_to_user_space(&vm, user_msrs)?;
    }
    Ok(vm)
}
