//! What can be wrong with a blob.

use core::fmt;

use super::{FORMAT_SVM, FORMAT_VMX, HEADER, REVISION};

/// What is wrong with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than the header has.
    NoHeader(usize),
    /// A format that is neither VMX's nor SVM's.
    Format(u16),
    /// A size other than its flags and content ask for.
    Size {
        /// The blob's own.
        given: u32,
        /// What KVM would have written.
        expected: usize,
    },
    /// Fewer bytes than its size says.
    Truncated {
        /// The blob's own size.
        size: u32,
        /// How many bytes there are.
        bytes: usize,
    },
    /// Flags that its format does not have.
    Flags(u16),
    /// Something that only a running L2 can have, without one.
    NoGuest(&'static str),
    /// Something that only VMX can have, without VMXON.
    NoVmxon(&'static str),
    /// L2 runs without a VMCS.
    NoVmcs,
    /// The VMCS is enlightened and has an address.
    TwoVmcs(u64),
    /// Flags of system-management mode that there are not, or that exclude each other.
    SmmFlags(u16),
    /// Flags in the VMX header that there are not.
    VmxFlags(u32),
    /// An address that is not that of a page.
    Address {
        /// Of what.
        what: &'static str,
        /// The address.
        gpa: u64,
    },
    /// The VMXON region as VMCS.
    VmcsIsVmxon(u64),
    /// A VMCS of another layout.
    Revision {
        /// Which one.
        what: &'static str,
        /// Its revision.
        revision: u32,
    },
    /// The shadow VMCS does not say that it is one.
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
                    "size {given} where its flags and content make it {expected}"
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
            Self::NotShadow => write!(f, "the shadow VMCS does not say that it is one"),
            Self::Vmcb(what) => write!(f, "the VMCB {what}"),
        }
    }
}

impl core::error::Error for Malformed {}
