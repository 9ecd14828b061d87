//! KVM's nested-state blob: the data that KVM_GET_NESTED_STATE returns and KVM_SET_NESTED_STATE accepts for a
//! virtual processor whose guest is a hypervisor.
//!
//! ```text
//! 0  flags u16 | 2 format u16 | 4 size u32 | 8 header of the format, to 128 | 128 VMCS or VMCB, a page | shadow VMCS, a page
//! VMX header:  8 VMXON region u64 | 16 VMCS u64 | 24 SMM flags u16 | 28 flags u32 | 32 preemption timer's deadline u64
//! SVM header:  8 VMCB u64
//! ```
//!
//! A blob comes from a file or another host: [`NestedState::parse`] trusts nothing. It refuses everything
//! that KVM refuses (`vmx_set_nested_state`, `svm_set_nested_state`) and that can be determined from the blob
//! alone, and in addition accepts only sizes and combinations that KVM itself writes. [`NestedState::check`]
//! does the rest: it checks whether a given processor can accept the blob.
//!
//! The blob contains an enlightened VMCS by content but not by address: KVM finds the page again through the
//! [VP assist page](crate::assist).

mod check;
mod malformed;
mod summary;
mod vmcb12;
mod vmcs12;

pub use check::{Processor, Refused};
pub use malformed::Malformed;
pub use vmcb12::Vmcb12;
pub use vmcs12::{REVISION, Vmcs12};

/// The size of the header.
pub const HEADER: usize = 128;
/// The size of a VMCS or VMCB.
pub const PAGE: usize = 4096;
/// The size of the largest blob. KVM must get this much room: it may write the shadow VMCS even if it does
/// not count it in `size` (`vmx_get_nested_state`).
pub const MOST: usize = HEADER + 2 * PAGE;

/// Bits of the blob's flags, and of those for system-management mode and in the VMX header (KVM_STATE_*).
mod flag {
    pub(super) const GUEST_MODE: u16 = 1 << 0;
    pub(super) const RUN_PENDING: u16 = 1 << 1;
    pub(super) const EVMCS: u16 = 1 << 2;
    pub(super) const MTF_PENDING: u16 = 1 << 3;
    pub(super) const GIF: u16 = 1 << 8;

    pub(super) const SMM_GUEST_MODE: u16 = 1 << 0;
    pub(super) const SMM_VMXON: u16 = 1 << 1;
    pub(super) const TIMER_DEADLINE: u32 = 1 << 0;
}

/// KVM_STATE_NESTED_FORMAT_VMX.
const FORMAT_VMX: u16 = 0;
/// KVM_STATE_NESTED_FORMAT_SVM.
const FORMAT_SVM: u16 = 1;
/// No address: INVALID_GPA.
const NONE: u64 = u64::MAX;

/// A blob that has been parsed and is consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NestedState<'a> {
    /// A processor with VMX.
    Vmx(Vmx<'a>),
    /// A processor with SVM.
    Svm(Svm<'a>),
}

/// The state of VMX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmx<'a> {
    /// L1 has not executed VMXON.
    Off {
        /// The blob is marked as one with an enlightened VMCS nevertheless, as old versions of KVM did.
        evmcs: bool,
    },
    /// L1 has executed VMXON.
    On(VmxOn<'a>),
}

/// The state of VMX after VMXON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmxOn<'a> {
    /// GPA of the VMXON region.
    pub vmxon: u64,
    /// The current VMCS.
    pub current: Option<Current<'a>>,
    /// L2 runs: the exit-reason field holds its last exit, the guest fields its state.
    pub guest_mode: bool,
    /// L2 has been entered but has not run an instruction.
    pub run_pending: bool,
    /// A monitor-trap-flag exit is pending.
    pub mtf_pending: bool,
    /// The state that system-management mode interrupted; `None` outside.
    pub smm: Option<Smm>,
    /// When L2's preemption timer expires, in L1's TSC shifted right by the timer's rate.
    pub preemption_timer_deadline: Option<u64>,
}

/// The current VMCS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Current<'a> {
    /// Its GPA; `None` if it is enlightened.
    pub address: Option<u64>,
    /// Its content.
    pub vmcs: Vmcs12<'a>,
    /// The content of the shadow VMCS that it links to, in guest mode.
    pub shadow: Option<Vmcs12<'a>>,
}

/// The state that system-management mode interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smm {
    /// L2.
    pub guest_mode: bool,
}

/// The state of SVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Svm<'a> {
    /// The global interrupt flag.
    pub gif: bool,
    /// L2's state, in guest mode.
    pub guest: Option<SvmGuest<'a>>,
}

/// L2 under SVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SvmGuest<'a> {
    /// GPA of its VMCB.
    pub address: u64,
    /// Its control area, and L1's save area.
    pub vmcb: Vmcb12<'a>,
    /// L2 has been entered but has not run an instruction.
    pub run_pending: bool,
}

impl<'a> NestedState<'a> {
    /// Parses the blob at the start of `bytes`, which may be longer, as an ioctl's buffer is.
    ///
    /// # Errors
    /// [`Malformed`] with the first problem.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, data) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or(Malformed::NoHeader(bytes.len()))?;
        let flags = u16::from_le_bytes(word(header, 0));
        let format = u16::from_le_bytes(word(header, 2));
        let size = u32::from_le_bytes(word(header, 4));
        let len = usize::try_from(size).map_or(usize::MAX, |size| size.saturating_sub(HEADER));
        let blob = Blob {
            header,
            data: &data[..len.min(data.len())],
            flags,
            size,
        };
        match format {
            FORMAT_VMX => blob.vmx().map(Self::Vmx),
            FORMAT_SVM => blob.svm().map(Self::Svm),
            format => Err(Malformed::Format(format)),
        }
    }

    /// Whether L2 is running.
    #[must_use]
    pub const fn in_guest_mode(&self) -> bool {
        match self {
            Self::Vmx(Vmx::On(on)) => on.guest_mode,
            Self::Vmx(Vmx::Off { .. }) => false,
            Self::Svm(svm) => svm.guest.is_some(),
        }
    }

    /// Whether a processor must have the enlightened VMCS to accept the blob.
    #[must_use]
    pub const fn needs_evmcs(&self) -> bool {
        match self {
            Self::Vmx(Vmx::Off { evmcs }) => *evmcs,
            Self::Vmx(Vmx::On(on)) => match on.current {
                Some(current) => current.address.is_none(),
                None => false,
            },
            Self::Svm(_) => false,
        }
    }
}

/// Writes the revision of its layout into an enlightened VMCS that has none.
///
/// KVM sets it when L1 enters L2 by VMLAUNCH. L1 may begin with VMRESUME instead, since an enlightened VMCS
/// has no launch state; then KVM returns a blob without it, and refuses that blob
/// (`nested_vmx_handle_enlightened_vmptrld`, `vmx_set_nested_state`). KVM only checks that there is a
/// revision.
pub fn supply_revision(bytes: &mut [u8]) {
    let Some((header, data)) = bytes.split_first_chunk_mut::<HEADER>() else {
        return;
    };
    let flags = u16::from_le_bytes(word(header, 0));
    let format = u16::from_le_bytes(word(header, 2));
    if let Some(revision) = data.first_chunk_mut::<4>()
        && format == FORMAT_VMX
        && flags & flag::EVMCS != 0
        && *revision == [0; 4]
    {
        *revision = REVISION.to_le_bytes();
    }
}

/// A blob with a complete header.
struct Blob<'a> {
    header: &'a [u8; HEADER],
    /// The data after the header, limited to the available bytes and the size.
    data: &'a [u8],
    flags: u16,
    /// The length in the blob's header, including the header.
    size: u32,
}

impl<'a> Blob<'a> {
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(word(self.header, offset))
    }

    fn check_flags(&self, known: u16) -> Result<(), Malformed> {
        if self.flags & !known != 0 {
            return Err(Malformed::Flags(self.flags & !known));
        }
        let pending = [
            (flag::RUN_PENDING, "an entry is pending"),
            (flag::MTF_PENDING, "a monitor-trap-flag exit is pending"),
        ];
        match pending.into_iter().find(|&(flag, _)| self.has(flag)) {
            Some((_, what)) if !self.has(flag::GUEST_MODE) => Err(Malformed::NoGuest(what)),
            _ => Ok(()),
        }
    }

    /// The first `N` pages of data, if the size is that of exactly so many.
    fn pages<const N: usize>(&self) -> Result<[&'a [u8; PAGE]; N], Malformed> {
        let expected = HEADER + N * PAGE;
        if usize::try_from(self.size) != Ok(expected) {
            return Err(Malformed::Size {
                given: self.size,
                expected,
            });
        }
        let truncated = Malformed::Truncated {
            size: self.size,
            bytes: HEADER + self.data.len(),
        };
        let pages = self.data.as_chunks::<PAGE>().0.first_chunk::<N>();
        pages.map(|pages| pages.each_ref()).ok_or(truncated)
    }

    fn vmx(&self) -> Result<Vmx<'a>, Malformed> {
        self.check_flags(flag::GUEST_MODE | flag::RUN_PENDING | flag::EVMCS | flag::MTF_PENDING)?;
        let (vmxon, vmcs) = (self.u64_at(8), self.u64_at(16));
        let smm_flags = u16::from_le_bytes(word(self.header, 24));
        let vmx_flags = u32::from_le_bytes(word(self.header, 28));
        if vmx_flags & !flag::TIMER_DEADLINE != 0 {
            return Err(Malformed::VmxFlags(vmx_flags));
        }
        if vmxon == NONE {
            let also = [
                (smm_flags != 0, "flags of system-management mode"),
                (vmcs != NONE, "a current VMCS"),
                (self.has(flag::GUEST_MODE), "a running L2"),
                (vmx_flags != 0, "a preemption timer"),
            ];
            if let Some((_, what)) = also.into_iter().find(|&(there, _)| there) {
                return Err(Malformed::NoVmxon(what));
            }
            let [] = self.pages()?;
            let evmcs = self.has(flag::EVMCS);
            return Ok(Vmx::Off { evmcs });
        }
        check_page("VMXON region", vmxon)?;
        let guest_mode = self.has(flag::GUEST_MODE);
        if vmx_flags != 0 && !guest_mode {
            return Err(Malformed::NoGuest("its preemption timer runs"));
        }
        Ok(Vmx::On(VmxOn {
            vmxon,
            current: self.current_vmcs(vmxon, vmcs)?,
            guest_mode,
            run_pending: self.has(flag::RUN_PENDING),
            mtf_pending: self.has(flag::MTF_PENDING),
            smm: smm(smm_flags, guest_mode)?,
            preemption_timer_deadline: (vmx_flags != 0).then(|| self.u64_at(32)),
        }))
    }

    fn current_vmcs(&self, vmxon: u64, vmcs: u64) -> Result<Option<Current<'a>>, Malformed> {
        let guest_mode = self.has(flag::GUEST_MODE);
        let address = match (vmcs, self.has(flag::EVMCS)) {
            (NONE, true) => None,
            (NONE, false) if guest_mode => return Err(Malformed::NoVmcs),
            (NONE, false) => {
                let [] = self.pages()?;
                return Ok(None);
            }
            (gpa, true) => return Err(Malformed::TwoVmcs(gpa)),
            (gpa, false) if gpa == vmxon => return Err(Malformed::VmcsIsVmxon(gpa)),
            (gpa, false) => {
                check_page("VMCS", gpa)?;
                Some(gpa)
            }
        };
        // The VMCS determines whether there is a second page; until it is found, one page is expected.
        let vmcs = match self.data.first_chunk::<PAGE>() {
            Some(page) => Vmcs12(page),
            None => {
                let [page] = self.pages()?;
                Vmcs12(page)
            }
        };
        check_revision("the VMCS", vmcs)?;
        let shadow = if guest_mode && vmcs.links_to_shadow() {
            let [_, shadow] = self.pages()?;
            let shadow = Vmcs12(shadow);
            check_revision("the shadow VMCS", shadow)?;
            if !shadow.is_shadow() {
                return Err(Malformed::NotShadow);
            }
            Some(shadow)
        } else {
            let [_] = self.pages()?;
            None
        };
        Ok(Some(Current {
            address,
            vmcs,
            shadow,
        }))
    }

    fn svm(&self) -> Result<Svm<'a>, Malformed> {
        self.check_flags(flag::GUEST_MODE | flag::RUN_PENDING | flag::GIF)?;
        let gif = self.has(flag::GIF);
        if !self.has(flag::GUEST_MODE) {
            let [] = self.pages()?;
            return Ok(Svm { gif, guest: None });
        }
        let address = self.u64_at(8);
        check_page("VMCB", address)?;
        let [page] = self.pages()?;
        let vmcb = Vmcb12(page);
        let (word, bit) = crate::svm::intercept::VMRUN;
        let faults = [
            (
                vmcb.intercepts()[word] & bit == 0,
                "does not intercept VMRUN",
            ),
            (
                vmcb.asid() == 0,
                "has the host's address-space identifier 0",
            ),
            (
                !vmcb.l1_can_run(),
                "has a host state in which VMRUN is not possible",
            ),
        ];
        if let Some((_, what)) = faults.into_iter().find(|&(there, _)| there) {
            return Err(Malformed::Vmcb(what));
        }
        let run_pending = self.has(flag::RUN_PENDING);
        let guest = Some(SvmGuest {
            address,
            vmcb,
            run_pending,
        });
        Ok(Svm { gif, guest })
    }
}

fn smm(flags: u16, guest_mode: bool) -> Result<Option<Smm>, Malformed> {
    match flags {
        0 => Ok(None),
        flag::SMM_VMXON => Ok(Some(Smm { guest_mode: false })),
        // System-management mode left L2, so L2 cannot be running.
        both if both == flag::SMM_VMXON | flag::SMM_GUEST_MODE && !guest_mode => {
            Ok(Some(Smm { guest_mode: true }))
        }
        flags => Err(Malformed::SmmFlags(flags)),
    }
}

fn check_page(what: &'static str, gpa: u64) -> Result<(), Malformed> {
    if gpa.is_multiple_of(PAGE as u64) {
        Ok(())
    } else {
        Err(Malformed::Address { what, gpa })
    }
}

fn check_revision(what: &'static str, vmcs: Vmcs12<'_>) -> Result<(), Malformed> {
    match vmcs.revision() {
        REVISION => Ok(()),
        revision => Err(Malformed::Revision { what, revision }),
    }
}

/// `N` bytes at `offset`, a constant of the caller within `bytes`.
fn word<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[offset..offset + N]);
    word
}

#[cfg(test)]
mod tests;
