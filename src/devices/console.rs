//! Consoles and ports: a character back end of the host behind a controller.

use std::sync::{Arc, Mutex};

use super::char::{CharBackend, CharDevice};
use super::io_thread::Waker;
use super::table::{BuildError, DeviceConfig, DeviceKey, PACKED, Site, Takes};
use crate::pci::Slot;
use crate::sys::eventfd;
use crate::virtio::console::{Attention, Console, Line, Size};

/// The key with the back end. Only consoles have it.
pub const CONSOLE_KEY: &str = "console";
const NAME: &str = "name";

/// The keys of a console, beside those of its controller.
pub static VIRTIO_CONSOLE_KEYS: &[DeviceKey] = &[
    DeviceKey {
        takes: Takes::Backend,
        about: "what it is connected to, as COM1: `none`, `stdio`, `file:PATH`, `pty` or `socket:PATH`",
        default: "`none`",
        local: true,
        ..DeviceKey::of(CONSOLE_KEY)
    },
    DeviceKey {
        about: "makes it a port of this name, for programs of the guest, instead of a console: in Linux \
                `/dev/virtio-ports/NAME`",
        default: "none: a console, in Linux `/dev/hvc0`",
        ..DeviceKey::of(NAME)
    },
    PACKED,
];

/// Disconnects a console, and does nothing to other devices.
pub fn without_backend(config: &mut DeviceConfig) {
    config.values.remove(CONSOLE_KEY);
}

/// Makes a console.
///
/// # Errors
/// If its back end cannot be opened, or the host has no descriptors left; or see [`Site::virtio`].
pub fn virtio_console(config: &DeviceConfig, site: &Site<'_>) -> Result<Slot, BuildError> {
    let backend = config.backend(CONSOLE_KEY).unwrap_or(CharBackend::None);
    let host = (site.waker)(&backend).map(|waker| Box::new(waker) as Box<dyn Attention>);
    let bell = Arc::new(eventfd().map_err(BuildError::Line)?);
    let line = Arc::new(Mutex::new(Line::new(host, bell)));
    (site.connect)(&backend, Arc::clone(&line) as _)?;
    let name = config.text(NAME).map(str::to_owned);
    site.virtio(config, Box::new(Console::new(line, name)))
}

impl Attention for Waker {
    fn output(&self) {
        self.wake_for_output();
    }

    fn room(&self) {
        self.wake();
    }
}

impl CharDevice for Line {
    fn input_room(&mut self) -> usize {
        Self::input_room(self)
    }

    fn input(&mut self, bytes: &[u8]) {
        Self::input(self, bytes);
    }

    /// There is none on a virtio console.
    fn input_break(&mut self) {}

    fn take_output(&mut self, buf: &mut [u8]) -> usize {
        Self::take_output(self, buf)
    }

    fn connected(&mut self, connected: bool) {
        self.connect(connected);
    }

    fn resized(&mut self, columns: u16, rows: u16) {
        self.resize(Size { columns, rows });
    }
}
