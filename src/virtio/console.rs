//! The console (virtio 1.2, 5.3): a line between the guest and a character back end of the host. It is a
//! console of the guest, or a port with a name, for programs.
//!
//! A named port keeps the specification's rules of ports: the driver is told of it by messages. It is port 1,
//! since port 0 is the console of drivers that know of no ports.

mod control;
mod line;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use control::MAX_NAME;
pub use line::{Attention, Line, Size, TO_GUEST, TO_HOST};

use super::device::{Kind, VirtioDevice, serve_in_order};
use super::queue::{Chain, Ring, RingError};
use crate::memory::Dma;
use crate::state::{Decoder, Encoder, StateError};
use crate::sys::{Bell, lock};
use crate::units::Gpa;
use control::{Control, MAX_LEN};

// Features (5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;
const F_EMERG_WRITE: u64 = 1 << 2;

/// Bytes of the configuration, and where in it the byte of an emergency is written (5.3.4).
const CONFIG_LEN: usize = 12;
const EMERG_WR: u64 = 8;

/// The number of a named port.
const PORT: u32 = 1;

/// As QEMU's.
const QUEUE_SIZE: u16 = 128;
const CONTROL_SIZE: u16 = 32;
const CONSOLE_QUEUES: &[u16] = &[QUEUE_SIZE; 2];
/// Port 0's, those of the messages, and port 1's (5.3.2).
const PORT_QUEUES: &[u16] = &[
    QUEUE_SIZE,
    QUEUE_SIZE,
    CONTROL_SIZE,
    CONTROL_SIZE,
    QUEUE_SIZE,
    QUEUE_SIZE,
];

/// What is copied at once, and the most that a pass sends.
const CHUNK: usize = 4096;
const PASS_BYTES: usize = 16 * CHUNK;

/// For how long a console's output waits for a reader that does not read. After that it is dropped until some
/// is read: Linux' console driver keeps its CPU busy while it waits (`__send_to_port`).
const PATIENCE: Duration = Duration::from_millis(50);

/// The device.
pub struct Console {
    line: Arc<Mutex<Line>>,
    bell: Bell,
    /// That of a port; without one it is a console.
    name: Option<String>,
    features: u64,
    control: Control,
    /// How many bytes of the request at the front of the transmit queue are sent.
    sent: u64,
    /// The size that the driver reads, and how often it has changed.
    size: Size,
    generation: u32,
    /// Since when output has waited for room.
    stalled: Option<Instant>,
    /// Output is dropped until the reader has read half of what is there.
    dropping: bool,
    chain: Chain,
    bytes: Box<[u8; CHUNK]>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Receive,
    Transmit,
    /// Messages to the driver.
    ControlReceive,
    ControlTransmit,
    /// That of a port which is not there.
    Unused,
}

/// What becomes of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// So many bytes have room.
    Fits(usize),
    /// It waits for room.
    Waits,
    /// It is lost.
    Lost,
}

impl Console {
    /// At an end of `line`; with a `name`, a port of that name.
    pub fn new(line: Arc<Mutex<Line>>, name: Option<String>) -> Self {
        let bell = Bell::Event(Arc::clone(lock(&line).bell()));
        Self {
            line,
            bell,
            name,
            features: 0,
            control: Control::default(),
            sent: 0,
            size: Size::default(),
            generation: 0,
            stalled: None,
            dropping: false,
            chain: Chain::default(),
            bytes: Box::new([0; CHUNK]),
        }
    }

    fn queue(&self, index: usize) -> Queue {
        match (index, &self.name) {
            (0, None) | (4, Some(_)) => Queue::Receive,
            (1, None) | (5, Some(_)) => Queue::Transmit,
            (2, _) => Queue::ControlReceive,
            (3, _) => Queue::ControlTransmit,
            _ => Queue::Unused,
        }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..2].copy_from_slice(&self.size.columns.to_le_bytes());
        config[2..4].copy_from_slice(&self.size.rows.to_le_bytes());
        let ports = PORT + 1;
        config[4..8].copy_from_slice(&ports.to_le_bytes());
        config
    }

    fn set_size(&mut self, size: Size) {
        if self.size != size {
            self.size = size;
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Gives input to the driver.
    fn receive(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        for _ in 0..ring.size() {
            let count = lock(&self.line).peek_input(&mut self.bytes[..]);
            if count == 0 {
                return Ok(false);
            }
            if !ring.pop(dma, &mut self.chain)? {
                if ring.rearm(dma)? {
                    continue;
                }
                return Ok(false);
            }
            let given = write(&self.chain, dma, &self.bytes[..count])
                .and_then(|given| ring.push(dma, self.chain.head(), given).map(|()| given));
            match given {
                Ok(given) => {
                    lock(&self.line).remove_input(usize::try_from(given).unwrap_or(count));
                }
                Err(error) => {
                    ring.undo_pop(self.chain.head());
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// Sends the driver's output.
    fn transmit(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let mut left = ring.size();
        let mut bytes = PASS_BYTES;
        while left > 0 && bytes > 0 {
            if !ring.pop(dma, &mut self.chain)? {
                if ring.rearm(dma)? {
                    continue;
                }
                self.stalled = None;
                return Ok(false);
            }
            let sent = self.send(dma, &mut bytes);
            let pushed = match sent {
                Ok(true) => ring.push(dma, self.chain.head(), 0),
                Ok(false) => {
                    ring.undo_pop(self.chain.head());
                    // What waits for room is sent when the bell rings.
                    return Ok(bytes == 0);
                }
                Err(error) => Err(error),
            };
            if let Err(error) = pushed {
                ring.undo_pop(self.chain.head());
                return Err(error);
            }
            self.sent = 0;
            left -= 1;
        }
        Ok(true)
    }

    /// Sends what is left of the request in `self.chain`, and at most `budget` bytes. Whether it is done.
    fn send(&mut self, dma: &Dma, budget: &mut usize) -> Result<bool, RingError> {
        let mut before = 0_u64;
        for segment in self.chain.readable() {
            let end = before + u64::from(segment.len);
            while self.sent < end {
                let output = output(
                    &mut lock(&self.line),
                    self.name.is_none(),
                    &mut self.stalled,
                    &mut self.dropping,
                );
                let most = match output {
                    Output::Fits(room) => room.min(CHUNK).min(*budget),
                    Output::Waits => return Ok(false),
                    Output::Lost => {
                        self.sent = end;
                        continue;
                    }
                };
                if most == 0 {
                    return Ok(false);
                }
                // It is at least `before`: the segments before are done.
                let at = self.sent.max(before);
                let count = usize::try_from(end - at).map_or(most, |count| count.min(most));
                let bytes = &mut self.bytes[..count];
                dma.read(Gpa(segment.gpa.0 + (at - before)), bytes)?;
                lock(&self.line).output(bytes);
                self.sent = at + count as u64;
                *budget -= count;
            }
            before = end;
        }
        Ok(true)
    }

    /// Tells the driver what it does not know yet.
    fn tell(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let name = self.name.as_deref().unwrap_or_default();
        for _ in 0..ring.size() {
            let connected = lock(&self.line).is_connected();
            let Some(message) = self.control.next(connected) else {
                return Ok(false);
            };
            if !ring.pop(dma, &mut self.chain)? {
                if ring.rearm(dma)? {
                    continue;
                }
                return Ok(false);
            }
            let mut data = [0; MAX_LEN];
            let len = message.write(name, &mut data);
            let told = write(&self.chain, dma, &data[..len]).and_then(|given| {
                if usize::try_from(given) != Ok(len) {
                    return Err(RingError::Request {
                        what: "a buffer for a message about a port is too short",
                    });
                }
                ring.push(dma, self.chain.head(), given)
            });
            if let Err(error) = told {
                ring.undo_pop(self.chain.head());
                return Err(error);
            }
            self.control.sent(message);
        }
        Ok(true)
    }

    /// Reads the driver's messages.
    fn listen(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let Self { chain, control, .. } = self;
        let before = *control;
        let more = serve_in_order(ring, dma, chain, |chain| {
            let mut bytes = [0; control::LEN];
            let len = chain.read(dma, 0, &mut bytes)?;
            control.received(&bytes[..len]);
            Ok(0)
        });
        let changed = *control != before;
        let mut line = lock(&self.line);
        line.set_open(self.control.is_open());
        let tells = changed && self.control.next(line.is_connected()).is_some();
        Ok(more? || tells)
    }
}

/// What becomes of output now. Only a `console` loses some.
fn output(
    line: &mut Line,
    console: bool,
    stalled: &mut Option<Instant>,
    dropping: &mut bool,
) -> Output {
    if *dropping && line.output_len() <= TO_HOST / 2 {
        *dropping = false;
    }
    match line.output_room() {
        _ if *dropping => Output::Lost,
        0 if console => {
            let since = *stalled.get_or_insert_with(Instant::now);
            *dropping = since.elapsed() >= PATIENCE;
            if *dropping {
                *stalled = None;
                return Output::Lost;
            }
            Output::Waits
        }
        0 => Output::Waits,
        room => {
            *stalled = None;
            Output::Fits(room)
        }
    }
}

/// Writes as much of `data`, no more than [`CHUNK`], as there is room for; how many bytes.
fn write(chain: &Chain, dma: &Dma, data: &[u8]) -> Result<u32, RingError> {
    let written = chain.write(dma, data)?;
    Ok(u32::try_from(written).unwrap_or(0))
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        F_EMERG_WRITE
            | match self.name {
                Some(_) => F_MULTIPORT,
                None => F_SIZE,
            }
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        // A port is opened by a message.
        lock(&self.line).set_open(self.name.is_none());
    }

    fn queues(&self) -> &[u16] {
        match self.name {
            Some(_) => PORT_QUEUES,
            None => CONSOLE_QUEUES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::device::read_config(&self.config(), offset, data);
    }

    /// An emergency: a byte that is to be seen whatever state the driver is in.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERG_WR, Some(byte)) = (offset, data.first()) {
            lock(&self.line).output(&[*byte]);
        }
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn bell(&self) -> Option<Bell> {
        Some(self.bell.clone())
    }

    fn complete(&mut self, _rings: &mut [Option<Ring>], _dma: &Dma) -> Result<(), RingError> {
        let size = lock(&self.line).size();
        self.set_size(size);
        Ok(())
    }

    fn serve(&mut self, index: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        match self.queue(index) {
            Queue::Receive => self.receive(ring, dma),
            Queue::Transmit => self.transmit(ring, dma),
            // Without the feature a driver has no such queues.
            Queue::ControlReceive if self.features & F_MULTIPORT != 0 => self.tell(ring, dma),
            Queue::ControlTransmit if self.features & F_MULTIPORT != 0 => self.listen(ring, dma),
            // What is sent to no port is lost.
            Queue::Unused if index == 1 => serve_in_order(ring, dma, &mut self.chain, |_| Ok(0)),
            Queue::ControlReceive | Queue::ControlTransmit | Queue::Unused => Ok(false),
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        self.stalled.map(|since| since + PATIENCE)
    }

    fn reset(&mut self) {
        self.features = 0;
        self.control = Control::default();
        self.sent = 0;
        self.stalled = None;
        self.dropping = false;
        lock(&self.line).set_open(false);
    }

    // Output that was taken is not part of it: the process that has taken it delivers it.
    fn save(&self, to: &mut Encoder) {
        to.u64(self.sent);
        to.u16(self.size.columns);
        to.u16(self.size.rows);
        self.control.save(to);
        to.bytes(&lock(&self.line).pending_input());
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        const INPUT: &str = "input on its way";
        self.sent = from.u64("bytes sent")?;
        let columns = from.u16("columns")?;
        let rows = from.u16("rows")?;
        // What the driver knows; the terminal here may have another size.
        self.set_size(Size { columns, rows });
        self.control = Control::load(from)?;
        let input = from.bytes(INPUT)?;
        let mut line = lock(&self.line);
        if !line.set_pending_input(input) {
            return Err(from.invalid(INPUT, format!("{} bytes", input.len())));
        }
        if self.name.is_some() {
            line.set_open(self.control.is_open());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
