//! The vocabulary of the table of enlightenments: what a row says.

use crate::cpuid::Reg;
use std::fmt;

use super::host::{HvCap, KernelVersion};
use super::table::TABLE;
use crate::cpuid::CpuVendor;
use crate::units::Msr;

/// One enlightenment. The order is the table's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(
    missing_docs,
    reason = "each variant's documentation is its row in the table"
)]
pub enum Enlightenment {
    Relaxed,
    Vapic,
    Spinlocks,
    VpIndex,
    Runtime,
    Crash,
    Reset,
    Time,
    Frequencies,
    Reenlightenment,
    TscInvariant,
    Synic,
    Stimer,
    StimerDirect,
    TlbFlush,
    TlbFlushExt,
    TlbFlushDirect,
    Ipi,
    XmmInput,
    ExtHypercalls,
    Avic,
    Evmcs,
    EmsrBitmap,
    NoNonarchCoresharing,
    VendorId,
    VersionIdBuild,
    VersionIdMajor,
    VersionIdMinor,
    VersionIdSpack,
    VersionIdSbranch,
    VersionIdSnumber,
    EnforceCpuid,
    Passthrough,
    Syndbg,
}

impl Enlightenment {
    /// All of them, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.id)
    }

    /// Its row.
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// QEMU's name for it, `hv-…`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Finds one by its name or an alias, with or without `hv-`, in any case, with `_` for `-`.
    pub fn by_name(name: &str) -> Option<Self> {
        let key = normalize(name);
        TABLE
            .iter()
            .find(|row| row.spellings().any(|s| s == key))
            .map(|row| row.id)
    }
}

impl fmt::Display for Enlightenment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Brings a name to the form that the table's names have without their `hv-`.
pub(super) fn normalize(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase().replace('_', "-");
    name.strip_prefix("hv-").map(str::to_owned).unwrap_or(name)
}

/// A set of enlightenments.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct EnlightenmentSet(u64);

impl EnlightenmentSet {
    /// Whether it holds `e`.
    pub fn contains(self, e: Enlightenment) -> bool {
        self.0 & (1 << e as u8) != 0
    }

    /// Adds `e`.
    pub fn insert(&mut self, e: Enlightenment) {
        self.0 |= 1 << e as u8;
    }

    /// Takes `e` out.
    pub fn remove(&mut self, e: Enlightenment) {
        self.0 &= !(1 << e as u8);
    }

    /// Whether it holds nothing.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, in the table's order.
    pub fn iter(self) -> impl Iterator<Item = Enlightenment> {
        Enlightenment::all().filter(move |e| self.contains(*e))
    }
}

impl FromIterator<Enlightenment> for EnlightenmentSet {
    fn from_iter<I: IntoIterator<Item = Enlightenment>>(iter: I) -> Self {
        let mut set = Self::default();
        iter.into_iter().for_each(|e| set.insert(e));
        set
    }
}

impl fmt::Debug for EnlightenmentSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Enlightenment::name))
            .finish()
    }
}

/// Everything there is to know about an enlightenment.
#[derive(Debug)]
pub struct Row {
    /// Which one.
    pub id: Enlightenment,
    /// QEMU's flag name (or, where QEMU has none, one of the same form).
    pub name: &'static str,
    /// Other names, without `hv-`.
    pub aliases: &'static [&'static str],
    /// What may stand after `=`.
    pub argument: Argument,
    /// The CPUID bits that tell the guest. Leaves 0, 2 and 5, which carry values, are described in the text.
    pub bits: &'static [CpuidBits],
    /// The MSRs that belong to it.
    pub msrs: &'static [MsrRange],
    /// The hypercall codes that belong to it.
    pub hypercalls: &'static [u16],
    /// What the host and the VM must have.
    pub needs: &'static [Need],
    /// What must be on as well.
    pub requires: &'static [Requirement],
    /// What should be on as well, or it is of little use.
    pub recommends: &'static [Enlightenment],
    /// What a guest must find as well to use it: one of each group. Without it no known guest uses the enlightenment.
    pub used_with: &'static [&'static [Enlightenment]],
    /// What must not be on at the same time.
    pub conflicts: &'static [Enlightenment],
    /// Whether it may be added by itself for another one that requires it: it takes nothing away from the guest.
    pub harmless: bool,
    /// The first Linux whose KVM can do it.
    pub since: KernelVersion,
    /// Who does the work.
    pub owner: Owner,
    /// Why a VM that has it cannot be migrated, or not everywhere.
    pub migration: Migration,
    /// One line.
    pub summary: &'static str,
    /// What else a user should know.
    pub detail: &'static str,
}

impl Row {
    /// Whether the host can lack it, so that `=auto` has a meaning.
    pub(super) fn takes_auto(&self) -> bool {
        self.argument == Argument::OnOffAuto || !self.needs.is_empty()
    }

    /// Every name under which it is accepted, normalized.
    pub(super) fn spellings(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(&self.name["hv-".len()..]).chain(self.aliases.iter().copied())
    }
}

/// What may stand after an enlightenment's `=`, besides `on` (where it stands for itself) and `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Nothing.
    None,
    /// A number, decimal or 0x…; always needed, as there is no sensible value otherwise.
    Number {
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
    },
    /// Text of 1..=`max` bytes.
    Text {
        /// The greatest length in bytes.
        max: usize,
    },
    /// `on`, `off` or `auto`.
    OnOffAuto,
}

/// One bit of a hypervisor CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidBits {
    /// The leaf, 0x4000_00xx.
    pub leaf: u32,
    /// The register.
    pub reg: Reg,
    /// The bit's number.
    pub bit: u8,
    /// KVM_GET_SUPPORTED_HV_CPUID reports it when it can be had. (KVM does not report all it can do.)
    pub reported: bool,
}

impl CpuidBits {
    /// The register with only this bit set.
    pub fn mask(self) -> u32 {
        1 << self.bit
    }
}

impl fmt::Display for CpuidBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}.{}[{}]", self.leaf, self.reg, self.bit)
    }
}

/// MSRs that belong to an enlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRange {
    /// The first.
    pub first: Msr,
    /// The last.
    pub last: Msr,
    /// One for the VM or one for each vCPU.
    pub scope: Scope,
    /// Whether they keep what was written to them, and so are saved with a VM.
    pub state: bool,
}

/// Whether a register exists once or for every vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Once for the VM.
    Vm,
    /// For every vCPU.
    Vcpu,
}

/// What a host or a VM must have for an enlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A KVM capability.
    Cap(HvCap),
    /// The row's CPUID bits marked `reported`, in KVM_GET_SUPPORTED_HV_CPUID.
    Bits,
    /// An Intel host, as AMD has no VMCS.
    Intel,
    /// A host whose KVM nests, and a guest that is shown VMX or SVM.
    Nested,
    /// A non-zero enlightened VMCS version in `0x4000000A.EAX[15:0]`.
    EvmcsVersion,
    /// APICv or AVIC in use by KVM.
    ActiveApicv,
    /// An invariant TSC on the host (`0x80000007.EDX[8]`).
    InvariantTsc,
    /// Something that hypernest cannot do so far.
    NotYet,
}

/// What must be on as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Which one.
    pub id: Enlightenment,
    /// Only on hosts of this vendor.
    pub only: Option<CpuVendor>,
}

/// Who does the work behind an enlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: it tells the guest how to behave.
    Guest,
    /// KVM.
    Kvm,
    /// hypernest, through the MSR filter or KVM's exits.
    Hypernest,
    /// KVM does most of it, and hands some up to hypernest.
    Both,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Kvm => "KVM",
            Self::Hypernest => "hypernest",
            Self::Both => "KVM and hypernest",
        })
    }
}

/// What an enlightenment means for migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    /// Nothing.
    Free,
    /// It goes, if something holds.
    If(&'static str),
    /// It does not.
    Blocked(&'static str),
    /// It does not when given as `auto`.
    BlockedIfAuto(&'static str),
}
