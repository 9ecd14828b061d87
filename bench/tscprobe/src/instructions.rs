//! Instructions and a system call that have no safe form.
#![allow(
    unsafe_code,
    reason = "RDTSC, OUT and IN exist as instructions only, and ioperm has no safe form"
)]

use std::arch::asm;
use std::io;

/// The time-stamp counter after everything before and before everything after.
#[inline]
pub(crate) fn tsc() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: RDTSC between fences reads a counter and touches no memory.
    unsafe {
        asm!(
            "lfence",
            "rdtsc",
            "lfence",
            out("rax") low,
            out("rdx") high,
            options(nostack, preserves_flags)
        );
    }
    (high << 32) | low
}

/// A port that this thread may use, and those that it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port(u16);

impl Port {
    /// Asks the kernel for the four bytes from `port` on.
    ///
    /// # Errors
    /// Without the privilege for it.
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        // SAFETY: ioperm(2) changes which ports this thread may access, and no memory.
        let result = unsafe { libc::syscall(libc::SYS_ioperm, libc::c_ulong::from(port), 4, 1) };
        if result == 0 {
            Ok(Self(port))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    pub(crate) fn read32(self) -> u32 {
        let value;
        // SAFETY: the kernel has granted the port; reading it transfers to EAX and touches no memory.
        unsafe {
            asm!("in eax, dx", in("dx") self.0, out("eax") value, options(nomem, nostack, preserves_flags));
        }
        value
    }

    pub(crate) fn write8(self, value: u8) {
        // SAFETY: the kernel has granted the port; the device behind it touches no memory.
        unsafe {
            asm!("out dx, al", in("dx") self.0, in("al") value, options(nomem, nostack, preserves_flags));
        }
    }

    pub(crate) fn write32(self, value: u32) {
        // SAFETY: as in `write8`.
        unsafe {
            asm!("out dx, eax", in("dx") self.0, in("eax") value, options(nomem, nostack, preserves_flags));
        }
    }
}
