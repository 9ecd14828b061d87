//! Whether a virtual processor can accept a blob.

use core::fmt;

use super::{NestedState, PAGE, Vmx};

/// The properties and state of the receiving processor that KVM checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// VMX is in its CPUID.
    pub has_vmx: bool,
    /// The enlightened VMCS was enabled (KVM_CAP_HYPERV_ENLIGHTENED_VMCS).
    pub has_evmcs: bool,
    /// SVM is in its CPUID.
    pub has_svm: bool,
    /// EFER.SVME is set in the system registers that it received before.
    pub efer_svme: bool,
    /// It is in system-management mode.
    pub in_smm: bool,
    /// Bits of a physical address in its CPUID.
    pub physical_address_bits: u32,
}

/// Why a processor cannot accept a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The blob is VMX's.
    NoVmx,
    /// The blob is SVM's.
    NoSvm,
    /// The blob has an enlightened VMCS.
    NoEvmcs,
    /// SVM is in use but EFER.SVME is clear.
    NoSvme,
    /// The blob and the processor disagree on system-management mode.
    Smm {
        /// The processor's state.
        in_smm: bool,
    },
    /// An address of the blob is past the processor's.
    Address {
        /// The object at the address.
        what: &'static str,
        /// The address.
        gpa: u64,
        /// Bits of a physical address.
        bits: u32,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the virtual processor cannot accept the nested state: ")?;
        match self {
            Self::NoVmx => write!(
                f,
                "it has no VMX; enable it, on a host with kvm_intel.nested=1"
            ),
            Self::NoSvm => write!(
                f,
                "it has no SVM; enable it, on a host with kvm_amd.nested=1"
            ),
            Self::NoEvmcs => {
                write!(
                    f,
                    "L1 uses the enlightened VMCS; enable hv-evmcs before the state is set"
                )
            }
            Self::NoSvme => {
                write!(
                    f,
                    "L1 uses SVM but EFER.SVME is clear; set the system registers first"
                )
            }
            Self::Smm { in_smm: true } => {
                write!(f, "it is in system-management mode, where L2 cannot run")
            }
            Self::Smm { in_smm: false } => {
                write!(f, "L1 was in system-management mode; set the events first")
            }
            Self::Address { what, gpa, bits } => {
                write!(
                    f,
                    "{what} at {gpa:#x} is past its {bits}-bit physical addresses"
                )
            }
        }
    }
}

impl core::error::Error for Refused {}

impl NestedState<'_> {
    /// Whether KVM would accept the blob for `processor`, as far as the processor's features determine that.
    /// Only KVM can check L2's controls.
    ///
    /// # Errors
    /// [`Refused`] with the first missing requirement.
    pub fn check(&self, processor: &Processor) -> Result<(), Refused> {
        match self {
            Self::Vmx(vmx) => check_vmx(self, vmx, processor),
            Self::Svm(svm) => {
                // L1 without SVM has GIF set and no guest.
                let unused = svm.gif && svm.guest.is_none();
                if !processor.efer_svme && !unused {
                    return Err(if processor.has_svm {
                        Refused::NoSvme
                    } else {
                        Refused::NoSvm
                    });
                }
                let Some(guest) = svm.guest else {
                    return Ok(());
                };
                if processor.in_smm {
                    return Err(Refused::Smm { in_smm: true });
                }
                check_address(processor, "VMCB", guest.address)
            }
        }
    }
}

fn check_vmx(state: &NestedState<'_>, vmx: &Vmx<'_>, processor: &Processor) -> Result<(), Refused> {
    if state.needs_evmcs() && !(processor.has_vmx && processor.has_evmcs) {
        return Err(if processor.has_vmx {
            Refused::NoEvmcs
        } else {
            Refused::NoVmx
        });
    }
    let Vmx::On(on) = vmx else {
        return Ok(());
    };
    if !processor.has_vmx {
        return Err(Refused::NoVmx);
    }
    // System-management mode leaves L2, and its flags have no meaning outside.
    let contradicts = if processor.in_smm {
        on.guest_mode
    } else {
        on.smm.is_some()
    };
    if contradicts {
        return Err(Refused::Smm {
            in_smm: processor.in_smm,
        });
    }
    check_address(processor, "VMXON region", on.vmxon)?;
    match on.current.and_then(|current| current.address) {
        Some(gpa) => check_address(processor, "VMCS", gpa),
        None => Ok(()),
    }
}

fn check_address(processor: &Processor, what: &'static str, gpa: u64) -> Result<(), Refused> {
    let bits = processor.physical_address_bits;
    let last = gpa | (PAGE as u64 - 1);
    if last.checked_shr(bits).unwrap_or(0) == 0 {
        Ok(())
    } else {
        Err(Refused::Address { what, gpa, bits })
    }
}
