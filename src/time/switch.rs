//! The switch of a stopped VM from its old TSC frequency to another, while everything else that it can read goes on: a list of
//! steps, with the reason for each and for their order.

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
pub enum Step {
    /// KVM's copy of TSC_EMULATION_CONTROL becomes 0: until then KVM leaves the reference TSC page alone
    /// (`tsc_page_update_unsafe`).
    OpenPage,
    /// Reads at one instant what the guest would read then.
    ReadNow,
    /// A vCPU takes the new frequency. TSC_FREQUENCY says so at once; nothing else takes notice.
    SetKhz(VpIndex),
    /// A vCPU's TSC goes on from what it was at that instant. A changed offset is what makes KVM work its clocks out anew and
    /// write the page.
    SetOffset(VpIndex),
    /// KVM's clock goes on from what the page said at that instant, as the new page is worked out from KVM's clock, and a
    /// scaled VM's page is ahead of it.
    SetClock,
    /// A vCPU's timers that count TSC ticks are armed for the new frequency.
    Rearm(VpIndex),
    /// vCPUs that are created later have the new frequency.
    SetVmKhz,
    /// KVM writes the page, before any vCPU runs.
    WritePage,
    /// KVM's copy of TSC_EMULATION_CONTROL is what the guest wrote: from then on the page stays as it is.
    ClosePage,
}

/// Of two steps the first must come first.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    /// What comes first.
    pub first: fn(Step) -> bool,
    /// What comes after it.
    pub then: fn(Step) -> bool,
    /// Why.
    pub why: &'static str,
}

macro_rules! is {
    ($step:pat) => {
        |step| matches!(step, $step)
    };
}

/// What the order of the steps keeps to.
pub const EDGES: &[Edge] = &[
    Edge {
        first: is!(Step::OpenPage),
        then: is!(Step::SetOffset(_) | Step::SetClock),
        why: "KVM marks the page to be written when the offset or the clock changes, and only if it may be \
              (kvm_hv_request_tsc_page_update)",
    },
    Edge {
        first: is!(Step::ReadNow),
        then: is!(Step::SetKhz(_) | Step::SetOffset(_) | Step::SetClock),
        why: "afterwards nobody knows what the guest would have read",
    },
    Edge {
        first: is!(Step::SetKhz(_)),
        then: is!(Step::SetOffset(_)),
        why: "KVM keeps the frequency with the offset, and compares both with those of a vCPU that comes later \
              (kvm_arch_tsc_set_attr): all vCPUs have the new one before any offset is set",
    },
    Edge {
        first: is!(Step::SetOffset(_)),
        then: is!(Step::Rearm(_)),
        why: "KVM works out when a timer is due from frequency and offset",
    },
    Edge {
        first: is!(Step::SetOffset(_) | Step::SetClock),
        then: is!(Step::WritePage),
        why: "the page is written from them",
    },
    Edge {
        first: is!(Step::WritePage),
        then: is!(Step::ClosePage),
        why: "a page that is closed before it is written stays the old one",
    },
];

/// The steps for a VM with these vCPUs.
pub fn steps(vps: impl Iterator<Item = VpIndex> + Clone) -> Vec<Step> {
    let mut steps = vec![Step::OpenPage, Step::ReadNow];
    steps.extend(vps.clone().map(Step::SetKhz));
    steps.extend(vps.clone().map(Step::SetOffset));
    steps.push(Step::SetClock);
    steps.extend(vps.map(Step::Rearm));
    steps.extend([Step::SetVmKhz, Step::WritePage, Step::ClosePage]);
    steps
}

/// What a switch did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The VM's time at the instant of the switch, with the old frequency.
    pub at: Captured,
    /// The new frequency.
    pub khz: TscKhz,
    /// The reference TSC page was written anew, or the guest has none. Else KVM will write it when a vCPU runs, and may write it
    /// again when a clock is set.
    pub page_written: bool,
}

/// Switches a VM, all of whose vCPUs are stopped, to `khz`, by `steps`. `None` if it runs at that already.
///
/// # Errors
/// If it cannot run at `khz`; then nothing has changed. Or if KVM refuses a step; then the VM's clocks are not to be trusted.
pub fn switch(
    vcpus: &Vcpus,
    host: &HostTsc,
    ram: &GuestRam,
    partition: &Partition,
    khz: TscKhz,
    steps: &[Step],
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
    step: Step,
    switched: &mut Switched,
    vcpus: &Vcpus,
    host: &HostTsc,
    ram: &GuestRam,
    partition: &Partition,
) -> Result<(), TimeError> {
    let khz = switched.khz;
    let (now, host_tsc) = (&switched.at.time, switched.at.host_tsc);
    match step {
        Step::OpenPage => control_page(vcpus, partition, 0)?,
        Step::ReadNow => switched.at = capture(vcpus, host, ram, partition)?,
        Step::SetKhz(vp) => on_vcpu(vcpus, vp, "set the TSC frequency", move |fd| {
            tsc::set_khz(fd, khz)
        })?,
        Step::SetOffset(vp) => {
            let guest_tsc = now.tsc.wrapping_add(now.ahead_of_boot(vp));
            set_tsc(vcpus, vp, host.ratio(khz), guest_tsc, host_tsc)?;
        }
        Step::SetClock => {
            let since = Some(now.realtime_ns);
            clock::set(vcpus.vm(), now.clock_to_set(), since).map_err(|source| TimeError::Vm {
                doing: "set the VM's clock",
                source,
            })?;
        }
        Step::Rearm(vp) => on_vcpu(vcpus, vp, "arm the timer", |fd| timer::rearm(fd))?,
        Step::SetVmKhz => {
            // Where KVM knows none for the VM, it scales none, and vCPUs that are created later have the host's.
            if tsc::vm_khz(vcpus.vm()).is_ok() {
                tsc::set_vm_khz(vcpus.vm(), khz).map_err(|source| TimeError::Vm {
                    doing: "set the frequency of further vCPUs",
                    source,
                })?;
            }
        }
        Step::WritePage => switched.page_written = write_page(vcpus, ram)?,
        Step::ClosePage => {
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

/// Has KVM write the page, if there is one, on the first vCPU that is not halted: there is one, as the guest has just asked for
/// this. Whether the page is new then.
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
    fn no_vcpu_is_left_out() {
        let steps = steps((0..2).map(VpIndex));
        for vp in [VpIndex(0), VpIndex(1)] {
            for step in [Step::SetKhz(vp), Step::SetOffset(vp), Step::Rearm(vp)] {
                assert!(steps.contains(&step), "{step:?}");
            }
        }
    }
}
