//! Compares the CPUID that a guest was shown on one host with another host's.

use thiserror::Error;

use super::CpuidEntry;
use super::feature::{self as f, Feature};
use crate::cpuid::Reg;

/// A guest-visible property that a host cannot provide.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CpuLack {
    /// A feature with a name.
    #[error("CPU feature {0}")]
    Feature(Feature),
    /// A feature without a name.
    #[error("CPU feature CPUID {function:#x}.{index}:{reg}[{bit}]")]
    Bit {
        /// The leaf.
        function: u32,
        /// The sub-leaf.
        index: u32,
        /// The register.
        reg: Reg,
        /// The bit.
        bit: u8,
    },
    /// A number that exceeds the host's.
    #[error("{what}: the guest was shown {promised}, this host has {host}")]
    Number {
        /// The name of the number.
        what: &'static str,
        /// The guest's value.
        promised: u32,
        /// This host's value.
        host: u32,
    },
    /// An XSAVE state component with another layout; programs store the layout.
    #[error(
        "XSAVE state component {component}: the guest was shown {} bytes at {}, this host has {} at {}",
        .promised.0, .promised.1, .host.0, .host.1
    )]
    XsaveLayout {
        /// Its number.
        component: u32,
        /// Size and offset in the guest.
        promised: (u32, u32),
        /// Size and offset on this host.
        host: (u32, u32),
    },
}

/// Registers in which each set bit is a supported feature (SDM vol. 2A, "CPUID"; APM vol. 3, appendix E).
pub(super) const FEATURES: [(u32, u32, Reg); 26] = [
    (1, 0, Reg::Ecx),
    (1, 0, Reg::Edx),
    (6, 0, Reg::Eax),
    (7, 0, Reg::Ebx),
    (7, 0, Reg::Ecx),
    (7, 0, Reg::Edx),
    (7, 1, Reg::Eax),
    (7, 1, Reg::Ebx),
    (7, 1, Reg::Ecx),
    (7, 1, Reg::Edx),
    (7, 2, Reg::Edx),
    // State components of XCR0 and of IA32_XSS, and the instructions for them.
    (0xd, 0, Reg::Eax),
    (0xd, 0, Reg::Edx),
    (0xd, 1, Reg::Eax),
    (0xd, 1, Reg::Ecx),
    (0xd, 1, Reg::Edx),
    (0x14, 0, Reg::Ebx),
    (0x14, 0, Reg::Ecx),
    (0x8000_0001, 0, Reg::Ecx),
    (0x8000_0001, 0, Reg::Edx),
    (0x8000_0007, 0, Reg::Edx),
    (0x8000_0008, 0, Reg::Ebx),
    (0x8000_000a, 0, Reg::Edx),
    (0x8000_0021, 0, Reg::Eax),
    (0x8000_0021, 0, Reg::Ecx),
    (0x8000_0022, 0, Reg::Eax),
];

/// Numbers that must be at least as large on a host: name, leaf, register, first bit, number of bits.
const NUMBERS: [(&str, u32, Reg, u8, u8); 8] = [
    ("version of the performance counters", 0xa, Reg::Eax, 0, 8),
    ("performance counters", 0xa, Reg::Eax, 8, 8),
    ("bits of a performance counter", 0xa, Reg::Eax, 16, 8),
    ("fixed performance counters", 0xa, Reg::Edx, 0, 5),
    ("performance counters", 0x8000_0022, Reg::Ebx, 0, 4),
    ("bits of a physical address", 0x8000_0008, Reg::Eax, 0, 8),
    ("bits of a linear address", 0x8000_0008, Reg::Eax, 8, 8),
    ("revision of SVM", 0x8000_000a, Reg::Eax, 0, 8),
];

/// Not compared with the host: the hypervisor sets these itself, or derives them from the topology.
const OURS: [Feature; 3] = [f::HYPERVISOR, f::HTT, f::CMP_LEGACY];

/// Returns everything in `promised` that `host`, KVM's supported CPUID, does not provide. `tsc_deadline` is
/// KVM_CAP_TSC_DEADLINE_TIMER. The hypervisor's own leaves are not compared.
pub fn lacks(promised: &[CpuidEntry], host: &[CpuidEntry], tsc_deadline: bool) -> Vec<CpuLack> {
    // KVM does not report it reliably.
    let mut host = host.to_vec();
    f::TSC_DEADLINE.set(&mut host, tsc_deadline);
    let host = host.as_slice();
    let mut lacks = Vec::new();
    for (function, index, reg) in FEATURES {
        let mut missing = word(promised, function, index, reg) & !word(host, function, index, reg);
        for feature in OURS {
            if (feature.function, feature.index, feature.reg) == (function, index, reg) {
                missing &= !(1 << feature.bit);
            }
        }
        for bit in (0..32_u8).filter(|bit| missing & 1 << bit != 0) {
            let lack = name(function, index, reg, bit);
            if !lacks.contains(&lack) {
                lacks.push(lack);
            }
        }
    }
    for (what, function, reg, first, bits) in NUMBERS {
        let number = |entries| word(entries, function, 0, reg) >> first & ((1 << bits) - 1);
        let (promised, host) = (number(promised), number(host));
        if promised > host {
            lacks.push(CpuLack::Number {
                what,
                promised,
                host,
            });
        }
    }
    let components = word(promised, 0xd, 0, Reg::Eax) & word(host, 0xd, 0, Reg::Eax);
    for component in (2..32).filter(|n| components & 1 << n != 0) {
        let place = |entries| {
            (
                word(entries, 0xd, component, Reg::Eax),
                word(entries, 0xd, component, Reg::Ebx),
            )
        };
        let (promised, host) = (place(promised), place(host));
        if promised != host {
            lacks.push(CpuLack::XsaveLayout {
                component,
                promised,
                host,
            });
        }
    }
    lacks
}

fn word(entries: &[CpuidEntry], function: u32, index: u32, reg: Reg) -> u32 {
    entries
        .iter()
        .find(|e| e.function == function && e.index == index)
        .map_or(0, |e| e.reg(reg))
}

fn name(function: u32, index: u32, reg: Reg, bit: u8) -> CpuLack {
    match f::at(function, index, reg, bit) {
        Some(feature) => CpuLack::Feature(feature),
        None => CpuLack::Bit {
            function,
            index,
            reg,
            bit,
        },
    }
}
