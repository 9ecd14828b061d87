//! From the loader's 32-bit protected mode, or an application processor's real mode, to Rust in long mode.

use hypernest_guest_programs as programs;

core::arch::global_asm!(
    include_str!("boot.s"),
    max_cpus = const programs::MAX_CPUS,
    stack_size = const programs::STACK_SIZE,
    alive = const programs::ALIVE,
    console = const programs::CONSOLE_PORT,
    options(att_syntax),
);

core::arch::global_asm!(include_str!("memory.s"), options(att_syntax));

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static image_end: u8;
}

#[unsafe(no_mangle)]
extern "sysv64" fn boot_processor(magic: u32, info: u32) -> ! {
    let trampoline = {
        let start = &raw const trampoline_start;
        let end = &raw const trampoline_end;
        // SAFETY: boot.s defines the two symbols around initialised, read-only bytes of one section.
        unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
    };
    let free_from = (&raw const image_end).addr();
    // SAFETY: boot.s calls this once, on the boot processor, with the loader's registers and identity-mapped
    // memory; the linker script places `image_end` after everything that the image uses.
    unsafe {
        programs::boot_processor(programs::Boot {
            magic,
            info,
            trampoline,
            free_from,
        })
    }
}

#[unsafe(no_mangle)]
extern "sysv64" fn application_processor(order: u32) -> ! {
    // SAFETY: boot.s calls this on each application processor with a unique number below MAX_CPUS.
    unsafe { programs::application_processor(order) }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    programs::panicked(info)
}

/// The prebuilt `core` refers to it for unwinding, which never happens here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
