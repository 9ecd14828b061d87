//! The machine's part in its guest's time: changes of the TSC's frequency, and their notification.

use tracing::{error, info, warn};

use super::Machine;
use super::cycle::PowerCycle;
use crate::bus;
use crate::error::chain;
use crate::hyperv::reenlightenment::NotifyTarget;
use crate::kvm::KvmError;
use crate::kvm::route::{self, Msi};
use crate::machine::TscStatus;
use crate::time::switch::{self, SwitchStep, Switched};
use crate::time::{HostTsc, TimeError};

/// The address of an MSI to a local APIC: bits 19:12 are the low 8 bits of its id (SDM vol. 3, 11.11.1). The
/// others are bits 63:40 here (KVM_X2APIC_API_USE_32BIT_IDS).
const MSI_BASE: u64 = 0xfee0_0000;

impl Machine {
    /// Leaves these steps out of every change of the TSC's frequency, to test their effect.
    pub fn leave_out(&mut self, steps: Vec<SwitchStep>) {
        self.time.left_out = steps;
    }

    /// The capabilities of this host's TSC.
    pub fn host_tsc(&self) -> HostTsc {
        self.host.tsc
    }

    /// The last change of the TSC's frequency in this power cycle.
    pub fn last_switch(&self) -> Option<&Switched> {
        self.time.switched.as_ref()
    }

    /// Updates the status of the guest's TSC: after a change, or when the VM starts.
    pub(super) fn show_time(&self, changed: bool) {
        let begun = self.plan.tsc_khz.or(self.host.tsc.native);
        let khz = self.time.switched.as_ref().map(|s| s.khz).or(begun);
        let partition = bus::lock(&self.hardware.platform.partition);
        self.session.board.set_tsc(TscStatus {
            khz: khz.map(|khz| khz.0),
            host_khz: self.host.tsc.native.map(|khz| khz.0),
            emulating: partition
                .reenlightenment()
                .is_some_and(|r| r.is_emulating()),
            changes: self.session.board.tsc().changes + u32::from(changed),
        });
    }

    /// Notifies the guest that its host has another TSC frequency, if it has requested that. With `emulate`,
    /// it keeps its old one until it reports that it has adapted. Everything else of the VM must be in its
    /// final state.
    pub(super) fn reenlighten(
        &mut self,
        cycle: &PowerCycle,
        emulate: bool,
    ) -> Result<(), KvmError> {
        let target = {
            let mut partition = bus::lock(&self.hardware.platform.partition);
            let Some(registers) = partition.reenlightenment_mut() else {
                return Ok(());
            };
            if emulate {
                registers.begin_emulation();
            }
            registers.target()
        };
        self.show_time(false);
        let Some(NotifyTarget { vector, vp }) = target else {
            return Ok(());
        };
        let delivered = vp.0 < self.config.cpus.count && {
            let message = message(self.plan.cpuid.apic_id(vp.0), vector);
            route::signal_msi(cycle.vcpus().vm(), message)?
        };
        if !delivered {
            warn!(
                "the guest requested notification of its new TSC frequency on virtual processor {vp}, \
                 which does not exist"
            );
        }
        Ok(())
    }

    /// If the guest has reported that it no longer needs its old TSC frequency: switches to the new one, with
    /// all vCPUs stopped. Returns `false` if that failed, and the guest's clocks are invalid.
    pub(super) fn settle_time(&mut self, cycle: &PowerCycle) -> bool {
        let ending = |machine: &Self| {
            bus::lock(&machine.hardware.platform.partition)
                .reenlightenment()
                .is_some_and(|r| r.is_ending())
        };
        if !ending(self) {
            return true;
        }
        cycle.vcpus().pause();
        let switched = self.switch(cycle);
        if let Some(registers) = bus::lock(&self.hardware.platform.partition).reenlightenment_mut()
        {
            registers.end_emulation();
        }
        let adapted = switched.is_ok();
        let settled = self.settled(switched);
        self.show_time(adapted);
        settled
    }

    /// Logs the result of a change of the frequency; returns whether the clocks are valid.
    fn settled(&mut self, switched: Result<Option<Switched>, TimeError>) -> bool {
        match switched {
            Ok(None) => info!("the guest has adapted to its TSC frequency, which does not change"),
            Ok(Some(switched)) => {
                info!(
                    "the guest has adapted: its TSC changes from {} to {}",
                    switched.at.time.khz, switched.khz
                );
                if !switched.page_written {
                    warn!(
                        "KVM writes the guest's reference TSC page later: reference time may be off until \
                         then"
                    );
                }
                self.time.switched = Some(switched);
            }
            Err(error @ TimeError::Khz { .. }) => {
                error!("{error}: the guest keeps its old frequency");
            }
            Err(error) => {
                error!(
                    "the TSC's frequency could not be changed: {}; the VM is paused, as its clocks may be \
                     wrong",
                    chain(&error)
                );
                return false;
            }
        }
        true
    }

    /// Changes the TSC's frequency to that of a VM on this host.
    fn switch(&self, cycle: &PowerCycle) -> Result<Option<Switched>, TimeError> {
        let Some(khz) = self
            .host
            .tsc
            .target()
            .filter(|_| !self.time.keeps_frequency)
        else {
            return Ok(None);
        };
        let partition = bus::lock(&self.hardware.platform.partition).clone();
        let mut steps = switch::steps(cycle.vcpus().vps());
        steps.retain(|step| !self.time.left_out.contains(step));
        switch::switch(
            cycle.vcpus(),
            &self.host.tsc,
            &self.hardware.platform.ram,
            &partition,
            khz,
            &steps,
        )
    }
}

/// The interrupt `vector` for the local APIC `id`.
fn message(id: u32, vector: u8) -> Msi {
    let (high, low) = (u64::from(id & !0xff), u64::from(id & 0xff));
    Msi {
        address: high << 32 | MSI_BASE | low << 12,
        data: vector.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_addressed_to_its_apic() {
        for (id, address) in [
            (0, 0xfee0_0000),
            (3, 0xfee0_3000),
            (255, 0xfeef_f000),
            (0x1_02, 0x0000_0100_fee0_2000),
        ] {
            let expected = Msi {
                address,
                data: 0xee,
            };
            assert_eq!(message(id, 0xee), expected, "{id:#x}");
        }
    }
}
