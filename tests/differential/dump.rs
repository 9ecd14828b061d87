//! Hyper-V's interface as a guest sees it, and the differences between two dumps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hypernest::cpuid::Reg;
use hypernest::hyperv::qemu::{DifferencePlace, MOVING};
use hypernest::units::Msr;
use hypernest_lab::suite::TestResult;

/// Hypervisor CPUID leaves and synthetic MSRs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dump {
    /// EAX, EBX, ECX, EDX.
    cpuid: BTreeMap<u32, [u32; 4]>,
    /// Only the readable MSRs; `None` if the value changes by itself.
    msrs: BTreeMap<u32, Option<u64>>,
}

/// A difference between two dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Cpuid {
        leaf: u32,
        reg: Reg,
        ours: u32,
        theirs: u32,
    },
    /// The outer `None`: reading it raises a #GP.
    Msr {
        msr: Msr,
        ours: Option<Option<u64>>,
        theirs: Option<Option<u64>>,
    },
}

/// Leaves that belong to Hyper-V.
const LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_00FF;

impl Dump {
    /// Parses the output of the guest program `hvdump`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut dump = Self::default();
        // A byte that shows that the guest runs precedes the first line.
        for line in text.trim_start_matches('\0').lines() {
            dump.line(line)
                .ok_or_else(|| format!("hvdump printed an unknown line: {line:?}"))?;
        }
        if dump.msrs.is_empty() && dump.cpuid.is_empty() {
            return Err("hvdump printed nothing".to_owned());
        }
        // Without a hypervisor's leaves an Intel processor returns its greatest leaf, an AMD processor zeros.
        let greatest = dump.cpuid.get(LEAVES.start()).map_or(0, |leaf| leaf[0]);
        if !LEAVES.contains(&greatest) {
            dump.cpuid.clear();
        }
        Ok(dump)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let hex32 = |text| u32::from_str_radix(text, 16).ok();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["cpuid", leaf, eax, ebx, ecx, edx] => {
                let leaf = hex32(leaf)?;
                let registers = [hex32(eax)?, hex32(ebx)?, hex32(ecx)?, hex32(edx)?];
                // Several hypervisors may be listed, in steps of 0x100.
                if LEAVES.contains(&leaf) {
                    self.cpuid.insert(leaf, registers);
                }
            }
            ["msr", msr, "moving"] => {
                self.msrs.insert(hex32(msr)?, None);
            }
            ["msr", msr, value] => {
                let (msr, value) = (hex32(msr)?, u64::from_str_radix(value, 16).ok()?);
                let moving = MOVING.contains(&Msr(msr));
                self.msrs.insert(msr, (!moving).then_some(value));
            }
            _ => return None,
        }
        Some(())
    }

    /// The differences between `self` (ours) and `other` (theirs).
    pub(super) fn differences(&self, other: &Self) -> Vec<Found> {
        let mut found = Vec::new();
        for &leaf in union(self.cpuid.keys(), other.cpuid.keys()) {
            let [ours, theirs] = [self, other].map(|d| d.cpuid.get(&leaf).copied());
            // A leaf above the greatest reads as zero here; the greatest leaf itself is compared in leaf
            // 0x40000000.
            let (ours, theirs) = (ours.unwrap_or_default(), theirs.unwrap_or_default());
            let registers = [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx];
            for (reg, (ours, theirs)) in registers.into_iter().zip(ours.into_iter().zip(theirs)) {
                if ours != theirs {
                    found.push(Found::Cpuid {
                        leaf,
                        reg,
                        ours,
                        theirs,
                    });
                }
            }
        }
        for &msr in union(self.msrs.keys(), other.msrs.keys()) {
            let [ours, theirs] = [self, other].map(|d| d.msrs.get(&msr).copied());
            if ours != theirs {
                let msr = Msr(msr);
                found.push(Found::Msr { msr, ours, theirs });
            }
        }
        found
    }
}

fn union<'a>(
    ours: impl Iterator<Item = &'a u32>,
    theirs: impl Iterator<Item = &'a u32>,
) -> BTreeSet<&'a u32> {
    ours.chain(theirs).collect()
}

impl Found {
    /// Whether `place` covers every bit that differs.
    pub(super) fn is_within(&self, place: DifferencePlace) -> bool {
        match (*self, place) {
            (
                Self::Cpuid {
                    leaf,
                    reg,
                    ours,
                    theirs,
                },
                DifferencePlace::Cpuid {
                    leaf: of,
                    reg: register,
                    mask,
                },
            ) => leaf == of && reg == register && (ours ^ theirs) & !mask == 0,
            (
                Self::Msr {
                    msr,
                    ours: Some(Some(ours)),
                    theirs: Some(Some(theirs)),
                },
                DifferencePlace::Msr { msr: of, mask },
            ) => msr == of && (ours ^ theirs) & !mask == 0,
            _ => false,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: Option<Option<u64>>| match value {
            None => "#GP".to_owned(),
            Some(None) => "a moving value".to_owned(),
            Some(Some(value)) => format!("{value:#x}"),
        };
        match *self {
            Self::Cpuid {
                leaf,
                reg,
                ours,
                theirs,
            } => write!(f, "CPUID {leaf:#x}.{reg} is {ours:#x}, in QEMU {theirs:#x}"),
            Self::Msr { msr, ours, theirs } => {
                write!(f, "MSR {msr} is {}, in QEMU {}", show(ours), show(theirs))
            }
        }
    }
}

/// Checks that the comparison itself can fail.
pub(super) fn planted_differences() -> TestResult {
    const TEXT: &str = "\0cpuid 40000000 40000005 1 2 3\ncpuid 40000003 a7f 30 0 84518\n\
        cpuid 40000100 40000101 0 0 0\nmsr 40000000 0\nmsr 40000020 moving\nmsr 40000105 c000000000000000\n";
    let dump = Dump::parse(TEXT)?;
    assert_eq!(dump.differences(&dump), []);
    let against = |from: &str, to: &str| {
        assert!(TEXT.contains(from), "{from}");
        Dump::parse(&TEXT.replace(from, to)).map(|other| dump.differences(&other))
    };

    let [bit] = against("a7f 30", "27f 30")?[..] else {
        panic!("one register differs");
    };
    let eax = |leaf, mask| DifferencePlace::Cpuid {
        leaf,
        reg: Reg::Eax,
        mask,
    };
    assert_eq!(
        bit.to_string(),
        "CPUID 0x40000003.EAX is 0xa7f, in QEMU 0x27f"
    );
    assert!(bit.is_within(eax(0x4000_0003, 1 << 11)));
    assert!(!bit.is_within(eax(0x4000_0003, 1 << 10)));
    assert!(!bit.is_within(eax(0x4000_0004, 1 << 11)));

    let [crash] = against("c000000000000000", "8000000000000000")?[..] else {
        panic!("one MSR differs");
    };
    let msr = |mask| DifferencePlace::Msr {
        msr: Msr(0x4000_0105),
        mask,
    };
    assert!(crash.is_within(msr(1 << 62)));
    assert!(!crash.is_within(msr(1 << 63)));

    // A missing register is not within any mask of its bits.
    let [missing] = against("msr 40000105 c000000000000000\n", "")?[..] else {
        panic!("one MSR is missing");
    };
    assert!(!missing.is_within(msr(u64::MAX)));
    assert_eq!(
        against("cpuid 40000003 a7f 30 0 84518\n", "")?.len(),
        3,
        "three registers of the missing leaf are not zero"
    );
    assert_eq!(
        against("40000101", "40000102")?,
        [],
        "not Hyper-V's own leaf"
    );
    assert!(Dump::parse("").is_err());
    assert!(Dump::parse("no such line").is_err());
    Ok(())
}
