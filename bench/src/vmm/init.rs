//! A minimal init: it writes one byte to the debug console's port and sleeps.

use std::io;

use hypernest_lab::cpio;
use hypernest_nested::probe::CONSOLE_PORT;

/// The byte that it writes. No firmware prints it.
pub(super) const SIGN: u8 = 1;

/// The usual base address of programs that are not position-independent.
const BASE: u64 = 0x40_0000;
/// An ELF header and one program header (System V ABI, chapters 4 and 5).
const HEADERS: usize = 64 + 56;

/// Writes [`SIGN`], then sleeps for ever. System calls by number: iopl 172, pause 34
/// (arch/x86/entry/syscalls).
const CODE: [u8; 33] = {
    let [low, high] = CONSOLE_PORT.to_le_bytes();
    [
        0xB8, 172, 0, 0, 0, // mov eax, iopl
        0xBF, 3, 0, 0, 0, // mov edi, 3
        0x0F, 0x05, // syscall
        0xBA, low, high, 0, 0, // mov edx, CONSOLE_PORT
        0xB0, SIGN, // mov al, SIGN
        0xEE, // out dx, al
        0xB8, 34, 0, 0, 0, // again: mov eax, pause
        0x0F, 0x05, // syscall
        0xEB, 0xF7, // jmp again
        0xCC, 0xCC, 0xCC, 0xCC, // never
    ]
};

/// The program as an ELF file.
fn program() -> Vec<u8> {
    let size = (HEADERS + CODE.len()) as u64;
    let mut file = Vec::new();
    // 64-bit, little-endian, version 1.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_X86_64.
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend((BASE + HEADERS as u64).to_le_bytes());
    // Program headers follow this one; no sections.
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable: the whole file.
    file.extend(1_u32.to_le_bytes());
    file.extend(5_u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(CODE);
    file
}

/// An initramfs with that init alone.
pub(super) fn initramfs() -> io::Result<Vec<u8>> {
    let mut archive = cpio::Writer::new(Vec::new());
    // Linux opens it for init's standard streams, and logs an error if it is missing.
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, &program())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_whole_elf_file() {
        let program = program();
        assert_eq!(program.len(), HEADERS + CODE.len());
        let word = |at: usize| u64::from_le_bytes(program[at..at + 8].try_into().unwrap());
        assert_eq!(word(24), BASE + 120, "entry");
        assert_eq!(word(32), 64, "program headers");
        assert_eq!(word(64 + 32), program.len() as u64, "file size");
    }

    /// Without the privilege to use ports the program faults at the `out`; this fault shows that it starts.
    #[test]
    fn this_kernel_starts_it() {
        use std::os::unix::fs::PermissionsExt as _;
        use std::os::unix::process::ExitStatusExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init");
        let mut faulting = program();
        // iopl(0) is always permitted, and removes access to the port.
        faulting[HEADERS + 6] = 0;
        std::fs::write(&path, faulting).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let status = std::process::Command::new(&path).status().unwrap();
        assert_eq!(status.signal(), Some(nix::libc::SIGSEGV));
    }
}
