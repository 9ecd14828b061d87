//! A saved VM's time in its new VM.

use tracing::warn;

use super::access::{IA32_TSC, on_vcpu, set_msr};
use super::capture::offset;
use super::error::TimeError;
use super::plan::HostTsc;
use super::ratio::{Ratio, ticks};
use super::saved::{Downtime, SavedTime};
use crate::kvm::{clock, tsc};
use crate::units::{TscKhz, VpIndex};
use crate::vcpu::set::Vcpus;

/// Sets the clocks of a VM that has not run. Its vCPUs exist, created with the frequency `khz` where KVM
/// takes one for the whole VM, and no state that counts time has been restored. Returns how long the VM was
/// away by its own clock, in nanoseconds.
///
/// # Errors
/// If KVM refuses.
pub fn apply(
    vcpus: &Vcpus,
    host: &HostTsc,
    saved: &SavedTime,
    khz: TscKhz,
    downtime: Downtime,
) -> Result<u64, TimeError> {
    for vp in vcpus.vps() {
        on_vcpu(vcpus, vp, "set the TSC frequency", move |fd| {
            if tsc::khz(fd)? == khz {
                return Ok(());
            }
            tsc::set_khz(fd, khz)
        })?;
    }
    let failed = |doing| move |source| TimeError::Vm { doing, source };
    let then = saved.clock_to_set();
    let since = match downtime {
        Downtime::Continue => Some(saved.realtime_ns),
        Downtime::Pause => None,
    };
    clock::set(vcpus.vm(), then, since).map_err(failed("set the VM's clock"))?;
    let before = tsc::host_tsc();
    let now = clock::get(vcpus.vm()).map_err(failed("read the VM's clock"))?;
    let host_tsc = now.host.map_or(before, |host| host.tsc);
    let away = now.clock_ns.saturating_sub(then);
    let guest_tsc = saved.tsc.wrapping_add(ticks(away, khz));
    for vp in vcpus.vps() {
        let guest_tsc = guest_tsc.wrapping_add(saved.ahead_of_boot(vp));
        set_tsc(vcpus, vp, host.ratio(khz), guest_tsc, host_tsc)?;
    }
    if now.host.is_none() {
        warn!(
            "this host's KVM has no master clock (its clocksource is not the TSC): the guest's clocks \
             continue, but may be off by \
             microseconds, and every reading of Hyper-V's reference time exits"
        );
    }
    Ok(away)
}

/// A vCPU's TSC reads `guest_tsc` when the host's reads `host_tsc`.
pub(super) fn set_tsc(
    vcpus: &Vcpus,
    vp: VpIndex,
    ratio: Option<Ratio>,
    guest_tsc: u64,
    host_tsc: u64,
) -> Result<(), TimeError> {
    match (ratio, offset(vcpus, vp)?) {
        (Some(ratio), Some(_)) => {
            let offset = ratio.offset(guest_tsc, host_tsc);
            on_vcpu(vcpus, vp, "set the TSC offset", move |fd| {
                tsc::set_tsc_offset(fd, offset)
            })
        }
        // KVM synchronizes TSCs that are written within a second (kvm_synchronize_tsc).
        _ => set_msr(vcpus, vp, IA32_TSC, guest_tsc),
    }
}
