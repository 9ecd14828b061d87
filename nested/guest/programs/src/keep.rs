//! Sets all state of the processor and its hypervisor to known values, and checks it repeatedly: for tests
//! that save, restore and migrate the VM.
//!
//! `keep [cpus=N] [laps=N] [due=MICROSECONDS] [memory=PAGES]`: each lap prints `keep: LAP`. A processor's lap
//! is some milliseconds with known values in registers; then its model-specific and synthetic registers, its
//! share of memory and its clocks are checked. The first difference ends the run with `FAIL keep: ...`. With
//! `due=`, a synthetic timer is armed once for that time from the start, and must expire, not sooner and not
//! much later.
#![allow(unsafe_code, reason = "loads registers and compares them")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hypernest_nested::hyperv::{leaf, msr, synic};

use crate::args::Args;
use crate::checks::{Check, Stop, equal, failed};
use crate::cpu::{self, cpuid, rdmsr, wrmsr};
use crate::hypercall::{GUEST_OS_ID, write_page_register, write_register};
use crate::pages::{self, Page};
use crate::smp::{Patience, Processors};
use crate::{Exit, MAX_CPUS, apic, say, trap};

/// The minimum duration of a lap, in ticks of the TSC.
const LAP: u64 = 1 << 23;
const TIMER_VECTOR: u8 = 0x73;
const PERIODIC_VECTOR: u8 = 0x74;
const DUE_VECTOR: u8 = 0x75;
/// 5 ms in units of 100 ns.
const PERIOD: u64 = 50_000;
/// The maximum delay of a timer: 20 s in units of 100 ns, since stopping the machine may take a while.
const LATE: u64 = 200_000_000;

/// A register's number, and its value for a processor.
type Register = (u32, fn(u64) -> u64);

/// Registers without an effect on these programs, each with a value that it accepts: `n` is the processor's
/// number.
const REGISTERS: [Register; 11] = [
    // IA32_SYSENTER_CS, _ESP, _EIP. On AMD's processors, where long mode has no SYSENTER, KVM keeps 32 bits
    // of the last two.
    (0x174, |n| 0x10 + n),
    (0x175, |n| 0x7000_1000 + n),
    (0x176, |n| 0x7000_2000 + n),
    // STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE.
    (0xC000_0081, |n| 0x1234_5678_0000_0000 + n),
    (0xC000_0082, |n| 0xFFFF_8000_0000_3000 + n),
    (0xC000_0083, |n| 0xFFFF_8000_0000_4000 + n),
    (0xC000_0084, |n| 0x4700 + n),
    (0xC000_0102, |n| 0xFFFF_8000_0000_5000 + n),
    // PAT, with two of its entries exchanged; an MTRR of no range; the TSC's adjustment is unchanged.
    (0x277, |_| 0x0007_0406_0007_0604),
    (0x200, |n| n << 12 | 6),
    (0x201, |_| 0xF_FFFF_F000),
];

/// The highest TSC value that any processor has seen.
static TSC: AtomicU64 = AtomicU64::new(0);
static REFERENCE: AtomicU64 = AtomicU64::new(0);
/// The expected values of each processor: an array of pairs, register and value.
static FOUND: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static LAPS: AtomicU32 = AtomicU32::new(0);
/// Pages of memory, and their address.
static MEMORY: AtomicU64 = AtomicU64::new(0);
static PAGES: AtomicU64 = AtomicU64::new(0);
static PROCESSORS: AtomicU64 = AtomicU64::new(1);

/// Room for [`REGISTERS`] and the synthetic ones, as pairs.
const ROOM: usize = 128;

struct Synthetic {
    features: u32,
    more: u32,
}

impl Synthetic {
    fn announced() -> Self {
        let here =
            cpuid(1, 0).ecx >> 31 != 0 && cpuid(leaf::INTERFACE, 0).eax == leaf::SIGNATURE_HV1;
        let features = if here {
            cpuid(leaf::FEATURES, 0)
        } else {
            cpu::Cpuid::default()
        };
        Self {
            features: features.eax,
            more: features.edx,
        }
    }

    const fn has(&self, bit: u32) -> bool {
        self.features >> bit & 1 != 0
    }

    /// Whether direct timers are available, including the synthetic timers that they require.
    const fn direct_timers(&self) -> bool {
        self.has(3) && self.has(1) && self.more >> 19 & 1 != 0
    }
}

pub(crate) fn run(args: &Args<'_>, trampoline: &[u8]) -> Exit {
    let number = |name: &str, other: u64| args.number(name).ok().flatten().unwrap_or(other);
    let Some(count) = usize::try_from(number("cpus", 1))
        .ok()
        .filter(|n| (1..=MAX_CPUS).contains(n))
    else {
        say!("wrong use: cpus= takes 1 to {MAX_CPUS}");
        return Exit::WrongUse;
    };
    let processors = match Processors::start(trampoline, count, Patience(u64::MAX)) {
        Ok(processors) => processors,
        Err(running) => {
            say!("FAIL processors: {running} of {count} run");
            return Exit::Failed;
        }
    };
    cpu::enable_interrupts();
    let pages = number("memory", 64).max(1);
    MEMORY.store(pages::take(pages), Ordering::Release);
    PAGES.store(pages, Ordering::Release);
    PROCESSORS.store(count as u64, Ordering::Release);
    if let Err(stop) = partition() {
        return fail(&stop);
    }
    if !on_all(processors, set_up) {
        return Exit::Failed;
    }
    let due = match args.number("due").ok().flatten() {
        Some(due) => match arm(due * 10) {
            Ok(due) => Some(due),
            Err(stop) => return fail(&stop),
        },
        None => None,
    };
    let laps = number("laps", u64::MAX);
    let mut expired = false;
    for number in 1..=laps {
        LAPS.fetch_add(1, Ordering::AcqRel);
        if !on_all(processors, lap) {
            return Exit::Failed;
        }
        if let Some(due) = due.filter(|_| !expired) {
            match has_expired(due) {
                Ok(yes) => expired = yes,
                Err(stop) => return fail(&stop),
            }
            if expired {
                say!("keep: the timer expired");
            }
        }
        say!("keep: {number}");
    }
    say!("ok keep");
    Exit::Done
}

/// Runs `work` on every processor; returns whether all of them return 0.
fn on_all(processors: Processors, work: fn(usize) -> u64) -> bool {
    for order in processors.others() {
        processors.begin(order, work);
    }
    let mut well = work(0) == 0;
    for order in processors.others() {
        well &= processors.end(order) == Some(0);
    }
    well
}

fn fail(stop: &Stop) -> Exit {
    match stop {
        Stop::Absent(what) | Stop::Failed(what) => say!("FAIL keep: {what}"),
    }
    Exit::Failed
}

/// Prints the failure, and returns its number.
fn verdict(order: usize, check: Check) -> u64 {
    match check {
        Ok(()) => 0,
        Err(Stop::Absent(what) | Stop::Failed(what)) => {
            say!("FAIL keep: processor {order}: {what}");
            1
        }
    }
}

fn found(order: usize) -> &'static mut [u64] {
    let address = FOUND[order].load(Ordering::Acquire);
    // SAFETY: `set_up` stored an array of this length there, and only this processor uses it.
    unsafe { core::slice::from_raw_parts_mut(pages::pointer(address), 2 * ROOM) }
}

/// Sets up the state that exists once for all processors.
fn partition() -> Check {
    let there = Synthetic::announced();
    let fill = |register: u32, value: u64| {
        write_register(register, value).map_err(|_| failed!("writing {register:#x} faults"))
    };
    let page = |register: u32| {
        write_page_register(register, Page::new())
            .map_err(|_| failed!("writing {register:#x} faults"))
    };
    if there.has(5) {
        fill(msr::GUEST_OS_ID, GUEST_OS_ID)?;
        page(msr::HYPERCALL)?;
    }
    if there.has(9) {
        page(msr::REFERENCE_TSC)?;
    }
    if there.more >> 10 & 1 != 0 {
        for number in 0..5 {
            fill(msr::CRASH_P0 + number, 0x77 + u64::from(number))?;
        }
    }
    Ok(())
}

/// Sets this processor's registers and records the values that they read as.
fn set_up(order: usize) -> u64 {
    let pages = pages::array(2 * ROOM);
    FOUND[order].store(pages.as_ptr().expose_provenance() as u64, Ordering::Release);
    verdict(order, set_registers(order))
}

fn set_registers(order: usize) -> Check {
    let there = Synthetic::announced();
    let n = order as u64;
    for (register, value) in REGISTERS {
        // SAFETY: none of them affects code that never leaves ring 0 and uses neither SYSCALL nor
        // the attributes and the range that change here.
        if unsafe { wrmsr(register, value(n)) }.is_err() {
            return Err(failed!("writing {register:#x} faults"));
        }
    }
    // SAFETY: breakpoints that are not enabled.
    unsafe {
        asm!("mov dr0, {0}", "mov dr3, {1}", in(reg) 0x1111 + n, in(reg) 0x3333 + n, options(nomem, nostack));
    }
    let fill = |register: u32, value: u64| {
        write_register(register, value).map_err(|_| failed!("writing {register:#x} faults"))
    };
    let page = |register: u32| {
        write_page_register(register, Page::new())
            .map_err(|_| failed!("writing {register:#x} faults"))
    };
    if there.has(4) {
        page(msr::VP_ASSIST_PAGE)?;
    }
    if there.has(2) {
        fill(msr::SCONTROL, 1)?;
        page(msr::SIMP)?;
        page(msr::SIEFP)?;
        for number in 0..16 {
            fill(
                msr::SINT0 + number,
                synic::SINT_MASKED | (0x30 + u64::from(number) + n),
            )?;
        }
    }
    if there.has(3) {
        // The last timer is set but not enabled.
        let config = synic::stimer_message(4) & !synic::STIMER_ENABLE;
        fill(msr::STIMER0_CONFIG + 6, config)?;
        fill(msr::STIMER0_CONFIG + 7, 0x7777 + n)?;
        fill(msr::STIMER0_CONFIG + 6, config)?;
    }
    if there.direct_timers() {
        fill(msr::STIMER0_COUNT, PERIOD)?;
        fill(
            msr::STIMER0_CONFIG,
            synic::stimer_direct(PERIODIC_VECTOR) | synic::STIMER_PERIODIC,
        )?;
    }
    let list = found(order);
    let mut pairs = list.chunks_exact_mut(2);
    let all = REGISTERS.into_iter().map(|(register, _)| register);
    for register in all.chain(SYNTHETIC.into_iter().flat_map(|(first, last)| first..=last)) {
        let is_synthetic = (0x4000_0000..0x4000_0200).contains(&register);
        // KVM since Linux 6.2 lets a guest read this register without the privilege. What was not announced
        // need not be there after a move.
        let is_unannounced = register == msr::TSC_INVARIANT_CONTROL && !there.has(15);
        if is_synthetic && (there.features == 0 || is_unannounced) {
            continue;
        }
        if let (Ok(value), Some(pair)) = (rdmsr(register), pairs.next()) {
            (pair[0], pair[1]) = (register.into(), value);
        }
    }
    // The first lap waits for the first timer's interrupt of this kind.
    apic::aim_timer(TIMER_VECTOR);
    Ok(())
}

/// Synthetic registers whose value is constant: no clocks, no commands, no running timers.
const SYNTHETIC: [(u32, u32); 9] = [
    (msr::GUEST_OS_ID, msr::VP_INDEX),
    (msr::REFERENCE_TSC, msr::REFERENCE_TSC),
    (msr::VP_ASSIST_PAGE, msr::VP_ASSIST_PAGE),
    (msr::SCONTROL, msr::SIMP),
    (msr::SINT0, msr::SINT0 + 15),
    // Timers 0 and 1 run.
    (msr::STIMER0_CONFIG + 6, msr::STIMER0_CONFIG + 7),
    (msr::CRASH_P0, msr::CRASH_CTL),
    (msr::REENLIGHTENMENT_CONTROL, msr::TSC_EMULATION_CONTROL),
    (msr::TSC_INVARIANT_CONTROL, msr::TSC_INVARIANT_CONTROL),
];

fn lap(order: usize) -> u64 {
    verdict(order, check(order))
}

fn check(order: usize) -> Check {
    let there = Synthetic::announced();
    let n = order as u64;
    let periods = trap::count(order, PERIODIC_VECTOR);
    let timer = trap::count(order, TIMER_VECTOR);
    // Some hundred microseconds on a usual bus of 1 GHz.
    apic::start_timer(1 << 19);
    hold_registers(n)?;
    for pair in found(order).chunks_exact(2).filter(|pair| pair[0] != 0) {
        let register = u32::try_from(pair[0]).unwrap_or(0);
        match rdmsr(register) {
            Ok(value) if value == pair[1] => {}
            Ok(value) => {
                return Err(failed!(
                    "register {register:#x} reads {value:#x}, not {:#x}",
                    pair[1]
                ));
            }
            Err(_) => return Err(failed!("reading register {register:#x} faults")),
        }
    }
    let (dr0, dr3): (u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {0}, dr0", "mov {1}, dr3", out(reg) dr0, out(reg) dr3, options(nomem, nostack));
    };
    equal("DR0", dr0, 0x1111 + n)?;
    equal("DR3", dr3, 0x3333 + n)?;
    memory(n)?;
    clocks(&there)?;
    let patience = Patience(1 << 36);
    if !patience.until(|| trap::count(order, TIMER_VECTOR) != timer) {
        return Err(failed!("the local APIC's timer does not expire"));
    }
    if there.direct_timers() && !patience.until(|| trap::count(order, PERIODIC_VECTOR) != periods) {
        return Err(failed!("the periodic synthetic timer does not expire"));
    }
    Ok(())
}

/// Holds values in general and vector registers for a lap, and then checks them.
fn hold_registers(n: u64) -> Check {
    let seed: u64 = 0x5A5A_0000_0000_0000 | n << 8;
    let mut wrong: u64 = 0;
    let loaded = [seed + 5, seed + 6, seed + 7, seed + 8];
    let mut stored = [0_u64; 4];
    let until = cpu::tsc_serialised() + LAP;
    // SAFETY: every register that is written is named, and the memory is that of two arrays of 32 bytes.
    unsafe {
        asm!(
            "movdqu xmm8, [r14]",
            "movdqu xmm15, [r14 + 16]",
            "lea r10, [r8 + 1]",
            "lea r11, [r8 + 2]",
            "lea r12, [r8 + 3]",
            "lea r13, [r8 + 4]",
            "2: pause",
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "cmp rax, r9",
            "jb 2b",
            "lea rax, [r8 + 1]", "xor r10, rax", "or rsi, r10",
            "lea rax, [r8 + 2]", "xor r11, rax", "or rsi, r11",
            "lea rax, [r8 + 3]", "xor r12, rax", "or rsi, r12",
            "lea rax, [r8 + 4]", "xor r13, rax", "or rsi, r13",
            "movdqu [r15], xmm8",
            "movdqu [r15 + 16], xmm15",
            in("r8") seed,
            in("r9") until,
            in("r14") &raw const loaded,
            in("r15") &raw mut stored,
            inout("rsi") wrong,
            out("rax") _, out("rdx") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _,
            out("xmm8") _, out("xmm15") _,
            options(nostack),
        );
    }
    equal("bits that changed in registers", wrong, 0)?;
    for (stored, loaded) in stored.into_iter().zip(loaded) {
        equal("half of a vector register", stored, loaded)?;
    }
    Ok(())
}

/// Each page contains its number and the lap in which it was last written; this processor checks its share.
fn memory(n: u64) -> Check {
    let (start, pages) = (
        MEMORY.load(Ordering::Acquire),
        PAGES.load(Ordering::Acquire),
    );
    let lap = u64::from(LAPS.load(Ordering::Acquire));
    let step = PROCESSORS.load(Ordering::Acquire);
    let mut number = n;
    while number < pages {
        let Some(page) = Page::existing(start + number * pages::PAGE_SIZE) else {
            return Err(failed!("page {number} is not there"));
        };
        if lap > 1 {
            equal("number in a page", page.read64(8), number)?;
            equal("lap in a page", page.read64(0x800), lap - 1)?;
        }
        page.write64(8, number);
        page.write64(0x800, lap);
        number += step;
    }
    Ok(())
}

fn clocks(there: &Synthetic) -> Check {
    let before = TSC.load(Ordering::Acquire);
    let now = cpu::tsc_serialised();
    TSC.fetch_max(now, Ordering::AcqRel);
    if now < before {
        return Err(failed!("the TSC went back from {before} to {now}"));
    }
    if there.has(1) {
        let before = REFERENCE.load(Ordering::Acquire);
        let now = reference()?;
        REFERENCE.fetch_max(now, Ordering::AcqRel);
        if now < before {
            return Err(failed!("reference time went back from {before} to {now}"));
        }
    }
    Ok(())
}

fn reference() -> Result<u64, Stop> {
    rdmsr(msr::TIME_REF_COUNT).map_err(|_| failed!("reading the reference counter faults"))
}

/// Arms the second synthetic timer once, `from_now` in the future; returns its expiration time.
fn arm(from_now: u64) -> Result<u64, Stop> {
    if !Synthetic::announced().direct_timers() {
        return Err(failed!("due= needs direct synthetic timers"));
    }
    let due = reference()? + from_now;
    let fill = |register: u32, value: u64| {
        write_register(register, value).map_err(|_| failed!("writing {register:#x} faults"))
    };
    fill(msr::STIMER0_COUNT + 2, due)?;
    fill(msr::STIMER0_CONFIG + 2, synic::stimer_direct(DUE_VECTOR))?;
    Ok(due)
}

/// Whether the timer with that expiration time has expired; an error if it did too early, or not within the
/// limit.
fn has_expired(due: u64) -> Result<bool, Stop> {
    let expired = trap::count(0, DUE_VECTOR);
    let now = reference()?;
    match expired {
        0 if now > due + LATE => Err(failed!("the timer due at {due} has not expired at {now}")),
        0 => Ok(false),
        1 if now < due => Err(failed!("the timer due at {due} expired before {now}")),
        1 => Ok(true),
        more => Err(failed!("the timer expired {more} times")),
    }
}
