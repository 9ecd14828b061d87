//! The console's escape keys: Ctrl-A and one more, as in QEMU's `-serial mon:stdio`.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// The output of Ctrl-A h. Lines end as a raw terminal requires.
pub(super) const HELP: &str = "\r\n\
    C-a h    this help\r\n\
    C-a x    end the VM\r\n\
    C-a b    send break (magic SysRq)\r\n\
    C-a C-a  send C-a\r\n";

/// The meaning of one typed byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// It is sent to the guest.
    Guest(u8),
    /// The first byte of an escape sequence, or an unknown second byte: it is dropped.
    Swallowed,
    /// End the VM.
    Quit,
    /// Send a break.
    Break,
    /// Show the help.
    Help,
}

/// Records whether the last byte was Ctrl-A.
#[derive(Debug, Default)]
pub(super) struct EscapeKeys {
    armed: bool,
}

impl EscapeKeys {
    pub(super) fn key(&mut self, byte: u8) -> Key {
        if !self.armed {
            if byte == ESCAPE {
                self.armed = true;
                return Key::Swallowed;
            }
            return Key::Guest(byte);
        }
        self.armed = false;
        match byte {
            ESCAPE => Key::Guest(ESCAPE),
            b'x' => Key::Quit,
            b'b' => Key::Break,
            b'h' | b'?' => Key::Help,
            _ => Key::Swallowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(input: &[u8]) -> Vec<Key> {
        let mut keys = EscapeKeys::default();
        input.iter().map(|b| keys.key(*b)).collect()
    }

    #[test]
    fn keys_mean_what_qemu_users_expect() {
        use Key::{Break, Guest, Help, Quit, Swallowed};
        for (input, want) in [
            (&b"ab"[..], vec![Guest(b'a'), Guest(b'b')]),
            (b"x", vec![Guest(b'x')]),
            (b"\x01x", vec![Swallowed, Quit]),
            (b"\x01\x01x", vec![Swallowed, Guest(1), Guest(b'x')]),
            (b"\x01b", vec![Swallowed, Break]),
            (b"\x01h", vec![Swallowed, Help]),
            (b"\x01?", vec![Swallowed, Help]),
            (b"\x01zx", vec![Swallowed, Swallowed, Guest(b'x')]),
        ] {
            assert_eq!(keys(input), want, "{input:?}");
        }
    }
}
