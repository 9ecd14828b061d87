//! KVM's clock of a VM (`KVM_GET_CLOCK`, `KVM_SET_CLOCK`): the source of kvmclock and of Hyper-V reference
//! time.

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, kvm_clock_data};
use kvm_ioctls::VmFd;

use std::time::{SystemTime, UNIX_EPOCH};

use super::tsc::host_tsc;
use super::{KvmError, ioctl_error};

/// The clock, and the host's clocks at the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The VM's clock, in nanoseconds.
    pub clock_ns: u64,
    /// All vCPUs' TSCs run alike, over one snapshot of the host's clock (KVM's master clock).
    pub stable: bool,
    /// The host's TSC and its wall clock in nanoseconds since 1970, at that instant (Linux 5.16, with a
    /// master clock only).
    pub host: Option<HostInstant>,
}

/// The host's clocks at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostInstant {
    /// The TSC.
    pub tsc: u64,
    /// The wall clock, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl From<kvm_clock_data> for ClockReading {
    fn from(data: kvm_clock_data) -> Self {
        let both = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
        Self {
            clock_ns: data.clock,
            stable: data.flags & KVM_CLOCK_TSC_STABLE != 0,
            host: (data.flags & both == both).then_some(HostInstant {
                tsc: data.host_tsc,
                realtime_ns: data.realtime,
            }),
        }
    }
}

/// The host's TSC and its wall clock, one after the other.
pub fn host_now() -> HostInstant {
    let tsc = host_tsc();
    let realtime = SystemTime::now().duration_since(UNIX_EPOCH);
    let realtime_ns = realtime.unwrap_or_default().as_nanos();
    HostInstant {
        tsc,
        realtime_ns: u64::try_from(realtime_ns).unwrap_or(u64::MAX),
    }
}

/// Reads the VM's clock. KVM determines whether it has a master clock when a vCPU first runs or the clock is
/// set.
///
/// # Errors
/// If KVM refuses.
pub fn get(vm: &VmFd) -> Result<ClockReading, KvmError> {
    vm.get_clock()
        .map(Into::into)
        .map_err(ioctl_error("KVM_GET_CLOCK", "read the VM's clock"))
}

/// Sets the VM's clock to `clock_ns`; with `realtime_ns`, to `clock_ns` plus the time since that instant of
/// the host's wall clock. KVM never subtracts. KVM rewrites Hyper-V's reference TSC page before a vCPU runs,
/// unless the guest has requested TSC emulation.
///
/// # Errors
/// If this KVM does not support the wall clock here (before Linux 5.16).
pub fn set(vm: &VmFd, clock_ns: u64, realtime_ns: Option<u64>) -> Result<(), KvmError> {
    let data = kvm_clock_data {
        clock: clock_ns,
        flags: realtime_ns.map_or(0, |_| KVM_CLOCK_REALTIME),
        realtime: realtime_ns.unwrap_or(0),
        ..Default::default()
    };
    vm.set_clock(&data)
        .map_err(ioctl_error("KVM_SET_CLOCK", "set the VM's clock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_goes_on_from_there() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let hour = 3_600_000_000_000;
        set(&vm, hour, None).unwrap();
        let first = get(&vm).unwrap().clock_ns;
        assert!(first >= hour);
        // An hour of the wall clock ago.
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let then = u64::try_from(now.as_nanos()).unwrap() - hour;
        set(&vm, hour, Some(then)).unwrap();
        assert!(get(&vm).unwrap().clock_ns >= 2 * hour);
        // A wall clock that is ahead of this host's subtracts nothing.
        set(&vm, hour, Some(u64::MAX)).unwrap();
        let last = get(&vm).unwrap().clock_ns;
        assert!((hour..2 * hour).contains(&last));
    }

    #[test]
    fn an_instant_counts_only_if_kvm_vouches_for_all_of_it() {
        let data = |flags| kvm_clock_data {
            clock: 5,
            flags,
            host_tsc: 7,
            realtime: 9,
            ..Default::default()
        };
        let whole = ClockReading::from(data(0xe));
        assert!(whole.stable);
        let host = HostInstant {
            tsc: 7,
            realtime_ns: 9,
        };
        assert_eq!(whole.host, Some(host));
        for flags in [0, 2, 4, 6, 8, 10] {
            assert_eq!(ClockReading::from(data(flags)).host, None, "{flags}");
        }
    }
}
