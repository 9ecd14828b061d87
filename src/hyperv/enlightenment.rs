//! The types of a row in the table of enlightenments.

use crate::cpuid::Reg;
use std::fmt;

use super::host::{HvCap, KernelVersion};
use super::table::TABLE;
use crate::cpuid::CpuVendor;
use crate::units::Msr;

/// One enlightenment, in the order of the table.
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
    /// Returns all, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.id)
    }

    /// Its row.
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// QEMU's name, `hv-…`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Finds an enlightenment by its name or an alias, with or without `hv-`, case-insensitively, with `_` in
    /// place of `-`.
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
    /// Whether the set contains `e`.
    pub fn contains(self, e: Enlightenment) -> bool {
        self.0 & (1 << e as u8) != 0
    }

    /// Adds `e`.
    pub fn insert(&mut self, e: Enlightenment) {
        self.0 |= 1 << e as u8;
    }

    /// Removes `e`.
    pub fn remove(&mut self, e: Enlightenment) {
        self.0 &= !(1 << e as u8);
    }

    /// Whether the set is empty.
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

/// The properties of one enlightenment.
#[derive(Debug)]
pub struct Row {
    /// The enlightenment.
    pub id: Enlightenment,
    /// QEMU's flag name, or one of the same form where QEMU has none.
    pub name: &'static str,
    /// Other names, without `hv-`.
    pub aliases: &'static [&'static str],
    /// The argument that may follow `=`.
    pub argument: Argument,
    /// The CPUID bits that announce it. Leaves 0, 2 and 5, which contain values, are described in the text.
    pub bits: &'static [CpuidBits],
    /// Its MSRs.
    pub msrs: &'static [EnlightenmentMsrs],
    /// Its hypercall codes.
    pub hypercalls: &'static [u16],
    /// Its requirements on the host and the VM.
    pub needs: &'static [Need],
    /// The enlightenments that must be on with it.
    pub requires: &'static [Requirement],
    /// The enlightenments without which it is of little use.
    pub recommends: &'static [Enlightenment],
    /// One of each group must be on, or no known guest uses it.
    pub used_with: &'static [&'static [Enlightenment]],
    /// The enlightenments that must not be on with it.
    pub conflicts: &'static [Enlightenment],
    /// Whether it may be added automatically for one that requires it: it takes nothing away from the
    /// guest.
    pub harmless: bool,
    /// The first Linux version whose KVM supports it.
    pub since: KernelVersion,
    /// The component that implements it.
    pub owner: Owner,
    /// Whether a VM that has it can be migrated.
    pub migration: Migration,
    /// A summary in one line.
    pub summary: &'static str,
    /// Further details for users.
    pub detail: &'static str,
}

impl Row {
    /// Whether a host may lack it, so that `=auto` has a meaning.
    pub(super) fn takes_auto(&self) -> bool {
        self.argument == Argument::OnOffAuto || !self.needs.is_empty()
    }

    /// Every accepted spelling, normalized.
    pub(super) fn spellings(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(&self.name["hv-".len()..]).chain(self.aliases.iter().copied())
    }
}

/// The argument after an enlightenment's `=`, besides `on` (equal to no argument) and `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// No argument.
    None,
    /// A number, decimal or 0x…; required, since no default is sensible.
    Number {
        /// The minimum.
        min: u32,
        /// The maximum.
        max: u32,
    },
    /// Text of 1..=`max` bytes.
    Text {
        /// The maximum length in bytes.
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
    /// KVM_GET_SUPPORTED_HV_CPUID reports it when it is available. (KVM does not report everything it
    /// supports.)
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
pub struct EnlightenmentMsrs {
    /// The first MSR.
    pub first: Msr,
    /// The last MSR.
    pub last: Msr,
    /// One per VM, or one per vCPU.
    pub scope: Scope,
    /// Whether they keep written values, and so are saved with a VM.
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

/// An enlightenment's requirement on a host or a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A KVM capability.
    Cap(HvCap),
    /// The row's CPUID bits marked `reported`, in KVM_GET_SUPPORTED_HV_CPUID.
    Bits,
    /// An Intel host, as AMD has no VMCS.
    Intel,
    /// A host whose KVM supports nesting, and a guest that sees VMX or SVM.
    Nested,
    /// A non-zero enlightened VMCS version in `0x4000000A.EAX[15:0]`.
    EvmcsVersion,
    /// APICv or AVIC in use by KVM.
    ActiveApicv,
    /// An invariant TSC on the host (`0x80000007.EDX[8]`).
    InvariantTsc,
    /// A feature that hypernest does not implement yet.
    NotYet,
}

/// A required enlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The enlightenment.
    pub id: Enlightenment,
    /// Only on hosts of this vendor.
    pub only: Option<CpuVendor>,
}

/// The component that implements an enlightenment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The guest itself: it is only a hint.
    Guest,
    /// KVM.
    Kvm,
    /// hypernest, through the MSR filter or KVM's exits.
    Hypernest,
    /// KVM does most of it, and exits to hypernest for the rest.
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

/// The effect of an enlightenment on migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    /// No effect.
    Free,
    /// Migration works under a condition.
    If(&'static str),
    /// Migration is impossible, with the reason.
    Blocked(&'static str),
    /// Migration is impossible if given as `auto`, with the reason.
    BlockedIfAuto(&'static str),
}
