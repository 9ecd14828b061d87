//! What the tests of PCI functions share: a recorder of messages, and a driver's accesses to one function.

use std::sync::{Arc, Mutex};

use super::function::Requester;
use super::msix::Messages;
use super::{ConfigSpace, Slot};
use crate::bus::{Bus, lock};
use crate::devices::testing::LineRecorder;
use crate::irq::{Msi, SharedLine};
use crate::memory::{Dma, GuestRam};

/// The messages that were sent, and where vectors lead.
#[derive(Clone, Debug, Default)]
pub(crate) struct MessageRecorder(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    routes: Vec<Option<Msi>>,
    sent: Vec<u32>,
}

impl MessageRecorder {
    /// The data of the messages since the last call.
    pub(crate) fn take(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.0).sent)
    }
}

impl Messages for MessageRecorder {
    fn route(&mut self, vector: usize, message: Option<Msi>) {
        let mut recorded = lock(&self.0);
        let len = recorded.routes.len().max(vector + 1);
        recorded.routes.resize(len, None);
        recorded.routes[vector] = message;
    }

    fn signal(&mut self, vector: usize) {
        let mut recorded = lock(&self.0);
        let message = recorded.routes[vector].expect("a message without a route");
        recorded.sent.push(message.data);
    }
}

/// A function with everything around it.
pub(crate) struct TestBus {
    pub(crate) slot: Slot,
    pub(crate) mmio: Bus,
    pub(crate) messages: MessageRecorder,
    pub(crate) line: Arc<LineRecorder>,
}

impl TestBus {
    /// With the function that `make` puts into its slot; it has `vectors`, and reaches `ram`.
    pub(crate) fn new(ram: &GuestRam, vectors: u16, make: impl FnOnce(Requester) -> Slot) -> Self {
        let messages = MessageRecorder::default();
        let (line, irq) = LineRecorder::line();
        let holder = SharedLine::new(irq).holder();
        let dma = Dma::new(ram.clone());
        let requester = Requester::with_messages(dma, vectors, Box::new(messages.clone()), holder);
        let slot = make(requester);
        let (ports, mmio) = (Bus::ports(), Bus::mmio());
        slot.connect(&ports, &mmio);
        Self {
            slot,
            mmio,
            messages,
            line,
        }
    }

    /// Reads `len` bytes of configuration space at `offset`, within one register.
    pub(crate) fn config(&self, offset: u16, len: usize) -> u32 {
        let register = self.slot.read_config(offset & !3) >> (8 * (offset & 3));
        let mask = u32::MAX >> (32 - 8 * len);
        register & mask
    }

    pub(crate) fn set_config(&self, offset: u16, len: usize, value: u32) {
        let shift = 8 * (offset & 3);
        let mask = u32::MAX >> (32 - 8 * len);
        self.slot
            .write_config(offset & !3, value << shift, mask << shift);
    }

    /// Where the capabilities with `id` are.
    pub(crate) fn capabilities(&self, id: u32) -> Vec<u16> {
        let mut found = Vec::new();
        let mut at = self.config(0x34, 1);
        while at != 0 && found.len() < 48 {
            let offset = u16::try_from(at).unwrap();
            if self.config(offset, 1) == id {
                found.push(offset);
            }
            at = self.config(offset + 1, 1);
        }
        found
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(at, &mut data);
        data
    }
}
