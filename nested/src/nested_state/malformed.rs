//! Problems of a blob.

use core::fmt;

use super::{FORMAT_SVM, FORMAT_VMX, HEADER, REVISION};

/// Why a blob is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than the header has.
    NoHeader(usize),
    /// A format that is neither VMX's nor SVM's.
    Format(u16),
    /// A size that differs from the one of its flags and content.
    Size {
        /// The size in the blob.
        given: u32,
        /// The size that KVM would have written.
        expected: usize,
    },
    /// Fewer bytes than its size.
    Truncated {
        /// The size in the blob.
        size: u32,
        /// The number of bytes present.
        bytes: usize,
    },
    /// Flags that its format does not have.
    Flags(u16),
    /// State that requires a running L2, without one.
    NoGuest(&'static str),
    /// State that requires VMX operation, before VMXON.
    NoVmxon(&'static str),
    /// L2 runs without a VMCS.
    NoVmcs,
    /// The VMCS is enlightened and has an address.
    TwoVmcs(u64),
    /// Unknown flags of system-management mode, or flags that exclude each other.
    SmmFlags(u16),
    /// Unknown flags in the VMX header.
    VmxFlags(u32),
    /// An address that is not a page's.
    Address {
        /// The object at the address.
        what: &'static str,
        /// The address.
        gpa: u64,
    },
    /// The VMXON region as the current VMCS.
    VmcsIsVmxon(u64),
    /// A VMCS of another layout.
    Revision {
        /// The VMCS.
        what: &'static str,
        /// Its revision.
        revision: u32,
    },
    /// The shadow VMCS is not marked as one.
    NotShadow,
    /// A VMCB that VMRUN would refuse.
    Vmcb(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nested state is malformed: ")?;
        match *self {
            Self::NoHeader(len) => write!(f, "{len} bytes, fewer than its header's {HEADER}"),
            Self::Format(format) => {
                write!(
                    f,
                    "format {format}, neither VMX ({FORMAT_VMX}) nor SVM ({FORMAT_SVM})"
                )
            }
            Self::Size { given, expected } => {
                write!(
                    f,
                    "size {given}, but its flags and content require {expected}"
                )
            }
            Self::Truncated { size, bytes } => write!(f, "{bytes} bytes of {size}"),
            Self::Flags(flags) => write!(f, "unknown flags {flags:#x}"),
            Self::NoGuest(what) => write!(f, "{what}, but L2 is not running"),
            Self::NoVmxon(what) => write!(f, "{what}, but L1 has not executed VMXON"),
            Self::NoVmcs => write!(f, "L2 is running without a VMCS"),
            Self::TwoVmcs(gpa) => {
                write!(
                    f,
                    "an enlightened VMCS and another one at {gpa:#x} are current at once"
                )
            }
            Self::SmmFlags(flags) => write!(f, "flags {flags:#x} of system-management mode"),
            Self::VmxFlags(flags) => write!(f, "unknown flags {flags:#x} in the VMX header"),
            Self::Address { what, gpa } => {
                write!(f, "{what} at {gpa:#x}, not the address of a page")
            }
            Self::VmcsIsVmxon(gpa) => {
                write!(
                    f,
                    "the VMXON region at {gpa:#x} is the current VMCS as well"
                )
            }
            Self::Revision { what, revision } => {
                write!(
                    f,
                    "{what} has revision {revision:#x}, KVM's have {REVISION:#x}"
                )?;
                if revision == 0 {
                    write!(
                        f,
                        " (KVM leaves it 0 when L1 first enters an enlightened VMCS by VMRESUME)"
                    )?;
                }
                Ok(())
            }
            Self::NotShadow => write!(f, "the shadow VMCS is not marked as one"),
            Self::Vmcb(what) => write!(f, "the VMCB {what}"),
        }
    }
}

impl core::error::Error for Malformed {}
