//! The command set of a NOR flash chip: Intel's, as far as firmware for virtual machines uses it (edk2,
//! OvmfPkg/QemuFlashFvbServicesRuntimeDxe/QemuFlash.c, which asks for no CFI table).

/// Bytes that are erased at once.
pub const BLOCK: u64 = BLOCK_LEN as u64;
/// The same.
pub(super) const BLOCK_LEN: usize = 0x1000;

/// What an erased byte is.
pub(super) const ERASED: u8 = 0xff;

// Commands: a byte written anywhere in the chip.
const PROGRAM: u8 = 0x10;
const PROGRAM_ALIAS: u8 = 0x40;
const ERASE: u8 = 0x20;
const ERASE_CONFIRM: u8 = 0xd0;
const CLEAR_STATUS: u8 = 0x50;
const READ_STATUS: u8 = 0x70;

// Status.
const READY: u8 = 1 << 7;
const ERASE_FAILED: u8 = 1 << 5;
const PROGRAM_FAILED: u8 = 1 << 4;

/// What a write makes of the chip's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The written bytes are stored.
    Program,
    /// The block of the written address is erased.
    Erase,
    /// The driver goes back to reading: what it has changed must last.
    Settle,
}

/// How the chip takes the next write, and what reads show. The numbers are those of saved VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    /// Reads show the content.
    #[default]
    Array = 0,
    /// Reads show the status.
    Status = 1,
    /// The next write is data. Nobody reads meanwhile: reads show the content.
    Program = 2,
    /// The next write confirms.
    Erase = 3,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Array, Self::Status, Self::Program, Self::Erase];
}

/// The state of the chip beside its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chip {
    mode: Mode,
    status: u8,
}

impl Chip {
    /// What reads show instead of the content.
    pub(super) fn status(self) -> Option<u8> {
        (self.mode == Mode::Status).then_some(self.status)
    }

    /// Takes a write of which `byte` is the first byte.
    pub(super) fn write(&mut self, byte: u8) -> Option<Change> {
        let (mode, change) = match (self.mode, byte) {
            (Mode::Program, _) => (Mode::Array, Some(Change::Program)),
            (Mode::Erase, ERASE_CONFIRM) => (Mode::Array, Some(Change::Erase)),
            (Mode::Erase, _) => {
                self.status |= ERASE_FAILED | PROGRAM_FAILED;
                (Mode::Array, None)
            }
            (_, PROGRAM | PROGRAM_ALIAS) => (Mode::Program, None),
            (_, ERASE) => (Mode::Erase, None),
            (_, READ_STATUS) => (Mode::Status, None),
            (_, CLEAR_STATUS) => {
                self.status = 0;
                (Mode::Array, None)
            }
            // Back to the content: 0xff, or a command that this chip does not have.
            _ => (Mode::Array, Some(Change::Settle)),
        };
        self.mode = mode;
        change
    }

    /// A change has been carried out, or could not be.
    pub(super) fn done(&mut self, change: Change, succeeded: bool) {
        self.status |= READY;
        if !succeeded {
            self.status |= match change {
                Change::Program | Change::Settle => PROGRAM_FAILED,
                Change::Erase => ERASE_FAILED,
            };
        }
    }

    /// For a saved VM.
    pub(super) fn to_bytes(self) -> [u8; 2] {
        [self.mode as u8, self.status]
    }

    /// Of a saved VM; none for what cannot be.
    pub(super) fn from_bytes([mode, status]: [u8; 2]) -> Option<Self> {
        let mut modes = Mode::ALL.into_iter();
        let mode = modes.find(|known| *known as u8 == mode)?;
        Some(Self { mode, status })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn firmware_finds_a_flash_that_it_can_write() {
        // The probe of QemuFlash.c: 0x50 is no RAM, 0x70 shows a status of 0.
        let mut chip = Chip::default();
        assert_eq!(chip.write(0x50), None);
        assert_eq!(chip.status(), None);
        assert_eq!(chip.write(0x70), None);
        assert_eq!(chip.status(), Some(0));
        // The same byte again, and no error.
        assert_eq!(chip.write(0x10), None);
        assert_eq!(chip.write(0xaa), Some(Change::Program));
        chip.done(Change::Program, true);
        assert_eq!(chip.write(0x70), None);
        assert_eq!(chip.status(), Some(READY));
        assert_eq!(chip.write(0xff), Some(Change::Settle));
        assert_eq!(chip.status(), None);
    }

    #[test]
    fn an_erase_is_confirmed() {
        let mut chip = Chip::default();
        assert_eq!(chip.write(0x20), None);
        assert_eq!(chip.write(0xd0), Some(Change::Erase));
        chip.done(Change::Erase, false);
        assert_eq!(chip.write(0x20), None);
        assert_eq!(chip.write(0xff), None, "not confirmed");
        chip.write(0x70);
        assert_eq!(chip.status(), Some(READY | ERASE_FAILED | PROGRAM_FAILED));
        chip.write(0x50);
        chip.write(0x70);
        assert_eq!(chip.status(), Some(0));
    }

    proptest! {
        #[test]
        fn states_are_saved(bytes in any::<Vec<u8>>()) {
            let mut chip = Chip::default();
            for byte in bytes {
                chip.write(byte);
                prop_assert_eq!(Chip::from_bytes(chip.to_bytes()), Some(chip));
            }
        }
    }
}
