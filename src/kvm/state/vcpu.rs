//! One vCPU's state.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use hypernest_nested::nested_state::{self, NestedState, Processor};
use kvm_bindings::{
    kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment,
    kvm_vcpu_events, kvm_xcrs, nested::KvmNestedStateBuffer,
};
use kvm_ioctls::VcpuFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::TransferError;
use super::msrs::{self, FEATURE_CONTROL, TSC_DEADLINE};
use super::order::{Part, RESTORE, SAVE};
use crate::kvm::ioctl;
use crate::units::{Msr, VpIndex};

/// `EFER.SVME`.
const EFER_SVME: u64 = 1 << 12;

/// Segments, control registers and related registers: `struct kvm_sregs2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the registers' own names")]
pub struct Sregs {
    pub cs: kvm_segment,
    pub ds: kvm_segment,
    pub es: kvm_segment,
    pub fs: kvm_segment,
    pub gs: kvm_segment,
    pub ss: kvm_segment,
    pub tr: kvm_segment,
    pub ldt: kvm_segment,
    pub gdt: kvm_dtable,
    pub idt: kvm_dtable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// Bit 0: `pdptrs` is valid.
    pub flags: u64,
    pub pdptrs: [u64; 4],
}

/// The optional parts of a vCPU's state, for this VM on this host.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Bytes of the floating-point state (`KVM_CAP_XSAVE2`).
    pub xsave: usize,
    /// The CPU has extended control registers (`KVM_CAP_XCRS`).
    pub xcrs: bool,
    /// KVM has nested state (`KVM_CAP_NESTED_STATE`).
    pub nested: bool,
    /// The MSRs that are state: [`msrs::listed`].
    pub msrs: Arc<[Msr]>,
    /// Hyper-V's per-vCPU MSRs, in the order in which they are written.
    pub hyperv_msrs: Arc<[Msr]>,
}

/// One vCPU's whole state, except its TSC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VcpuState {
    /// Whether it is runnable, halted, or waiting for a start-up IPI (`KVM_MP_STATE_*`).
    pub mp_state: kvm_mp_state,
    /// Pending exceptions, interrupts and NMIs.
    pub events: kvm_vcpu_events,
    /// KVM's blob of the nested state; empty if KVM has none.
    pub nested: Vec<u8>,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: Sregs,
    /// The floating-point unit, in XSAVE format.
    pub xsave: Vec<u8>,
    /// XCR0; `None` if the CPU has none.
    pub xcrs: Option<kvm_xcrs>,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// `IA32_FEATURE_CONTROL`, if there is one.
    pub feature_control: Vec<(Msr, u64)>,
    /// Hyper-V's MSRs, in the order in which they are written.
    pub hyperv_msrs: Vec<(Msr, u64)>,
    /// All other MSRs.
    pub msrs: Vec<(Msr, u64)>,
    /// `IA32_TSC_DEADLINE`, if there is one.
    pub tsc_deadline: Vec<(Msr, u64)>,
}

impl VcpuState {
    /// Reads it from KVM, on the vCPU's thread and with its last exit completed.
    ///
    /// # Errors
    /// If KVM refuses, or returns nested state that it would not accept.
    pub fn save(vp: VpIndex, fd: &VcpuFd, extent: &Extent) -> Result<Self, TransferError> {
        let mut state = Self::default();
        for part in SAVE {
            state.save_part(vp, fd, extent, part)?;
        }
        Ok(state)
    }

    /// Restores it to KVM: to a vCPU with its capabilities and CPUID that has not run. The VM's clock and the
    /// TSC must be set.
    ///
    /// # Errors
    /// If KVM refuses. The vCPU is unusable then.
    pub fn restore(
        &self,
        vp: VpIndex,
        fd: &VcpuFd,
        extent: &Extent,
        cpu: NestedCpu,
    ) -> Result<(), TransferError> {
        for part in RESTORE {
            self.restore_part(vp, fd, extent, cpu, part)?;
        }
        Ok(())
    }

    fn save_part(
        &mut self,
        vp: VpIndex,
        fd: &VcpuFd,
        extent: &Extent,
        part: Part,
    ) -> Result<(), TransferError> {
        let failed = |e: kvm_ioctls::Error| TransferError::Save {
            vp,
            part,
            source: e.into(),
        };
        let msrs = |which: &[Msr]| msrs::get(vp, fd, part, which);
        match part {
            Part::MpState => self.mp_state = fd.get_mp_state().map_err(failed)?,
            Part::Events => self.events = fd.get_vcpu_events().map_err(failed)?,
            Part::Nested if extent.nested => {
                // The buffer has the maximum size, since KVM may write more than the size that it reports.
                let mut buffer = KvmNestedStateBuffer::empty();
                fd.nested_state(&mut buffer).map_err(failed)?;
                let size = usize::try_from(buffer.size).unwrap_or(usize::MAX);
                let bytes = buffer.as_bytes();
                self.nested = bytes[..size.min(bytes.len())].to_vec();
                nested_state::supply_revision(&mut self.nested);
                NestedState::parse(&self.nested)
                    .map_err(|why| TransferError::Nested { vp, why })?;
            }
            Part::Nested => self.nested.clear(),
            Part::Regs => self.regs = fd.get_regs().map_err(failed)?,
            Part::Sregs => self.sregs = get_sregs(fd).map_err(failed)?,
            Part::Xsave => self.xsave = get_xsave(fd, extent.xsave).map_err(failed)?,
            Part::Xcrs => {
                self.xcrs = match extent.xcrs {
                    true => Some(fd.get_xcrs().map_err(failed)?),
                    false => None,
                }
            }
            Part::DebugRegs => self.debug_regs = fd.get_debug_regs().map_err(failed)?,
            Part::Lapic => self.lapic = fd.get_lapic().map_err(failed)?,
            Part::FeatureControl => self.feature_control = msrs(&[FEATURE_CONTROL])?,
            Part::HypervMsrs => self.hyperv_msrs = msrs(&extent.hyperv_msrs)?,
            Part::Msrs => self.msrs = msrs(&extent.msrs)?,
            Part::TscDeadline => self.tsc_deadline = msrs(&[TSC_DEADLINE])?,
        }
        Ok(())
    }

    fn restore_part(
        &self,
        vp: VpIndex,
        fd: &VcpuFd,
        extent: &Extent,
        cpu: NestedCpu,
        part: Part,
    ) -> Result<(), TransferError> {
        let failed = |e: kvm_ioctls::Error| TransferError::Restore {
            vp,
            part,
            source: e.into(),
        };
        let msrs = |values: &[(Msr, u64)]| msrs::set(vp, fd, part, values);
        match part {
            Part::MpState => fd.set_mp_state(self.mp_state).map_err(failed),
            Part::Events => fd.set_vcpu_events(&self.events).map_err(failed),
            Part::Nested if self.nested.is_empty() => Ok(()),
            Part::Nested => {
                let buffer = self.nested_for(vp, extent, cpu)?;
                fd.set_nested_state(&buffer).map_err(failed)
            }
            Part::Regs => fd.set_regs(&self.regs).map_err(failed),
            Part::Sregs => set_sregs(fd, &self.sregs).map_err(failed),
            Part::Xsave => {
                let size = TransferError::XsaveSize {
                    vp,
                    saved: self.xsave.len(),
                    host: extent.xsave,
                };
                let area = fit(&self.xsave, extent.xsave).ok_or(size)?;
                set_xsave(fd, &area).map_err(failed)
            }
            Part::Xcrs => self
                .xcrs
                .as_ref()
                .map_or(Ok(()), |xcrs| fd.set_xcrs(xcrs).map_err(failed)),
            Part::DebugRegs => fd.set_debug_regs(&self.debug_regs).map_err(failed),
            Part::Lapic => fd.set_lapic(&self.lapic).map_err(failed),
            Part::FeatureControl => msrs(&self.feature_control),
            Part::HypervMsrs => msrs(&self.hyperv_msrs),
            Part::Msrs => msrs::set_changed(vp, fd, part, &self.msrs),
            Part::TscDeadline => msrs(&self.tsc_deadline),
        }
    }

    /// The nested state for the ioctl, after a check that KVM can accept it.
    fn nested_for(
        &self,
        vp: VpIndex,
        extent: &Extent,
        cpu: NestedCpu,
    ) -> Result<KvmNestedStateBuffer, TransferError> {
        let state =
            NestedState::parse(&self.nested).map_err(|why| TransferError::Nested { vp, why })?;
        if !extent.nested {
            return Err(TransferError::NoNesting { vp });
        }
        let processor = Processor {
            has_vmx: cpu.vmx,
            has_evmcs: cpu.evmcs,
            has_svm: cpu.svm,
            efer_svme: self.sregs.efer & EFER_SVME != 0,
            // Set later, with the events; the vCPU is fresh.
            in_smm: false,
            physical_address_bits: cpu.physical_address_bits,
        };
        state
            .check(&processor)
            .map_err(|why| TransferError::NestedHere { vp, why })?;
        let mut buffer = KvmNestedStateBuffer::empty();
        let room = buffer.as_mut_bytes();
        let size = self.nested.len().min(room.len());
        room[..size].copy_from_slice(&self.nested[..size]);
        Ok(buffer)
    }
}

/// The nested virtualization features of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedCpu {
    /// VMX is in its CPUID.
    pub vmx: bool,
    /// The enlightened VMCS was enabled.
    pub evmcs: bool,
    /// SVM is in its CPUID.
    pub svm: bool,
    /// Bits of a physical address in its CPUID.
    pub physical_address_bits: u32,
}

/// `saved` in an area of `size` bytes: components that the area has room for and `saved` lacks are in their
/// initial state, and what does not fit must be unused.
fn fit(saved: &[u8], size: usize) -> Option<Vec<u8>> {
    let (kept, beyond) = saved.split_at(saved.len().min(size));
    let mut area = kept.to_vec();
    area.resize(size, 0);
    beyond.iter().all(|&byte| byte == 0).then_some(area)
}

fn get_sregs(fd: &VcpuFd) -> Result<Sregs, kvm_ioctls::Error> {
    let mut sregs = Sregs::default();
    // SAFETY: the descriptor is a vCPU's, and the kernel writes a struct kvm_sregs2, whose layout `Sregs`
    // has.
    unsafe { ioctl::get_sregs2(fd.as_raw_fd(), &raw mut sregs) }.map_err(errno)?;
    Ok(sregs)
}

fn set_sregs(fd: &VcpuFd, sregs: &Sregs) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the descriptor is a vCPU's, and the kernel reads a struct kvm_sregs2, whose layout `Sregs` has.
    unsafe { ioctl::set_sregs2(fd.as_raw_fd(), &raw const *sregs) }.map_err(errno)?;
    Ok(())
}

/// `size` is the value of KVM_CAP_XSAVE2.
fn get_xsave(fd: &VcpuFd, size: usize) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let mut area = vec![0_u8; size.max(size_of::<kvm_bindings::kvm_xsave>())];
    // SAFETY: the descriptor is a vCPU's, and the kernel writes as many bytes as KVM_CAP_XSAVE2 reports, for
    // which the area has room. No dynamic feature is enabled later, which would increase it.
    unsafe { ioctl::get_xsave2(fd.as_raw_fd(), area.as_mut_ptr().cast()) }.map_err(errno)?;
    Ok(area)
}

fn set_xsave(fd: &VcpuFd, area: &[u8]) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the descriptor is a vCPU's, and the kernel reads as many bytes as KVM_CAP_XSAVE2 reports, the
    // size of the area.
    unsafe { ioctl::set_xsave(fd.as_raw_fd(), area.as_ptr().cast()) }.map_err(errno)?;
    Ok(())
}

fn errno(error: nix::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error as i32)
}

impl Extent {
    /// Queries KVM.
    ///
    /// # Errors
    /// If KVM lacks a capability that saving needs.
    pub fn of(
        vm: &kvm_ioctls::VmFd,
        msrs: Arc<[Msr]>,
        hyperv_msrs: Arc<[Msr]>,
    ) -> Result<Self, TransferError> {
        let has = |cap: u32| vm.check_extension_raw(cap.into());
        if has(kvm_bindings::KVM_CAP_SREGS2) <= 0 {
            return Err(TransferError::Kernel {
                capability: "KVM_CAP_SREGS2",
                since: "5.14",
            });
        }
        let Some(xsave) = usize::try_from(has(kvm_bindings::KVM_CAP_XSAVE2))
            .ok()
            .filter(|&size| size > 0)
        else {
            return Err(TransferError::Kernel {
                capability: "KVM_CAP_XSAVE2",
                since: "5.17",
            });
        };
        Ok(Self {
            xsave: xsave.max(size_of::<kvm_bindings::kvm_xsave>()),
            xcrs: has(kvm_bindings::KVM_CAP_XCRS) > 0,
            nested: has(kvm_bindings::KVM_CAP_NESTED_STATE) > 0,
            msrs,
            hyperv_msrs,
        })
    }
}
