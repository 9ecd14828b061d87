//! Switches a stopped VM from its old TSC frequency to another, while everything else that it can read
//! continues: a list of steps, with the reason for each and for their order.

use super::access::{BOOT, on_vcpu, set_msr};
use super::apply::set_tsc;
use super::capture::{Captured, all_at, capture, page};
use super::error::TimeError;
use super::plan::HostTsc;
use crate::hyperv::{Partition, msr};
use crate::kvm::{clock, requests, timer, tsc};
use crate::memory::GuestRam;
use crate::units::{TscKhz, VpIndex};
use crate::vcpu::set::Vcpus;

/// One step of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SwitchStep {
    /// Sets KVM's copy of TSC_EMULATION_CONTROL to 0: while it is set, KVM does not update the reference
    /// TSC page (`tsc_page_update_unsafe`).
    OpenPage,
    /// Reads the guest's clocks at one instant.
    ReadNow,
    /// Sets a vCPU's frequency. TSC_FREQUENCY shows it at once; nothing else changes yet.
    SetKhz(VpIndex),
    /// Continues a vCPU's TSC from its value at that instant. The changed offset makes KVM recompute its
    /// clocks and write the page.
    SetOffset(VpIndex),
    /// Continues KVM's clock from the time on the page at that instant: the new page is computed from KVM's
    /// clock, and a scaled VM's page is ahead of it.
    SetClock,
    /// A vCPU's timers that count TSC ticks are armed for the new frequency.
    Rearm(VpIndex),
    /// vCPUs that are created later have the new frequency.
    SetVmKhz,
    /// KVM writes the page, before any vCPU runs.
    WritePage,
    /// Sets KVM's copy of TSC_EMULATION_CONTROL to the guest's value: from then on the page stays
    /// unchanged.
    ClosePage,
}

/// Two steps that must happen in this order.
#[derive(Clone, Copy, Debug)]
pub struct StepOrder {
    /// Matches the first step.
    pub first: fn(SwitchStep) -> bool,
    /// Matches the second step.
    pub then: fn(SwitchStep) -> bool,
    /// The reason.
    pub why: &'static str,
}

macro_rules! is {
    ($step:pat) => {
        |step| matches!(step, $step)
    };
}

/// The required order of the steps.
pub const EDGES: &[StepOrder] = &[
    StepOrder {
        first: is!(SwitchStep::OpenPage),
        then: is!(SwitchStep::SetOffset(_) | SwitchStep::SetClock),
        why: "KVM marks the page to be written when the offset or the clock changes, and only if it may be \
              (kvm_hv_request_tsc_page_update)",
    },
    StepOrder {
        first: is!(SwitchStep::ReadNow),
        then: is!(SwitchStep::SetKhz(_) | SwitchStep::SetOffset(_) | SwitchStep::SetClock),
        why: "afterwards the guest's old clocks cannot be read any more",
    },
    StepOrder {
        first: is!(SwitchStep::SetKhz(_)),
        then: is!(SwitchStep::SetOffset(_)),
        why: "KVM keeps the frequency with the offset, and compares both with those of a vCPU that is \
            created later \
              (kvm_arch_tsc_set_attr): all vCPUs have the new one before any offset is set",
    },
    StepOrder {
        first: is!(SwitchStep::SetOffset(_)),
        then: is!(SwitchStep::Rearm(_)),
        why: "KVM computes when a timer expires from frequency and offset",
    },
    StepOrder {
        first: is!(SwitchStep::SetOffset(_) | SwitchStep::SetClock),
        then: is!(SwitchStep::WritePage),
        why: "the page is written from them",
    },
    StepOrder {
        first: is!(SwitchStep::WritePage),
        then: is!(SwitchStep::ClosePage),
        why: "a page that is closed before it is written keeps its old content",
    },
];

/// The steps for a VM with these vCPUs.
pub fn steps(vps: impl Iterator<Item = VpIndex> + Clone) -> Vec<SwitchStep> {
    let mut steps = vec![SwitchStep::OpenPage, SwitchStep::ReadNow];
    steps.extend(vps.clone().map(SwitchStep::SetKhz));
    steps.extend(vps.clone().map(SwitchStep::SetOffset));
    steps.push(SwitchStep::SetClock);
    steps.extend(vps.map(SwitchStep::Rearm));
    steps.extend([
        SwitchStep::SetVmKhz,
        SwitchStep::WritePage,
        SwitchStep::ClosePage,
    ]);
    steps
}

/// The result of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The VM's time at the instant of the switch, with the old frequency.
    pub at: Captured,
    /// The new frequency.
    pub khz: TscKhz,
    /// KVM has rewritten the reference TSC page, or the guest has none. Otherwise KVM will write it when a
    /// vCPU runs, and may write it again when a clock is set.
    pub page_written: bool,
}

/// Switches a VM, whose vCPUs are all stopped, to `khz`, by `steps`. Returns `None` if it runs at `khz`
/// already.
///
/// # Errors
/// If it cannot run at `khz`; then nothing has changed. Or if KVM refuses a step; then the VM's clocks are
/// invalid.
pub fn switch(
    vcpus: &Vcpus,
    host: &HostTsc,
    ram: &GuestRam,
    partition: &Partition,
    khz: TscKhz,
    steps: &[SwitchStep],
) -> Result<Option<Switched>, TimeError> {
    host.runs_at(khz)
        .map_err(|why| TimeError::Khz { khz, why })?;
    if all_at(vcpus, khz)? {
        return Ok(None);
    }
    let mut switched = Switched {
        at: capture(vcpus, host, ram, partition)?,
        khz,
        page_written: false,
    };
    for step in steps {
        carry_out(*step, &mut switched, vcpus, host, ram, partition)?;
    }
    Ok(Some(switched))
}

fn carry_out(
    step: SwitchStep,
    switched: &mut Switched,
    vcpus: &Vcpus,
    host: &HostTsc,
    ram: &GuestRam,
    partition: &Partition,
) -> Result<(), TimeError> {
    let khz = switched.khz;
    let (now, host_tsc) = (&switched.at.time, switched.at.host_tsc);
    match step {
        SwitchStep::OpenPage => control_page(vcpus, partition, 0)?,
        SwitchStep::ReadNow => switched.at = capture(vcpus, host, ram, partition)?,
        SwitchStep::SetKhz(vp) => on_vcpu(vcpus, vp, "set the TSC frequency", move |fd| {
            tsc::set_khz(fd, khz)
        })?,
        SwitchStep::SetOffset(vp) => {
            let guest_tsc = now.tsc.wrapping_add(now.ahead_of_boot(vp));
            set_tsc(vcpus, vp, host.ratio(khz), guest_tsc, host_tsc)?;
        }
        SwitchStep::SetClock => {
            let since = Some(now.realtime_ns);
            clock::set(vcpus.vm(), now.clock_to_set(), since).map_err(|source| TimeError::Vm {
                doing: "set the VM's clock",
                source,
            })?;
        }
        SwitchStep::Rearm(vp) => on_vcpu(vcpus, vp, "arm the timer", |fd| timer::rearm(fd))?,
        SwitchStep::SetVmKhz => {
            // Where KVM stores no frequency for the VM, it cannot scale, and vCPUs that are created later
            // have the host's.
            if tsc::vm_khz(vcpus.vm()).is_ok() {
                tsc::set_vm_khz(vcpus.vm(), khz).map_err(|source| TimeError::Vm {
                    doing: "set the frequency of further vCPUs",
                    source,
                })?;
            }
        }
        SwitchStep::WritePage => switched.page_written = write_page(vcpus, ram)?,
        SwitchStep::ClosePage => {
            let wanted = partition
                .reenlightenment()
                .is_some_and(|r| r.wants_emulation());
            if switched.page_written {
                control_page(vcpus, partition, wanted.into())?;
            }
        }
    }
    Ok(())
}

/// Sets KVM's copy of TSC_EMULATION_CONTROL, if the guest has that register.
fn control_page(vcpus: &Vcpus, partition: &Partition, value: u64) -> Result<(), TimeError> {
    match partition.reenlightenment() {
        Some(_) => set_msr(vcpus, BOOT, msr::TSC_EMULATION_CONTROL, value),
        None => Ok(()),
    }
}

/// Makes KVM write the page, on one vCPU after the other until its sequence number changes: KVM does not
/// write it on a halted vCPU. Returns whether it was written; `true` also if the guest has no page.
fn write_page(vcpus: &Vcpus, ram: &GuestRam) -> Result<bool, TimeError> {
    let Some(before) = page(vcpus, ram)? else {
        return Ok(true);
    };
    for vp in vcpus.vps() {
        on_vcpu(vcpus, vp, "write the reference TSC page", |fd| {
            requests::process(fd)
        })?;
        if page(vcpus, ram)?.is_some_and(|after| after.sequence != before.sequence) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_keep_their_order() {
        let steps = steps((0..3).map(VpIndex));
        for edge in EDGES {
            let last = steps.iter().rposition(|step| (edge.first)(*step));
            let first = steps.iter().position(|step| (edge.then)(*step));
            assert!(last.is_some() && last < first, "{}", edge.why);
        }
    }

    #[test]
    fn steps_include_every_vcpu() {
        let steps = steps((0..2).map(VpIndex));
        for vp in [VpIndex(0), VpIndex(1)] {
            for step in [
                SwitchStep::SetKhz(vp),
                SwitchStep::SetOffset(vp),
                SwitchStep::Rearm(vp),
            ] {
                assert!(steps.contains(&step), "{step:?}");
            }
        }
    }
}
