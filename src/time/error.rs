//! Why a VM's time could not be read or set.

use thiserror::Error;

use super::plan::TscRefusal;
use crate::kvm::KvmError;
use crate::units::{Msr, TscKhz, VpIndex};
use crate::vcpu::set::VcpuGone;

/// Why a VM's time could not be read or set.
#[derive(Debug, Error)]
pub enum TimeError {
    /// A vCPU's thread has ended.
    #[error(transparent)]
    Gone(#[from] VcpuGone),
    /// KVM refused something for the VM.
    #[error("cannot {doing}")]
    Vm {
        /// The step that failed, after "cannot".
        doing: &'static str,
        /// The cause.
        source: KvmError,
    },
    /// KVM refused something for a vCPU.
    #[error("cannot {doing} of vCPU {vp}")]
    Vcpu {
        /// The step that failed, after "cannot".
        doing: &'static str,
        /// Which vCPU.
        vp: VpIndex,
        /// The cause.
        source: KvmError,
    },
    /// KVM refused a value for an MSR.
    #[error("KVM refuses the value {value:#x} for MSR {msr} of vCPU {vp}")]
    Msr {
        /// Which vCPU.
        vp: VpIndex,
        /// The MSR.
        msr: Msr,
        /// The value.
        value: u64,
    },
    /// KVM has no value of an MSR that every vCPU has.
    #[error("KVM does not let MSR {msr} of vCPU {vp} be read")]
    NoMsr {
        /// Which vCPU.
        vp: VpIndex,
        /// The MSR.
        msr: Msr,
    },
    /// This host cannot run the TSC at that frequency.
    #[error("the guest's TSC cannot run at {khz} on this host: {why}")]
    Khz {
        /// The frequency.
        khz: TscKhz,
        /// The reason.
        why: TscRefusal,
    },
}
