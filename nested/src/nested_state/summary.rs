//! A summary of a blob in one line.

use core::fmt;

use super::{NestedState, Smm, Svm, Vmx, VmxOn};
use crate::vmx::Field;

/// A one-line summary for users.
impl fmt::Display for NestedState<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx(Vmx::Off { .. }) => write!(f, "VMX off"),
            Self::Vmx(Vmx::On(on)) => on.fmt(f),
            Self::Svm(svm) => svm.fmt(f),
        }
    }
}

impl fmt::Display for VmxOn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VMX on")?;
        let Some(current) = self.current else {
            return write!(f, ", no current VMCS");
        };
        match current.address {
            Some(gpa) => write!(f, ", VMCS at {gpa:#x}")?,
            None => write!(f, ", enlightened VMCS")?,
        }
        write!(f, " (revision {:#x})", current.vmcs.revision())?;
        if current.shadow.is_some() {
            write!(f, ", shadow VMCS")?;
        }
        write!(f, ", {} running", if self.guest_mode { "L2" } else { "L1" })?;
        if let (true, Some(rip)) = (self.guest_mode, current.vmcs.read(Field::GUEST_RIP)) {
            write!(f, " at {rip:#x}")?;
        }
        let further = [
            (self.run_pending, "entry pending"),
            (self.mtf_pending, "monitor-trap-flag exit pending"),
            (
                self.preemption_timer_deadline.is_some(),
                "preemption timer running",
            ),
            (
                self.smm == Some(Smm { guest_mode: false }),
                "in system-management mode",
            ),
            (
                self.smm == Some(Smm { guest_mode: true }),
                "in system-management mode that left L2",
            ),
        ];
        for (_, text) in further.into_iter().filter(|&(there, _)| there) {
            write!(f, ", {text}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Svm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SVM")?;
        match self.guest {
            None => write!(f, ", L1 running")?,
            Some(guest) => {
                write!(f, ", VMCB at {:#x}, L2 running", guest.address)?;
                if guest.run_pending {
                    write!(f, ", entry pending")?;
                }
            }
        }
        write!(f, ", GIF {}", u8::from(self.gif))
    }
}
