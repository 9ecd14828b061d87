//! The measured kinds of L2's exits and the modes, by names that the benchmark and its guest programs share.

use core::fmt;
use core::str::FromStr;

macro_rules! words {
    (
        $(#[doc = $doc:literal])*
        $type:ident, $what:literal, $error:ident;
        $($(#[doc = $variant_doc:literal])* $variant:ident = $name:literal,)*
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[doc = $variant_doc])* $variant,)*
        }

        impl $type {
            /// All of them; the order is part of the interface.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The value called `name`.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        #[doc = concat!("A name that is not ", $what, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $error;

        impl fmt::Display for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "not {}: give one of", $what)?;
                for (i, one) in $type::ALL.iter().enumerate() {
                    write!(f, "{} {one}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }

        impl core::error::Error for $error {}

        impl FromStr for $type {
            type Err = $error;

            fn from_str(name: &str) -> Result<Self, $error> {
                Self::parse(name).ok_or($error)
            }
        }
    };
}

words! {
    /// How L1 runs its L2, and with which help from L0.
    Mode, "a mode", NotAMode;
    /// VMX with VMREAD and VMWRITE, each an exit.
    Classic = "classic",
    /// VMX with VMREAD and VMWRITE, most of which go to a shadow VMCS (kvm_intel.enable_shadow_vmcs).
    ClassicShadow = "classic+shadow",
    /// [`Mode::Classic`] where the enlightened VMCS is offered but not used.
    Offered = "offered",
    /// [`Mode::ClassicShadow`] where the enlightened VMCS is offered but not used.
    OfferedShadow = "offered+shadow",
    /// VMX with the enlightened VMCS.
    Evmcs = "evmcs",
    /// [`Mode::Evmcs`] and the enlightened MSR bitmap.
    EvmcsEmsr = "evmcs+emsr",
    /// [`Mode::Evmcs`] and direct flush hypercalls.
    EvmcsDirectFlush = "evmcs+direct-flush",
    /// SVM.
    Svm = "svm",
    /// [`Mode::Svm`] and the enlightened MSR bitmap.
    SvmEmsr = "svm+emsr",
    /// [`Mode::Svm`] and direct flush hypercalls.
    SvmDirectFlush = "svm+direct-flush",
}

impl Mode {
    /// Whether L1 uses SVM; else VMX.
    #[must_use]
    pub const fn is_svm(self) -> bool {
        matches!(self, Self::Svm | Self::SvmEmsr | Self::SvmDirectFlush)
    }

    /// Whether L1 uses the enlightened VMCS.
    #[must_use]
    pub const fn uses_evmcs(self) -> bool {
        matches!(self, Self::Evmcs | Self::EvmcsEmsr | Self::EvmcsDirectFlush)
    }

    /// Whether the enlightened VMCS is offered to L1.
    #[must_use]
    pub const fn offers_evmcs(self) -> bool {
        self.uses_evmcs() || matches!(self, Self::Offered | Self::OfferedShadow)
    }

    /// Whether L1 uses the enlightened MSR bitmap.
    #[must_use]
    pub const fn uses_emsr_bitmap(self) -> bool {
        matches!(self, Self::EvmcsEmsr | Self::SvmEmsr)
    }

    /// Whether L0 handles L2's flush hypercalls.
    #[must_use]
    pub const fn uses_direct_flush(self) -> bool {
        matches!(self, Self::EvmcsDirectFlush | Self::SvmDirectFlush)
    }

    /// The setting of kvm_intel.enable_shadow_vmcs that the mode requires; `None` if it has no effect, since
    /// L0 uses a shadow VMCS only for a plain VMCS.
    #[must_use]
    pub const fn shadow_vmcs(self) -> Option<bool> {
        match self {
            Self::Classic | Self::Offered => Some(false),
            Self::ClassicShadow | Self::OfferedShadow => Some(true),
            _ => None,
        }
    }
}

words! {
    /// The cause of L2's exit. A sample's kind is sent as its index in [`Kind::ALL`].
    Kind, "a kind of exit", NotAKind;
    /// CPUID.
    Cpuid = "cpuid",
    /// VMCALL or VMMCALL.
    Hypercall = "hypercall",
    /// RDMSR that L1 intercepts.
    Rdmsr = "rdmsr",
    /// WRMSR that L1 intercepts.
    Wrmsr = "wrmsr",
    /// RDMSR that L1 does not intercept.
    RdmsrDirect = "rdmsr-direct",
    /// WRMSR that L1 does not intercept.
    WrmsrDirect = "wrmsr-direct",
    /// CPUID, with L1's MSR bitmap unchanged.
    BitmapSame = "bitmap-same",
    /// CPUID, with L1's MSR bitmap changed each time.
    BitmapChanged = "bitmap-changed",
    /// OUT.
    PioOut = "pio-out",
    /// IN.
    PioIn = "pio-in",
    /// HLT, ended by L1's timer.
    Hlt = "hlt",
    /// An interrupt for L1, which injects it into L2.
    Interrupt = "interrupt",
    /// From one L2 processor to another.
    Ipi = "ipi",
    /// EPT violation or nested page fault.
    SecondLevelFault = "second-level-fault",
    /// A device that L1 emulates.
    Mmio = "mmio",
    /// MOV to CR3.
    CrWrite = "cr-write",
    /// A page fault that L1 intercepts.
    PageFault = "page-fault",
    /// XSETBV.
    Xsetbv = "xsetbv",
    /// PAUSE.
    Pause = "pause",
    /// L1's timer ends L2's spinning.
    Timer = "timer",
    /// The VMX-preemption timer ends L2's spinning.
    PreemptionTimer = "preemption-timer",
    /// L2 requests a flush of its translations.
    FlushHypercall = "flush-hypercall",
}

impl Kind {
    /// The kind at `index` of [`Kind::ALL`].
    #[must_use]
    pub fn from_index(index: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }

    /// Its index in [`Kind::ALL`].
    #[must_use]
    pub const fn index(self) -> u64 {
        self as u64
    }

    /// Whether L1 is entered, so that the round trip has parts.
    #[must_use]
    pub const fn has_l1_part(self, mode: Mode) -> bool {
        match self {
            Self::RdmsrDirect | Self::WrmsrDirect => false,
            Self::FlushHypercall => !mode.uses_direct_flush(),
            _ => true,
        }
    }

    /// The number of virtual processors that it requires.
    #[must_use]
    pub const fn cpus(self) -> u32 {
        if matches!(self, Self::Ipi) { 2 } else { 1 }
    }
}

/// The amount of guest state that L1 accesses on each exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Touch {
    /// Reads the exit reason and RIP, writes RIP.
    Minimal,
    /// The fields that Linux's KVM accesses.
    #[default]
    KvmLike,
    /// The fields that Hyper-V accesses, by estimate.
    HypervLike,
    /// [`Touch::Minimal`] and this number of further fields.
    Fields {
        /// Further fields read.
        reads: u32,
        /// Further fields written.
        writes: u32,
    },
}

impl Touch {
    /// The profiles with a name.
    pub const ALL: &[Self] = &[Self::Minimal, Self::KvmLike, Self::HypervLike];
    /// The maximum of reads, and of writes, of [`Touch::Fields`].
    pub const MOST_FIELDS: u32 = 1000;

    /// The name; `None` for [`Touch::Fields`], whose name is its [`Display`](fmt::Display) form.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Minimal => Some("minimal"),
            Self::KvmLike => Some("kvm-like"),
            Self::HypervLike => Some("hyperv-like"),
            Self::Fields { .. } => None,
        }
    }

    /// The profile called `text`: a name, or `reads=N,writes=M`, of which either may be omitted if it is 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let named = Self::ALL.iter().find(|one| one.name() == Some(text));
        if let Some(&named) = named {
            return Some(named);
        }
        let (mut reads, mut writes) = (None, None);
        for part in text.split(',') {
            let (name, number) = part.split_once('=')?;
            let count = match name {
                "reads" => &mut reads,
                "writes" => &mut writes,
                _ => return None,
            };
            let number = number
                .bytes()
                .all(|digit| digit.is_ascii_digit())
                .then(|| number.parse().ok())??;
            if number > Self::MOST_FIELDS || count.replace(number).is_some() {
                return None;
            }
        }
        Some(Self::Fields {
            reads: reads.unwrap_or(0),
            writes: writes.unwrap_or(0),
        })
    }
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Fields { reads, writes } => write!(f, "reads={reads},writes={writes}"),
            named => f.pad(named.name().unwrap_or_default()),
        }
    }
}

/// A text that is not a touch profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotATouch;

impl fmt::Display for NotATouch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a touch profile: give minimal, kvm-like, hyperv-like or reads=N,writes=M (each at most {})",
            Touch::MOST_FIELDS
        )
    }
}

impl core::error::Error for NotATouch {}

impl FromStr for Touch {
    type Err = NotATouch;

    fn from_str(text: &str) -> Result<Self, NotATouch> {
        Self::parse(text).ok_or(NotATouch)
    }
}

#[cfg(test)]
mod tests;
