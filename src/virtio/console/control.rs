//! What driver and device tell each other of a named port (virtio 1.2, 5.3.6.2). The messages that are to be
//! sent are a few bits, however many the driver asks for.

use super::PORT;
use crate::state::{Decoder, Encoder, StateError};

/// Bytes of `struct virtio_console_control`: the port's number, the event, and a value.
pub(super) const LEN: usize = 8;

/// The longest message: the port's name follows.
pub(super) const MAX_LEN: usize = LEN + MAX_NAME;

/// The longest name of a port.
pub const MAX_NAME: usize = 64;

// Events.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The state of a named port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    /// The driver is to be told that there is the port.
    add: bool,
    /// It is to be told the port's name.
    name: bool,
    /// The driver has the port.
    ready: bool,
    /// A program of the guest has it open.
    open: bool,
    /// The driver was told that the host's end is connected.
    told_connected: bool,
}

/// A message to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Add,
    Name,
    Connected(bool),
}

impl Control {
    /// A program of the guest has the port open.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// The driver has said something, of which these are the first bytes; what is not known is ignored.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk::<LEN>() else {
            return;
        };
        let id = u32::from_le_bytes([a, b, c, d]);
        let event = u16::from_le_bytes([e, f]);
        let yes = u16::from_le_bytes([g, h]) == 1;
        match event {
            DEVICE_READY if yes => {
                *self = Self {
                    add: true,
                    ..Self::default()
                }
            }
            PORT_READY if id == PORT && yes => {
                self.ready = true;
                self.name = true;
                self.told_connected = false;
            }
            PORT_OPEN if id == PORT && self.ready => self.open = yes,
            _ => {}
        }
    }

    /// The next message, if there is one.
    pub(super) fn next(&self, connected: bool) -> Option<Message> {
        if self.add {
            Some(Message::Add)
        } else if self.name {
            Some(Message::Name)
        } else if self.ready && self.told_connected != connected {
            Some(Message::Connected(connected))
        } else {
            None
        }
    }

    /// The driver has this message.
    pub(super) fn sent(&mut self, message: Message) {
        match message {
            Message::Add => self.add = false,
            Message::Name => self.name = false,
            Message::Connected(connected) => self.told_connected = connected,
        }
    }

    pub(super) fn save(&self, to: &mut Encoder) {
        for bit in [
            self.add,
            self.name,
            self.ready,
            self.open,
            self.told_connected,
        ] {
            to.bool(bit);
        }
    }

    pub(super) fn load(from: &mut Decoder<'_>) -> Result<Self, StateError> {
        Ok(Self {
            add: from.bool("port to be added")?,
            name: from.bool("port to be named")?,
            ready: from.bool("port ready")?,
            open: from.bool("port open")?,
            told_connected: from.bool("host connected")?,
        })
    }
}

impl Message {
    /// Writes it to `data`; how many bytes it has.
    pub(super) fn write(self, name: &str, data: &mut [u8; MAX_LEN]) -> usize {
        let (event, value) = match self {
            Self::Add => (PORT_ADD, 1_u16),
            Self::Name => (PORT_NAME, 1),
            Self::Connected(connected) => (PORT_OPEN, connected.into()),
        };
        data[..4].copy_from_slice(&PORT.to_le_bytes());
        data[4..6].copy_from_slice(&event.to_le_bytes());
        data[6..LEN].copy_from_slice(&value.to_le_bytes());
        let name = match self {
            // Without an end of its own: the message's length says it.
            Self::Name => &name.as_bytes()[..name.len().min(MAX_NAME)],
            Self::Add | Self::Connected(_) => &[],
        };
        data[LEN..][..name.len()].copy_from_slice(name);
        LEN + name.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(id: u32, event: u16, value: u16) -> Vec<u8> {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }

    /// All messages that are to be sent, with the port's name "abc".
    fn sends(control: &mut Control, connected: bool) -> Vec<Vec<u8>> {
        let next = || {
            let message = control.next(connected)?;
            control.sent(message);
            let mut data = [0xee; MAX_LEN];
            let len = message.write("abc", &mut data);
            Some(data[..len].to_vec())
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_port_is_added_named_and_opened() {
        let mut control = Control::default();
        assert_eq!(control.next(true), None);
        control.received(&says(u32::MAX, DEVICE_READY, 1));
        assert_eq!(sends(&mut control, true), [says(PORT, PORT_ADD, 1)]);
        control.received(&says(PORT, PORT_READY, 1));
        let name = [says(PORT, PORT_NAME, 1), b"abc".to_vec()].concat();
        let open = says(PORT, PORT_OPEN, 1);
        assert_eq!(sends(&mut control, true), [name, open]);
        assert!(!control.is_open());
        control.received(&says(PORT, PORT_OPEN, 1));
        assert!(control.is_open());
        assert_eq!(sends(&mut control, false), [says(PORT, PORT_OPEN, 0)]);
        control.received(&says(PORT, PORT_OPEN, 0));
        assert!(!control.is_open());
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut control = Control::default();
        for bytes in [
            says(PORT, PORT_OPEN, 1),
            says(0, PORT_READY, 1),
            says(PORT, PORT_READY, 0),
            says(0, DEVICE_READY, 0),
            says(PORT, 0xffff, 1),
            says(PORT, PORT_READY, 1)[..7].to_vec(),
            Vec::new(),
        ] {
            control.received(&bytes);
            assert_eq!(control, Control::default(), "{bytes:?}");
        }
    }

    #[test]
    fn a_driver_that_begins_again_is_told_all_again() {
        let mut control = Control::default();
        for _ in 0..2 {
            control.received(&says(0, DEVICE_READY, 1));
            assert!(!control.is_open());
            control.received(&says(PORT, PORT_READY, 1));
            assert_eq!(sends(&mut control, true).len(), 3);
            control.received(&says(PORT, PORT_OPEN, 1));
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        let mut data = [0; MAX_LEN];
        let len = Message::Name.write(&"x".repeat(100), &mut data);
        assert_eq!((len, data[MAX_LEN - 1]), (MAX_LEN, b'x'));
    }
}
