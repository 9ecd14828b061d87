//! Captures a VM's clocks at one instant.

use std::time::{SystemTime, UNIX_EPOCH};

use super::access::{BOOT, IA32_TSC, KVM_SYSTEM_TIME, get_msr, on_vcpu};
use super::error::TimeError;
use super::page::ReferencePage;
use super::plan::HostTsc;
use super::saved::{GuestTime, SavedTime};
use crate::hyperv::{Partition, msr};
use crate::kvm::{clock, tsc};
use crate::memory::GuestRam;
use crate::units::{Gpa, TscKhz, VpIndex};
use crate::vcpu::set::Vcpus;

/// A VM's time, and the host's TSC at the same instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The VM's time.
    pub time: SavedTime,
    /// The host's TSC at that instant.
    pub host_tsc: u64,
}

/// REFERENCE_TSC: bit 0 enables the page; 63:12 are its address.
const ENABLED: u64 = 1;
const PAGE: u64 = !0xfff;

/// The maximum plausible difference between the page and KVM's own computation: one second, in units of 100
/// ns. Beyond it something has overwritten the page.
const PLAUSIBLE: u64 = 10_000_000;

/// Reads the clocks of a VM whose vCPUs are all stopped.
///
/// # Errors
/// If KVM refuses.
pub fn capture(
    vcpus: &Vcpus,
    host: &HostTsc,
    ram: &GuestRam,
    partition: &Partition,
) -> Result<Captured, TimeError> {
    let khz = on_vcpu(vcpus, BOOT, "read the TSC frequency", |fd| tsc::khz(fd))?;
    let offset = offset(vcpus, BOOT)?;
    let before = tsc::host_tsc();
    let reading = clock::get(vcpus.vm()).map_err(|source| TimeError::Vm {
        doing: "read the VM's clock",
        source,
    })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let (host_tsc, realtime_ns) = match reading.host {
        Some(host) => (host.tsc, host.realtime_ns),
        None => {
            let now = now.unwrap_or_default().as_nanos();
            (before, u64::try_from(now).unwrap_or(u64::MAX))
        }
    };
    let tsc = match (host.ratio(khz), offset) {
        (Some(ratio), Some(offset)) => ratio.guest_tsc(host_tsc, offset),
        // KVM's own value, read slightly later.
        _ => get_msr(vcpus, BOOT, IA32_TSC)?.ok_or(TimeError::NoMsr {
            vp: BOOT,
            msr: IA32_TSC,
        })?,
    };
    let invariant = get_msr(vcpus, BOOT, msr::TSC_INVARIANT_CONTROL)?;
    let kvmclock = get_msr(vcpus, BOOT, KVM_SYSTEM_TIME)?;
    let time = SavedTime {
        khz,
        tsc,
        ahead: ahead(vcpus, offset)?,
        reference: reference(vcpus, ram, tsc)?,
        clock_ns: reading.clock_ns,
        kvmclock: kvmclock.is_some_and(|value| value & 1 != 0),
        realtime_ns,
        exact: reading.host.is_some() && offset.is_some(),
        guest: GuestTime::of(partition, invariant.is_some_and(|value| value & 1 != 0)),
    };
    Ok(Captured { time, host_tsc })
}

/// A vCPU's TSC offset, if KVM reports it.
pub(super) fn offset(vcpus: &Vcpus, vp: VpIndex) -> Result<Option<u64>, TimeError> {
    on_vcpu(vcpus, vp, "read the TSC offset", |fd| {
        if tsc::has_tsc_offset(fd) {
            tsc::tsc_offset(fd).map(Some)
        } else {
            Ok(None)
        }
    })
}

/// How far each further vCPU's TSC is ahead of the boot vCPU's; empty if all are equal.
fn ahead(vcpus: &Vcpus, of_boot: Option<u64>) -> Result<Vec<u64>, TimeError> {
    let mut ahead = Vec::new();
    for vp in vcpus.vps().skip(1) {
        let of_vp = offset(vcpus, vp)?;
        ahead.push(match (of_vp, of_boot) {
            (Some(of_vp), Some(of_boot)) => of_vp.wrapping_sub(of_boot),
            _ => 0,
        });
    }
    if ahead.iter().all(|by| *by == 0) {
        ahead.clear();
    }
    Ok(ahead)
}

/// The reference TSC page, if the guest enabled it and KVM has filled it.
pub(super) fn page(vcpus: &Vcpus, ram: &GuestRam) -> Result<Option<ReferencePage>, TimeError> {
    let register = get_msr(vcpus, BOOT, msr::REFERENCE_TSC)?.unwrap_or(0);
    let mut bytes = [0; ReferencePage::BYTES];
    let there = register & ENABLED != 0 && ram.read(Gpa(register & PAGE), &mut bytes).is_ok();
    Ok(there
        .then(|| ReferencePage::parse(&bytes))
        .filter(|page| page.sequence != 0))
}

/// The value that the guest would read from its page at `tsc`.
fn reference(vcpus: &Vcpus, ram: &GuestRam, tsc: u64) -> Result<Option<u64>, TimeError> {
    let of_page = page(vcpus, ram)?.and_then(|page| page.time(tsc));
    let of_kvm = get_msr(vcpus, BOOT, msr::TIME_REF_COUNT)?;
    Ok(match (of_page, of_kvm) {
        (Some(of_page), Some(of_kvm)) if of_page.abs_diff(of_kvm) > PLAUSIBLE => None,
        (of_page, _) => of_page,
    })
}

impl GuestTime {
    /// The guest's settings in the registers that hypernest owns, and whether it relies on an invariant
    /// TSC.
    pub fn of(partition: &Partition, invariant: bool) -> Self {
        let registers = partition.reenlightenment();
        Self {
            notify: registers.is_some_and(|r| r.target().is_some()),
            emulate: registers.is_some_and(|r| r.wants_emulation()),
            emulating: registers.is_some_and(|r| r.is_emulating()),
            invariant,
        }
    }
}

/// Whether all vCPUs run at `khz`.
pub(super) fn all_at(vcpus: &Vcpus, khz: TscKhz) -> Result<bool, TimeError> {
    for vp in vcpus.vps() {
        if on_vcpu(vcpus, vp, "read the TSC frequency", |fd| tsc::khz(fd))? != khz {
            return Ok(false);
        }
    }
    Ok(true)
}
