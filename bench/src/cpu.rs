//! The instructions that have no safe form: port reads, and a loop whose length is known.
#![allow(
    unsafe_code,
    reason = "port input and a counted loop exist as instructions only"
)]

use std::arch::asm;
use std::io;

/// Ports that this process may read. Threads started after `open` may read them as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    first: u16,
    count: u16,
}

impl Ports {
    /// Requests access from the kernel.
    ///
    /// # Errors
    /// If the process lacks the privilege.
    pub(crate) fn open(first: u16, count: u16) -> io::Result<Self> {
        // SAFETY: ioperm(2) changes which ports this thread may access, and no memory.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ioperm,
                libc::c_ulong::from(first),
                libc::c_ulong::from(count),
                1,
            )
        };
        if result == 0 {
            Ok(Self { first, count })
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Reads 32 bits at `offset` from the first port.
    ///
    /// # Panics
    /// If they are not all within the range passed to `open`.
    pub(crate) fn read32(self, offset: u16) -> u32 {
        assert!(offset.checked_add(4).is_some_and(|end| end <= self.count));
        let value: u32;
        // SAFETY: the port is one that the kernel has granted; reading one transfers to EAX and touches no
        // memory.
        unsafe {
            asm!(
                "in eax, dx",
                in("dx") self.first + offset,
                out("eax") value,
                options(nomem, nostack, preserves_flags)
            );
        }
        value
    }
}

/// Instructions per turn of [`counted_loop`]: a decrement and a branch.
pub(crate) const LOOP_LENGTH: u64 = 2;

/// Runs `turns` times [`LOOP_LENGTH`] instructions.
pub(crate) fn counted_loop(turns: u64) {
    if turns == 0 {
        return;
    }
    // SAFETY: counts a register down.
    unsafe {
        asm!(
            "2:",
            "dec {turns}",
            "jnz 2b",
            turns = inout(reg) turns => _,
            options(nomem, nostack)
        );
    }
}
