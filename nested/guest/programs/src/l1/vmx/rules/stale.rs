//! The clean bits: a field that L1 has changed takes effect if the bit of its group is clear, and not if it
//! is set.

use core::arch::asm;

use hypernest_nested::evmcs::{self, clean};
use hypernest_nested::hyperv::hypercall;
use hypernest_nested::vmx::controls::{entry, exit, primary, secondary};
use hypernest_nested::vmx::{Field, ept, exit_reason, interruption};

use super::super::fields::Fields;
use super::super::{FORMAT, bitmaps};
use super::{Rig, looking, seen};
use crate::checks::{Check, Stop, failed};
use crate::cpu::{self, rdmsr};
use crate::l1::l2::{Entry, Shared};
use crate::l1::second_level::{SecondLevel, WINDOW};
use crate::pages::{self, Page};
use crate::text::Text;

/// One group of fields.
pub(super) struct Group {
    pub(super) name: &'static str,
    bit: u32,
    /// The features that the page must agree on with L0.
    agreed: Agreed,
    l2: Entry,
    /// Before the first entry.
    set_up: fn(&mut Rig) -> Result<(), Stop>,
    /// At a stop of L2; clears the bits of the groups that it writes.
    change: fn(&mut Rig) -> Result<(), Stop>,
    /// Whether the change is visible.
    effect: fn(&Observed) -> bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Agreed {
    Nothing,
    MsrBitmap,
    DirectFlush,
}

/// The observations after L2 has read.
struct Observed {
    /// The value that L2 read.
    seen: u64,
    /// The exit before the stop.
    exit: Option<u32>,
}

impl Observed {
    fn exited_by(&self, reason: u16) -> bool {
        self.exit.map(exit_reason::basic) == Some(reason)
    }
}

impl Group {
    pub(super) fn check(&self, rig: &mut Rig) -> Check {
        rig.vmx
            .fields
            .agree_on(
                self.agreed == Agreed::MsrBitmap,
                self.agreed == Agreed::DirectFlush,
            )
            .map_err(Stop::Absent)?;
        let result = self.check_both(rig);
        rig.vmx.fields.agree_on(false, false)?;
        result
    }

    fn check_both(&self, rig: &mut Rig) -> Check {
        if self.takes_effect(rig, true)? {
            return Err(failed!("a change takes effect though the clean bit is set"));
        }
        if !self.takes_effect(rig, false)? {
            return Err(failed!(
                "a change has no effect though the clean bit is clear"
            ));
        }
        Ok(())
    }

    fn takes_effect(&self, rig: &mut Rig, stale: bool) -> Result<bool, Stop> {
        rig.begin(self.l2)?;
        (self.set_up)(rig)?;
        rig.run_to_stop()?;
        if rig.clean_bits() != clean::ALL {
            return Err(failed!(
                "L0 leaves the clean bits at {:#x}",
                rig.clean_bits()
            ));
        }
        (self.change)(rig)?;
        if rig.clean_bits() != clean::ALL & !self.bit {
            return Err(failed!(
                "the change leaves the clean bits at {:#x}",
                rig.clean_bits()
            ));
        }
        if stale {
            rig.set_clean_bits(clean::ALL);
        }
        let exit = rig.run_to_stop()?;
        Ok((self.effect)(&Observed { seen: seen(), exit }))
    }
}

const fn group(
    name: &'static str,
    bit: u32,
    l2: Entry,
    change: fn(&mut Rig) -> Result<(), Stop>,
    effect: fn(&Observed) -> bool,
) -> Group {
    Group {
        name,
        bit,
        agreed: Agreed::Nothing,
        l2,
        set_up: |_| Ok(()),
        change,
        effect,
    }
}

const RFLAGS_ID: u64 = 1 << 21;
const CR4_TSD: u64 = 1 << 2;
const UNDEFINED: u64 = 1 << 6;
const KERNEL_GS_BASE: u32 = 0xC000_0102;
const GS_BASE: u32 = 0xC000_0101;
const FS_BASE: u32 = 0xC000_0100;
const SYSENTER_ESP: u32 = 0x175;
const PAT: u32 = 0x277;
const POST_PORT: u16 = 0x80;
const VECTOR: u8 = 0x40;
/// A value that no field has by default, and that is valid for every field of 64 bits.
const CHANGED: u64 = 0x0000_1234_5678_9000;
const LATER: u64 = 1 << 60;

pub(super) const GROUPS: &[Group] = &[
    group(
        "io-bitmap",
        clean::IO_BITMAP,
        reads_port,
        |rig| {
            let page = Page::new();
            for at in (0..4096).step_by(8) {
                page.write64(at, u64::MAX);
            }
            rig.write(Field::IO_BITMAP_A, page.address());
            Ok(())
        },
        |observed| observed.exited_by(exit_reason::IO),
    ),
    group(
        "msr-bitmap",
        clean::MSR_BITMAP,
        reads_msr,
        |rig| {
            let page = Page::new();
            bitmaps::set_msrs(page, true);
            rig.write(Field::MSR_BITMAP, page.address());
            Ok(())
        },
        |observed| observed.exited_by(exit_reason::RDMSR),
    ),
    Group {
        agreed: Agreed::MsrBitmap,
        ..group(
            "msr-bitmap-content",
            clean::MSR_BITMAP,
            reads_msr,
            |rig| {
                bitmaps::set_msrs(rig.vmx.msr_bitmap, true);
                rig.vmx.fields.msr_bitmap_changed();
                Ok(())
            },
            |observed| observed.exited_by(exit_reason::RDMSR),
        )
    },
    Group {
        set_up: |rig| {
            let controls = rig.read(Field::PRIMARY_CONTROLS);
            let offset = u64::from(primary::TSC_OFFSETTING);
            rig.write(Field::PRIMARY_CONTROLS, controls | offset);
            Ok(())
        },
        ..group(
            "control-grp2",
            clean::CONTROL_GRP2,
            reads_tsc,
            |rig| {
                rig.write(Field::TSC_OFFSET, LATER);
                Ok(())
            },
            |observed| observed.seen >= LATER,
        )
    },
    group(
        "control-grp1",
        clean::CONTROL_GRP1,
        writes_caches_back,
        |rig| {
            let controls = rig.read(Field::SECONDARY_CONTROLS);
            let exiting = u64::from(secondary::WBINVD_EXITING);
            rig.write(Field::SECONDARY_CONTROLS, controls | exiting);
            Ok(())
        },
        |observed| observed.exited_by(exit_reason::WBINVD),
    ),
    group(
        "control-proc",
        clean::CONTROL_PROC,
        reads_tsc,
        |rig| {
            let controls = rig.read(Field::PRIMARY_CONTROLS);
            let exiting = u64::from(primary::RDTSC_EXITING);
            rig.write(Field::PRIMARY_CONTROLS, controls | exiting);
            Ok(())
        },
        |observed| observed.exited_by(exit_reason::RDTSC),
    ),
    group(
        "control-event",
        clean::CONTROL_EVENT,
        counts_interrupts,
        |rig| {
            let event = interruption::external(VECTOR);
            rig.write(Field::ENTRY_INTERRUPTION_INFO, event.into());
            Ok(())
        },
        |observed| observed.seen != 0,
    ),
    Group {
        set_up: |rig| {
            let pat = msr(PAT)?;
            let controls = rig.read(Field::EXIT_CONTROLS);
            let load = u64::from(exit::LOAD_PAT);
            rig.write(Field::EXIT_CONTROLS, controls | load);
            rig.write(Field::HOST_PAT, pat);
            rig.write(Field::GUEST_PAT, pat ^ PAT_CHANGE);
            Ok(())
        },
        ..group(
            "control-entry",
            clean::CONTROL_ENTRY,
            reads_pat,
            |rig| {
                let controls = rig.read(Field::ENTRY_CONTROLS);
                let load = u64::from(entry::LOAD_PAT);
                rig.write(Field::ENTRY_CONTROLS, controls | load);
                Ok(())
            },
            |observed| rdmsr(PAT).is_ok_and(|pat| observed.seen == pat ^ PAT_CHANGE),
        )
    },
    group(
        "control-excpn",
        clean::CONTROL_EXCPN,
        undefined,
        |rig| {
            rig.write(Field::EXCEPTION_BITMAP, UNDEFINED);
            Ok(())
        },
        |observed| observed.exited_by(exit_reason::EXCEPTION_OR_NMI),
    ),
    Group {
        set_up: |rig| {
            rig.write(Field::CR4_MASK, CR4_TSD);
            Ok(())
        },
        ..group(
            "crdr",
            clean::CRDR,
            reads_cr4,
            |rig| {
                let shadow = rig.read(Field::CR4_READ_SHADOW);
                rig.write(Field::CR4_READ_SHADOW, shadow | CR4_TSD);
                Ok(())
            },
            |observed| observed.seen & CR4_TSD != 0,
        )
    },
    group(
        "control-xlat",
        clean::CONTROL_XLAT,
        reads_window,
        |rig| {
            let other = SecondLevel::new(FORMAT);
            other.behind().write64(0, CHANGED);
            rig.write(Field::EPT_POINTER, ept::pointer(other.root()));
            Ok(())
        },
        |observed| observed.seen == CHANGED,
    ),
    group(
        "guest-basic",
        clean::GUEST_BASIC,
        reads_flags,
        |rig| {
            let flags = rig.read(Field::GUEST_RFLAGS);
            rig.write(Field::GUEST_RFLAGS, flags | RFLAGS_ID);
            Ok(())
        },
        |observed| observed.seen & RFLAGS_ID != 0,
    ),
    group(
        "guest-grp1",
        clean::GUEST_GRP1,
        reads_sysenter_esp,
        |rig| {
            rig.write(Field::GUEST_SYSENTER_ESP, CHANGED);
            Ok(())
        },
        |observed| observed.seen == CHANGED,
    ),
    group(
        "guest-grp2",
        clean::GUEST_GRP2,
        reads_gs_base,
        |rig| {
            rig.write(Field::GUEST_GS_BASE, CHANGED);
            Ok(())
        },
        |observed| observed.seen == CHANGED,
    ),
    // The host's state is visible in L1, after the exit.
    group(
        "host-pointer",
        clean::HOST_POINTER,
        reads_flags,
        |rig| {
            rig.write(Field::HOST_FS_BASE, CHANGED);
            Ok(())
        },
        |_| rdmsr(FS_BASE) == Ok(CHANGED),
    ),
    group(
        "host-grp1",
        clean::HOST_GRP1,
        reads_flags,
        |rig| {
            rig.write(Field::HOST_SYSENTER_ESP, CHANGED);
            Ok(())
        },
        |_| rdmsr(SYSENTER_ESP) == Ok(CHANGED),
    ),
    Group {
        agreed: Agreed::DirectFlush,
        ..group(
            "enlightenments-control",
            clean::ENLIGHTENMENTS_CONTROL,
            flushes,
            |rig| {
                // A count that is not zero requests an exit after the flush.
                let page = Page::new();
                page.write32(0, 1);
                rig.vmx.fields.set_partition_assist(page);
                Ok(())
            },
            |observed| observed.exit == Some(evmcs::EXIT_TRAP_AFTER_FLUSH),
        )
    },
];

/// The last entry, which is unused here, changed from uncacheable to write-combining.
const PAT_CHANGE: u64 = 1 << 56;

fn msr(register: u32) -> Result<u64, Stop> {
    rdmsr(register)
        .map_err(|_| Stop::Absent(Text::new(format_args!("there is no MSR {register:#x}"))))
}

extern "sysv64" fn reads_port(_: &'static Shared) -> ! {
    looking(|| cpu::in8(POST_PORT).into())
}

extern "sysv64" fn reads_msr(_: &'static Shared) -> ! {
    looking(|| rdmsr(KERNEL_GS_BASE).unwrap_or(0))
}

extern "sysv64" fn reads_pat(_: &'static Shared) -> ! {
    looking(|| rdmsr(PAT).unwrap_or(0))
}

extern "sysv64" fn reads_sysenter_esp(_: &'static Shared) -> ! {
    looking(|| rdmsr(SYSENTER_ESP).unwrap_or(0))
}

extern "sysv64" fn reads_gs_base(_: &'static Shared) -> ! {
    looking(|| rdmsr(GS_BASE).unwrap_or(0))
}

extern "sysv64" fn reads_tsc(_: &'static Shared) -> ! {
    looking(cpu::tsc_serialised)
}

extern "sysv64" fn reads_cr4(_: &'static Shared) -> ! {
    looking(cpu::cr4)
}

extern "sysv64" fn reads_window(_: &'static Shared) -> ! {
    let window = core::ptr::with_exposed_provenance::<u64>(pages::as_usize(WINDOW));
    // SAFETY: mapped by L1's tables, and by every second level that is used here.
    looking(|| unsafe { window.read_volatile() })
}

extern "sysv64" fn reads_flags(_: &'static Shared) -> ! {
    looking(|| {
        let flags;
        // SAFETY: reads a register.
        unsafe { asm!("pushfq", "pop {}", out(reg) flags) }
        flags
    })
}

extern "sysv64" fn writes_caches_back(_: &'static Shared) -> ! {
    looking(|| {
        // SAFETY: has no effect that a program can observe.
        unsafe { asm!("wbinvd", options(nostack)) }
        0
    })
}

extern "sysv64" fn counts_interrupts(shared: &'static Shared) -> ! {
    cpu::enable_interrupts();
    looking(|| shared.interrupts())
}

/// If L1 does not intercept the exception, L2 stops in its handler.
extern "sysv64" fn undefined(_: &'static Shared) -> ! {
    looking(|| {
        cpu::undefined();
        0
    })
}

extern "sysv64" fn flushes(_: &'static Shared) -> ! {
    let input = Page::new();
    input.write64(
        8,
        hypercall::FLUSH_ALL_SPACES | hypercall::FLUSH_ALL_PROCESSORS,
    );
    let control = hypercall::input(hypercall::FLUSH_SPACE, 0, 0);
    looking(|| {
        let result;
        // SAFETY: L0 changes only RAX.
        unsafe {
            asm!(
                "vmcall",
                inout("rax") u64::MAX => result,
                in("rcx") control,
                in("rdx") input.address(),
                in("r8") 0_u64,
                options(nostack),
            );
        }
        result
    })
}
