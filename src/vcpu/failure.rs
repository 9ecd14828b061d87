//! The report about a vCPU that cannot continue: the reason, the registers, the code bytes, and advice.

use std::fmt::Write as _;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::dispatch::Failure;
use crate::memory::GuestRam;
use crate::units::{Gpa, VpIndex};

/// Bytes of guest code shown around RIP.
const CODE: usize = 16;

impl Failure {
    /// What happened, in one line.
    fn what(&self) -> String {
        match self {
            Self::TripleFault => {
                "triple fault (KVM_EXIT_SHUTDOWN): an exception was raised while the guest \
                could not handle the previous one"
                    .to_owned()
            }
            Self::Internal(error) => format!(
                "{} (KVM_EXIT_INTERNAL_ERROR, suberror {})",
                error.meaning(),
                error.suberror
            ),
            Self::Entry { reason, cpu } => format!(
                "the hardware refused to enter the guest (KVM_EXIT_FAIL_ENTRY, reason {reason:#x}, host CPU \
                 {cpu})"
            ),
            Self::Memory { gpa, size } => format!(
                "KVM could not map guest memory at {gpa:#x}, {size:#x} bytes (KVM_EXIT_MEMORY_FAULT)"
            ),
            Self::Run { errno } => format!(
                "KVM_RUN failed: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
            Self::Unexpected { reason } => {
                format!("unexpected exit reason {reason} from KVM")
            }
        }
    }

    /// Advice, in one line.
    fn advice(&self) -> &'static str {
        match self {
            Self::TripleFault => {
                "the guest crashed before it could report anything, or resets this way: check its console, \
                 and \
                 use --on-triple-fault stop to end the VM at the first one; on AMD the registers are those \
                 after \
                 the processor's own INIT"
            }
            Self::Internal(error) if error.suberror == KVM_INTERNAL_ERROR_EMULATION => {
                "the guest executed data or device memory, or its CPU model offers an instruction that this \
                 host's KVM cannot emulate: \
                 check the kernel image, then try another --cpu model, or kvm_intel.unrestricted_guest=1"
            }
            Self::Internal(_) => {
                "check the host's kernel log; a newer host kernel may handle this case"
            }
            Self::Entry { .. } => {
                "this CPU does not accept the vCPU's state: check the host's kernel log, and try --cpu host \
                 or without --nested"
            }
            Self::Memory { .. } | Self::Run { .. } => {
                "check the host's free memory (and huge pages) and its kernel log"
            }
            Self::Unexpected { .. } => "please report this with the host's kernel version",
        }
    }
}

/// The whole report.
pub(super) fn report(vcpu: VpIndex, failure: &Failure, fd: &VcpuFd, ram: &GuestRam) -> String {
    let mut text = format!("vCPU {vcpu} stopped: {}\n", failure.what());
    if let Some(lost) = ram.lost() {
        // This is the cause, whatever the vCPU did; and reading the code bytes would raise SIGBUS.
        text.push_str(lost);
        return text;
    }
    if let Failure::Internal(error) = failure {
        let words: Vec<_> = error.data().iter().map(|w| format!("{w:#x}")).collect();
        writeln!(text, "  KVM adds: {}", words.join(" ")).ok();
        if let Some((bytes, length)) = error.instruction() {
            writeln!(text, "  instruction: {}", hex(&bytes[..length])).ok();
        }
    }
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            registers(&mut text, &regs, &sregs);
            code(&mut text, fd, ram, &regs, &sregs);
        }
        (Err(e), _) | (_, Err(e)) => {
            writeln!(text, "  the registers cannot be read: {e}").ok();
        }
    }
    write!(text, "  what to try: {}", failure.advice()).ok();
    text
}

fn registers(text: &mut String, r: &kvm_regs, s: &kvm_sregs) {
    let rows = [
        [
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
        ],
        [
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rsp", r.rsp),
            ("rbp", r.rbp),
        ],
        [("r8", r.r8), ("r9", r.r9), ("r10", r.r10), ("r11", r.r11)],
        [
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ],
        [
            ("rip", r.rip),
            ("rflags", r.rflags),
            ("efer", s.efer),
            ("apic", s.apic_base),
        ],
        [
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
        ],
    ];
    for row in rows {
        for (name, value) in row {
            write!(text, "  {name:>6} {value:016x}").ok();
        }
        text.push('\n');
    }
    for (name, seg) in [("cs", &s.cs), ("ss", &s.ss), ("ds", &s.ds), ("tr", &s.tr)] {
        writeln!(
            text,
            "  {name:>6} {:04x} base {:016x} limit {:08x} type {:x} dpl {} p {} l {} db {}",
            seg.selector, seg.base, seg.limit, seg.type_, seg.dpl, seg.present, seg.l, seg.db
        )
        .ok();
    }
}

fn code(text: &mut String, fd: &VcpuFd, ram: &GuestRam, regs: &kvm_regs, sregs: &kvm_sregs) {
    let linear = if sregs.efer & EFER_LMA == 0 {
        sregs.cs.base.wrapping_add(regs.rip)
    } else {
        regs.rip
    };
    let mut bytes = [0; CODE];
    let shown = match fd.translate_gva(linear) {
        Ok(t) if t.valid != 0 => ram.read(Gpa(t.physical_address), &mut bytes).is_ok(),
        _ => false,
    };
    if shown {
        writeln!(text, "  code at rip: {}", hex(&bytes)).ok();
    } else {
        writeln!(text, "  code at rip: not in guest RAM (linear {linear:#x})").ok();
    }
}

fn hex(bytes: &[u8]) -> String {
    let hex: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    hex.join(" ")
}

/// EFER.LMA: the vCPU is in long mode, where the code segment's base is not used.
const EFER_LMA: u64 = 1 << 10;
