//! Devices for tests and firmware debugging, present only on request: the debug-exit port and the debug
//! console.

use super::char::{CharDevice, TxQueue};
use super::io_thread::Waker;
use crate::bus::{LockedDevice, Region};
use crate::life::{GuestEvent, GuestEvents};
use crate::state::{Decoder, Encoder, StateError};

/// The value that the debug console's port reads as, by which firmware detects it.
const DEBUGCON_SIGNATURE: u8 = 0xe9;

/// A write ends hypernest with that exit code.
#[derive(Debug)]
pub struct DebugExit {
    events: GuestEvents,
}

impl DebugExit {
    /// Reports the exit to `events`.
    pub fn new(events: GuestEvents) -> Self {
        Self { events }
    }
}

impl LockedDevice for DebugExit {
    fn name(&self) -> &str {
        "debug-exit"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if offset == 0
            && let Some(&code) = data.first()
        {
            self.events.report(GuestEvent::DebugExit { code });
        }
    }

    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

/// Every byte written is output. If its reader is slow and the queue full, bytes are lost: the port has no
/// way to report "busy".
#[derive(Debug)]
pub struct Debugcon {
    queue: TxQueue,
}

impl Debugcon {
    /// Output wakes `waker`; without one it is dropped.
    pub fn new(waker: Option<Waker>) -> Self {
        Self {
            queue: TxQueue::new(waker),
        }
    }
}

impl LockedDevice for Debugcon {
    fn name(&self) -> &str {
        "debugcon"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        // In every byte: guests detect by it that wide writes work as well.
        if offset == 0 {
            data.fill(DEBUGCON_SIGNATURE);
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if offset == 0 {
            for byte in data {
                self.queue.push(*byte);
            }
        }
    }

    // Queued output belongs to the saved VM, which delivers it.
    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

impl CharDevice for Debugcon {
    /// Accepts no input: the port cannot receive.
    fn input_room(&mut self) -> usize {
        usize::MAX
    }

    fn input(&mut self, _bytes: &[u8]) {}

    fn input_break(&mut self) {}

    fn take_output(&mut self, buf: &mut [u8]) -> usize {
        self.queue.take(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::io_thread::IoThread;
    use crate::devices::testing::{inb, inl, outb, outl};
    use crate::life::channel;
    use hypernest_nested::probe::WIDE_CONSOLE;

    #[test]
    fn debug_exit_carries_the_byte() {
        let (guest, _, events) = channel();
        let mut device = DebugExit::new(guest);
        for (port, value, code) in [(0, 3, Some(3)), (0, 0x1234_5607, Some(7)), (1, 9, None)] {
            outl(&mut device, port, value);
            let reported = code.map(|code| GuestEvent::DebugExit { code });
            assert_eq!(events.take_guest_events().pop(), reported);
        }
    }

    #[test]
    fn debugcon_shows_its_signature_and_takes_bytes_and_strings() {
        let io = IoThread::new(channel().1).unwrap();
        let mut device = Debugcon::new(Some(io.waker()));
        assert_eq!(inb(&mut device, 0), 0xe9);
        assert_eq!(inl(&mut device, 0), WIDE_CONSOLE);
        outb(&mut device, 0, b'a');
        device.write(Region::ONLY, 0, b"bcd");
        let mut buf = [0; 8];
        assert_eq!(device.take_output(&mut buf), 4);
        assert_eq!(&buf[..4], b"abcd");
    }

    #[test]
    fn debugcon_without_a_reader_stays_within_its_queue() {
        let io = IoThread::new(channel().1).unwrap();
        let mut device = Debugcon::new(Some(io.waker()));
        for _ in 0..TxQueue::CAPACITY + 5 {
            outb(&mut device, 0, b'x');
        }
        assert_eq!(device.queue.lost(), 5);
        let mut device = Debugcon::new(None);
        outb(&mut device, 0, b'x');
        assert_eq!(device.take_output(&mut [0; 8]), 0);
    }
}
