//! The debug console of the guest programs: parses their probe stream as it arrives.

use hypernest::bus::{LockedDevice, Region};
use hypernest::state::{Decoder, Encoder, StateError};
use hypernest_nested::probe::{Item, Malformed, WIDE_CONSOLE, next_item};

/// The receiver of the stream's items.
pub(crate) trait Sink: Send {
    /// Receives an item as soon as its last byte has arrived.
    fn item(&mut self, item: Item<'_>);

    /// The stream is malformed; no item follows.
    fn malformed(&mut self, malformed: Malformed);
}

/// The console. A 32-bit access writes four bytes.
#[derive(Debug)]
pub(crate) struct ProbeConsole<S> {
    /// The receiver of the items.
    pub(crate) sink: S,
    pending: Vec<u8>,
    /// Maximum number of kept bytes of an incomplete item; further bytes are dropped.
    max_pending: usize,
    malformed: bool,
}

impl<S: Sink> ProbeConsole<S> {
    /// A console whose longest item has `max_pending` bytes.
    pub(crate) fn new(sink: S, max_pending: usize) -> Self {
        Self {
            sink,
            pending: Vec::new(),
            max_pending,
            malformed: false,
        }
    }

    /// Takes the first complete item and returns its length. `None` if there is none, or if it is malformed.
    fn take(&mut self) -> Option<usize> {
        match next_item(&self.pending) {
            Ok(Some((item, len))) => {
                self.sink.item(item);
                Some(len)
            }
            Ok(None) => None,
            Err(malformed) => {
                self.sink.malformed(malformed);
                self.malformed = true;
                self.pending.clear();
                None
            }
        }
    }
}

impl<S: Sink> LockedDevice for ProbeConsole<S> {
    fn name(&self) -> &str {
        "probe-console"
    }

    fn reset(&mut self) {}

    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        for (to, byte) in data.iter_mut().zip(WIDE_CONSOLE.to_le_bytes()) {
            *to = byte;
        }
    }

    fn write(&mut self, _region: Region, _offset: u64, data: &[u8]) {
        if self.malformed || self.pending.len() > self.max_pending {
            return;
        }
        self.pending.extend(data);
        while let Some(len) = self.take() {
            self.pending.drain(..len);
        }
    }

    fn save(&self, _to: &mut Encoder) {}

    fn load(&mut self, _from: &mut Decoder<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Lines {
        lines: Vec<Vec<u8>>,
        malformed: Option<Malformed>,
    }

    impl Sink for Lines {
        fn item(&mut self, item: Item<'_>) {
            if let Item::Line(line) = item {
                self.lines.push(line.to_vec());
            }
        }

        fn malformed(&mut self, malformed: Malformed) {
            self.malformed = Some(malformed);
        }
    }

    /// Writes four bytes at a time, as a guest does.
    fn write(console: &mut ProbeConsole<Lines>, bytes: &[u8]) {
        for piece in bytes.chunks(4) {
            console.write(Region::ONLY, 0, piece);
        }
    }

    #[test]
    fn a_malformed_stream_is_reported_once_and_not_kept() {
        let mut console = ProbeConsole::new(Lines::default(), 1 << 20);
        write(&mut console, b"\0hello\n");
        write(&mut console, &[0xff, 0, 0, 0]);
        write(&mut console, &[b'x'; 1000]);
        assert_eq!(console.sink.lines, [b"hello"]);
        assert_eq!(console.sink.malformed, Some(Malformed::Magic));
        assert!(console.pending.is_empty());
    }

    #[test]
    fn an_item_without_an_end_takes_bounded_memory() {
        let mut console = ProbeConsole::new(Lines::default(), 1000);
        for _ in 0..10_000 {
            write(&mut console, b"xxxx");
        }
        assert!(console.pending.len() <= 1004, "{}", console.pending.len());
    }

    #[test]
    fn a_read_announces_that_the_console_is_wide() {
        let mut console = ProbeConsole::new(Lines::default(), 1000);
        let mut wide = [0; 4];
        console.read(Region::ONLY, 0, &mut wide);
        assert_eq!(u32::from_le_bytes(wide), WIDE_CONSOLE);
    }
}
