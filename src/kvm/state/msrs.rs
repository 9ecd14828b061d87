//! Lists of MSRs: which ones are state, and how they are read and written.

use std::collections::BTreeSet;
use std::io;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::TransferError;
use super::order::Part;
use crate::kvm::{KvmError, ioctl_error};
use crate::units::{Msr, VpIndex};

/// `IA32_FEATURE_CONTROL`: a part by itself.
pub(super) const FEATURE_CONTROL: Msr = Msr(0x3a);
/// `IA32_TSC_DEADLINE`: a part by itself.
pub(super) const TSC_DEADLINE: Msr = Msr(0x6e0);

/// MSRs that are not restored from the list, or not as part of it.
const NOT_HERE: [(u32, u32); 5] = [
    // IA32_TSC: writing it per vCPU loses KVM's master clock; the offset is restored.
    (0x10, 0x10),
    (FEATURE_CONTROL.0, FEATURE_CONTROL.0),
    (TSC_DEADLINE.0, TSC_DEADLINE.0),
    // VMX capabilities: promised to the guest at creation, and fixed once it is in VMX operation
    // (vmx_set_vmx_msr).
    (0x480, 0x491),
    // Hyper-V's (TLFS): some are clocks, one resets the machine, and KVM's list lacks many that are state.
    (0x4000_0000, 0x4000_01ff),
];

/// State that KVM keeps and leaves out of KVM_GET_MSR_INDEX_LIST (`kvm_set_msr_common`, `svm_set_msr`).
const NOT_LISTED: [(u32, u32); 8] = [
    // MTRRs: variable, fixed, default type (SDM vol. 3, 12.11.2).
    (0x200, 0x20f),
    (0x250, 0x250),
    (0x258, 0x259),
    (0x268, 0x26f),
    (0x2ff, 0x2ff),
    // Machine-check banks, as many as KVM has (KVM_MAX_MCE_BANKS).
    (0x400, 0x400 + 4 * 32 - 1),
    // IA32_XSS.
    (0xda0, 0xda0),
    // VM_CR (APM vol. 2, 15.30.1).
    (0xc001_0114, 0xc001_0114),
];

/// The MSRs of every vCPU that are state, except Hyper-V's, in ascending order.
///
/// # Errors
/// If KVM does not list its MSRs.
pub fn listed(kvm: &Kvm) -> Result<Vec<Msr>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(ioctl_error(
        "KVM_GET_MSR_INDEX_LIST",
        "list the MSRs that are state",
    ))?;
    Ok(state_of(list.as_slice()))
}

fn state_of(listed: &[u32]) -> Vec<Msr> {
    let excluded = |msr: u32| {
        NOT_HERE
            .iter()
            .any(|&(first, last)| (first..=last).contains(&msr))
    };
    let more = NOT_LISTED.iter().flat_map(|&(first, last)| first..=last);
    let all: BTreeSet<u32> = listed.iter().copied().chain(more).collect();
    all.into_iter()
        .filter(|&msr| !excluded(msr))
        .map(Msr)
        .collect()
}

/// Reads `which`. An MSR that KVM refuses to read is left out: the vCPU does not have it.
pub(super) fn get(
    vp: VpIndex,
    fd: &VcpuFd,
    part: Part,
    which: &[Msr],
) -> Result<Vec<(Msr, u64)>, TransferError> {
    let failed = |source: io::Error| TransferError::Save { vp, part, source };
    let mut values = Vec::with_capacity(which.len());
    let mut rest = which;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let mut msrs = entries(batch.iter().map(|&msr| (msr, 0))).map_err(failed)?;
        let done = fd.get_msrs(&mut msrs).map_err(|e| failed(e.into()))?;
        let read = msrs.as_slice().iter().take(done);
        values.extend(read.map(|entry| (Msr(entry.index), entry.data)));
        // KVM stops at the first MSR that it refuses.
        rest = &rest[batch.len().min(done + usize::from(done < batch.len()))..];
    }
    Ok(values)
}

/// Writes `values`, in this order, except those that the vCPU already has: KVM logs a message when a value,
/// even 0, is written to an MSR that it only pretends to have (DEBUGCTL where the CPU has no LBR
/// virtualization, svm_set_msr).
pub(super) fn set_changed(
    vp: VpIndex,
    fd: &VcpuFd,
    part: Part,
    values: &[(Msr, u64)],
) -> Result<(), TransferError> {
    let which: Vec<_> = values.iter().map(|(msr, _)| *msr).collect();
    let has = get(vp, fd, part, &which)?;
    let changed: Vec<_> = values
        .iter()
        .filter(|value| !has.contains(value))
        .copied()
        .collect();
    set(vp, fd, part, &changed)
}

/// Writes `values`, in this order.
pub(super) fn set(
    vp: VpIndex,
    fd: &VcpuFd,
    part: Part,
    values: &[(Msr, u64)],
) -> Result<(), TransferError> {
    let failed = |source: io::Error| TransferError::Restore { vp, part, source };
    let mut rest = values;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let msrs = entries(batch.iter().copied()).map_err(failed)?;
        let done = fd.set_msrs(&msrs).map_err(|e| failed(e.into()))?;
        let Some(&(msr, value)) = batch.get(done) else {
            rest = &rest[batch.len()..];
            continue;
        };
        let has = get(vp, fd, part, &[msr])?;
        // Some MSRs read as a value that KVM refuses to write. Nothing is lost if the vCPU already has that
        // value, or if this KVM has no such MSR and the value is the initial one: the guest's features have
        // been compared by now, so the guest never saw it. Linux 6.1 lists Intel's counters on AMD, and has
        // no HV_X64_MSR_TSC_INVARIANT_CONTROL.
        let is_lost = match has.first() {
            Some(has) => *has != (msr, value),
            None => value != 0,
        };
        if is_lost {
            return Err(TransferError::Msr { vp, msr, value });
        }
        rest = &rest[done + 1..];
    }
    Ok(())
}

/// Reads the Hyper-V MSRs that exist once per VM, through any vCPU.
///
/// # Errors
/// If KVM refuses.
pub fn save_hyperv_msrs(
    vp: VpIndex,
    fd: &VcpuFd,
    which: &[Msr],
) -> Result<Vec<(Msr, u64)>, TransferError> {
    get(vp, fd, Part::HypervMsrs, which)
}

/// Writes the Hyper-V MSRs that exist once per VM, in this order, through any vCPU.
///
/// # Errors
/// If KVM refuses one.
pub fn restore_hyperv_msrs(
    vp: VpIndex,
    fd: &VcpuFd,
    values: &[(Msr, u64)],
) -> Result<(), TransferError> {
    set(vp, fd, Part::HypervMsrs, values)
}

fn entries(values: impl Iterator<Item = (Msr, u64)>) -> io::Result<Msrs> {
    let entries: Vec<_> = values
        .map(|(msr, data)| kvm_msr_entry {
            index: msr.0,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_and_hyper_v_are_left_out_and_mtrrs_added() {
        let list = state_of(&[0x10, 0x174, 0x3a, 0x480, 0x6e0, 0x4000_0020, 0x4b56_4d04]);
        for msr in [0x174, 0x200, 0x2ff, 0x4b56_4d04] {
            assert!(list.contains(&Msr(msr)), "{msr:#x}");
        }
        for msr in [0x10, 0x3a, 0x480, 0x6e0, 0x4000_0020] {
            assert!(!list.contains(&Msr(msr)), "{msr:#x}");
        }
        assert!(list.is_sorted());
    }

    #[test]
    fn what_was_read_can_be_written_and_what_is_not_there_is_left_out() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let vp = VpIndex(0);
        let sysenter = Msr(0x175);
        set(vp, &fd, Part::Msrs, &[(sysenter, 7)]).unwrap();
        // No MSR has this number.
        let which = [Msr(0x1234_5678), sysenter, Msr(0x1234_5679)];
        let values = get(vp, &fd, Part::Msrs, &which).unwrap();
        assert_eq!(values, [(sysenter, 7)]);
        let all = get(vp, &fd, Part::Msrs, &listed(&kvm).unwrap()).unwrap();
        set(vp, &fd, Part::Msrs, &all).unwrap();
        // An MSR that this KVM does not have is no loss if its saved value is the initial one.
        let absent = [(sysenter, 9), (Msr(0x1234_5678), 0)];
        set_changed(vp, &fd, Part::Msrs, &absent).unwrap();
        assert_eq!(get(vp, &fd, Part::Msrs, &which).unwrap(), [(sysenter, 9)]);
        let lost = set_changed(vp, &fd, Part::Msrs, &[(Msr(0x1234_5678), 1)]).unwrap_err();
        assert!(lost.to_string().contains("12345678"), "{lost}");
        let refused =
            set(vp, &fd, Part::Msrs, &[(sysenter, 8), (Msr(0x1234_5678), 1)]).unwrap_err();
        assert!(refused.to_string().contains("12345678"), "{refused}");
    }
}
