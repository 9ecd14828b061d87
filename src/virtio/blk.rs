//! The block device (virtio 1.2, 5.2): requests of its queues become operations on a disk.
//!
//! A request that was taken from a ring has a slot until it is returned. It is *busy* in the disk, then
//! *done* until the function may write to the ring, or *waits*: for a user's resume after an error, or for
//! the rings after a restore. A saved device has no busy requests; it takes the others from their rings
//! again.

mod cache;
mod config;
mod control;
mod limiter;
mod request;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::device::{Kind, VirtioDevice, read_config};
use super::queue::{Chain, Ring, RingError};
use crate::block::throttle::Limits;
use crate::block::{Backend, Completion, DiskCounters, Info, Operation, Request, SECTOR, Syncer};
use crate::bus::{DeviceRequest, Gauge, RequestError};
use crate::error::chain;
use crate::life::{GuestEvent, GuestEvents};
use crate::memory::{Dma, Readable, Writable};
use crate::state::{Decoder, Encoder, StateError};
use crate::sys::Bell;
use cache::CacheMode;
use config::{MAX_SECTORS, MAX_ZEROED, QUEUE_SIZE};
use limiter::Limiter;
use request::{Command, Parsed, Range};

pub use config::Topology;

/// The most queues that a device may have.
pub const MAX_QUEUES: u16 = 64;
/// How many requests a device has under way; others stay in their rings.
const SLOTS: usize = 256;
/// Bytes of a serial number (5.2.6).
pub const SERIAL_LEN: usize = 20;

/// The outcome of a request, as its last byte tells (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What follows if the disk refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest gets an error.
    Report,
    /// The VM is paused; the request is made again when it is resumed.
    Pause,
    /// As `Pause` if the host has no space left, as `Report` otherwise.
    PauseIfFull,
}

impl OnError {
    fn pauses(self, error: &io::Error) -> bool {
        match self {
            Self::Report => false,
            Self::Pause => true,
            Self::PauseIfFull => matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
        }
    }
}

/// What a device is made of.
#[expect(missing_debug_implementations, reason = "a backend has none")]
pub struct BlkOptions {
    /// The disk.
    pub backend: Box<dyn Backend>,
    /// What the device is called in messages.
    pub id: String,
    /// What the guest reads as its serial number.
    pub serial: [u8; SERIAL_LEN],
    /// At most [`MAX_QUEUES`].
    pub queues: u16,
    /// What the driver is told of the disk's blocks.
    pub topology: Topology,
    /// Whether a write to a reset device is durable when the driver has flushed, and not when it ends; None:
    /// as the disk does.
    pub write_cache: Option<bool>,
    /// What follows an error.
    pub on_error: OnError,
    /// Receives that an error pauses the VM.
    pub events: GuestEvents,
    /// How much the guest may ask of it.
    pub limits: Limits,
}

/// A request that was taken from a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    state: SlotState,
    queue: usize,
    head: u16,
    parsed: Parsed,
    /// How many bytes of the disk it is about.
    bytes: u64,
    /// When it was given to the disk.
    begun: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SlotState {
    #[default]
    Free,
    Busy,
    /// The write is done, and the flush that makes it durable is under way.
    Flushing,
    Done(Status),
    Waits,
}

/// The device.
pub struct Blk {
    backend: Box<dyn Backend>,
    info: Info,
    /// Of the configuration.
    generation: u32,
    counters: Arc<DiskCounters>,
    id: String,
    serial: [u8; SERIAL_LEN],
    queues: Vec<u16>,
    on_error: OnError,
    events: GuestEvents,
    topology: Topology,
    cache: CacheMode,
    slots: Vec<Slot>,
    free: Vec<usize>,
    done: Vec<usize>,
    waiting: Vec<usize>,
    busy: usize,
    /// The image is this VM's alone; otherwise nothing is served.
    acquired: bool,
    /// An error has paused the VM: what waits is not started before it is resumed.
    paused: bool,
    limiter: Limiter,
    chain: Chain,
    /// Buffers without ranges, for the next requests.
    to: Vec<Writable>,
    from: Vec<Readable>,
}

impl fmt::Debug for Blk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blk")
            .field("id", &self.id)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// What a request becomes.
enum Begun {
    Operation(Operation),
    Ended(Status),
}

impl Blk {
    /// Of `options`.
    pub fn new(options: BlkOptions) -> Self {
        let info = options.backend.info();
        let list = || Vec::with_capacity(SLOTS);
        let mut blk = Self {
            backend: options.backend,
            info,
            generation: 0,
            counters: Arc::default(),
            id: options.id,
            serial: options.serial,
            queues: vec![QUEUE_SIZE; options.queues.clamp(1, MAX_QUEUES).into()],
            on_error: options.on_error,
            events: options.events,
            topology: options.topology,
            cache: CacheMode::new(options.write_cache.unwrap_or(!info.write_through)),
            slots: vec![Slot::default(); SLOTS],
            free: (0..SLOTS).rev().collect(),
            done: list(),
            waiting: list(),
            busy: 0,
            acquired: false,
            paused: false,
            limiter: Limiter::default(),
            chain: Chain::default(),
            to: Vec::with_capacity(SLOTS),
            from: Vec::with_capacity(SLOTS),
        };
        blk.read_info();
        blk.limit(options.limits);
        blk
    }

    /// The disk may have changed.
    fn read_info(&mut self) {
        self.info = self.backend.info();
        self.counters.set_size(self.info.size);
    }

    /// Begins the request in `self.chain` of ring `queue`, in `slot`, which is free. After an error it is not
    /// taken.
    fn begin(&mut self, slot: usize, queue: usize, dma: &Dma) -> Result<(), RingError> {
        let parsed = Parsed::new(&self.chain, dma)?;
        let begun = self.operation(&parsed, dma)?;
        let mut taken = Slot {
            queue,
            head: self.chain.head(),
            parsed,
            ..Slot::default()
        };
        match begun {
            Begun::Operation(operation) => {
                taken.state = SlotState::Busy;
                taken.bytes = operation.bytes();
                taken.begun = Some(Instant::now());
                self.slots[slot] = taken;
                self.submit(slot, operation);
            }
            Begun::Ended(status) => {
                taken.state = SlotState::Done(status);
                self.slots[slot] = taken;
                self.done.push(slot);
                if status != Status::Ok {
                    self.counters.invalid();
                }
            }
        }
        Ok(())
    }

    fn submit(&mut self, tag: usize, operation: Operation) {
        self.busy += 1;
        self.counters.set_in_flight(self.busy);
        self.backend.submit(Request { tag, operation });
    }

    fn operation(&mut self, parsed: &Parsed, dma: &Dma) -> Result<Begun, RingError> {
        if parsed.command.writes() && self.info.read_only {
            return Ok(Begun::Ended(Status::IoError));
        }
        Ok(match parsed.command {
            Command::Read | Command::Write => self.transfer(parsed, dma)?,
            Command::Flush => Begun::Operation(Operation::Flush),
            Command::GetId => Begun::Ended(self.identify(parsed, dma)?),
            Command::Discard | Command::WriteZeroes => {
                match Range::new(parsed, &self.chain, dma)? {
                    Some(range) => self.range(parsed.command, range),
                    None => Begun::Ended(Status::Unsupported),
                }
            }
            Command::Unknown => Begun::Ended(Status::Unsupported),
        })
    }

    /// The byte that `sector` begins at, if the `len` bytes from there on are whole blocks of the disk.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let fits = offset.checked_add(len)? <= self.info.size;
        let block = self.info.logical_block.into();
        (fits && offset.is_multiple_of(block) && len.is_multiple_of(block)).then_some(offset)
    }

    /// Whether the disk has to flush after each write.
    fn flushes_writes(&self) -> bool {
        !self.info.write_through && self.cache.writes_are_durable()
    }

    fn transfer(&mut self, parsed: &Parsed, dma: &Dma) -> Result<Begun, RingError> {
        let Some(offset) = self.place(parsed.sector, parsed.len) else {
            return Ok(Begun::Ended(Status::IoError));
        };
        let parts = parsed.data(&self.chain);
        Ok(Begun::Operation(if parsed.command.reads() {
            let mut to = match self.to.pop() {
                Some(to) => to,
                None => dma.writable(parsed.status, 0)?,
            };
            for (gpa, len) in parts {
                if let Err(error) = to.push(gpa, len) {
                    // Nothing was written to what it has already.
                    to.complete(0);
                    self.to.push(to);
                    return Err(error.into());
                }
            }
            Operation::Read { offset, to }
        } else {
            let mut from = match self.from.pop() {
                Some(from) => from,
                None => dma.readable(parsed.status, 0)?,
            };
            for (gpa, len) in parts {
                if let Err(error) = from.push(gpa, len) {
                    from.clear();
                    self.from.push(from);
                    return Err(error.into());
                }
            }
            Operation::Write { offset, from }
        }))
    }

    fn identify(&self, parsed: &Parsed, dma: &Dma) -> Result<Status, RingError> {
        let serial = self.serial.as_slice();
        let len = usize::try_from(parsed.len).map_or(serial.len(), |len| len.min(serial.len()));
        self.chain.write(dma, &serial[..len])?;
        Ok(Status::Ok)
    }

    fn range(&self, command: Command, range: Range) -> Begun {
        let len = u64::from(range.sectors) * SECTOR;
        if range.reserved || range.unmap && command == Command::Discard {
            return Begun::Ended(Status::Unsupported);
        }
        let most = match command {
            Command::WriteZeroes => MAX_ZEROED,
            _ => MAX_SECTORS,
        };
        if range.sectors > most {
            return Begun::Ended(Status::IoError);
        }
        match (self.place(range.sector, len), command) {
            (None, _) => Begun::Ended(Status::IoError),
            // It is a hint.
            (Some(_), Command::Discard) if !self.info.discard => Begun::Ended(Status::Ok),
            (Some(offset), Command::Discard) => {
                Begun::Operation(Operation::Discard { offset, len })
            }
            (Some(offset), _) => Begun::Operation(Operation::WriteZeroes {
                offset,
                len,
                unmap: range.unmap,
            }),
        }
    }

    /// The disk no longer has a request.
    fn take_back(&mut self, operation: Operation) {
        self.busy -= 1;
        self.counters.set_in_flight(self.busy);
        match operation {
            Operation::Read { mut to, .. } => {
                to.complete(u64::MAX);
                self.to.push(to);
            }
            Operation::Write { mut from, .. } => {
                from.clear();
                self.from.push(from);
            }
            Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. } => {}
        }
    }

    /// The disk is done with a request.
    fn completed(&mut self, completion: Completion) {
        let Completion {
            tag,
            operation,
            result,
        } = completion;
        self.take_back(operation);
        let flushes_writes = self.flushes_writes();
        let slot = &mut self.slots[tag];
        let wrote = slot.state == SlotState::Busy && slot.parsed.command.writes();
        match result {
            Ok(()) if wrote && flushes_writes => {
                slot.state = SlotState::Flushing;
                self.submit(tag, Operation::Flush);
            }
            Ok(()) => {
                slot.state = SlotState::Done(Status::Ok);
                if let (Some(kind), Some(begun)) = (slot.parsed.command.counted(), slot.begun) {
                    self.counters.done(kind, slot.bytes, begun.elapsed());
                }
                self.done.push(tag);
            }
            // After a flush that failed all others do: there is nothing to wait for.
            Err(error) if self.on_error.pauses(&error) && self.backend.failure().is_none() => {
                slot.state = SlotState::Waits;
                self.waiting.push(tag);
                if !std::mem::replace(&mut self.paused, true) {
                    self.counters.set_paused(true);
                    self.events.report(GuestEvent::DiskFailed {
                        device: self.id.clone(),
                        why: describe(&error),
                    });
                }
            }
            Err(error) => {
                tracing::debug!("{}: {:?} failed: {error}", self.id, slot.parsed.command);
                slot.state = SlotState::Done(Status::IoError);
                if let Some(kind) = slot.parsed.command.counted() {
                    self.counters.failed(kind);
                }
                self.done.push(tag);
            }
        }
    }

    /// Returns the done request in `slot` to its ring.
    fn give_back(&mut self, slot: usize, ring: &mut Ring, dma: &Dma) -> Result<(), RingError> {
        let Slot {
            state,
            head,
            parsed,
            ..
        } = self.slots[slot];
        let SlotState::Done(status) = state else {
            return Ok(());
        };
        dma.write(parsed.status, &[status as u8])?;
        let data = match (parsed.command.reads(), status) {
            // What comes before the status counts, and may not have been written.
            (true, Status::IoError | Status::Unsupported) => None,
            (true, Status::Ok) if parsed.command == Command::GetId => {
                Some(parsed.len.min(SERIAL_LEN as u64))
            }
            (true, Status::Ok) => Some(parsed.len),
            (false, _) => Some(0),
        };
        let written = data.map_or(0, |data| data + 1);
        // Less than 4 GiB: the ring takes no longer requests.
        ring.push(dma, head, u32::try_from(written).unwrap_or(u32::MAX))
    }

    fn release_slot(&mut self, slot: usize) {
        self.slots[slot] = Slot::default();
        self.free.push(slot);
    }

    /// Returns what is done to the rings. What has none any more is dropped: the driver has reset the device.
    fn return_done(&mut self, rings: &mut [Option<Ring>], dma: &Dma) -> Result<(), RingError> {
        while let Some(&slot) = self.done.last() {
            if let Some(Some(ring)) = rings.get_mut(self.slots[slot].queue) {
                self.give_back(slot, ring, dma)?;
            }
            self.done.pop();
            self.release_slot(slot);
        }
        Ok(())
    }

    /// Takes requests that wait from their rings again.
    fn begin_waiting(&mut self, rings: &[Option<Ring>], dma: &Dma) -> Result<(), RingError> {
        while let Some(&slot) = self.waiting.last().filter(|_| !self.paused) {
            let Slot { queue, head, .. } = self.slots[slot];
            if let Some(Some(ring)) = rings.get(queue) {
                ring.read_chain(dma, head, &mut self.chain)?;
                self.begin(slot, queue, dma)?;
                self.waiting.pop();
            } else {
                self.waiting.pop();
                self.release_slot(slot);
            }
        }
        Ok(())
    }

    fn outstanding(&self) -> impl Iterator<Item = &Slot> {
        let slots = self.slots.iter();
        slots.filter(|slot| slot.state != SlotState::Free)
    }
}

/// The error with its causes.
fn describe(error: &io::Error) -> String {
    match error.get_ref() {
        Some(inner) => chain(inner),
        None => error.to_string(),
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> Kind {
        Kind::Blk
    }

    fn features(&self) -> u64 {
        config::features(&self.info)
    }

    fn set_features(&mut self, features: u64) {
        self.cache.agree(features);
    }

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let queues = self.queues.len();
        let writeback = self.cache.is_writeback();
        let config = config::config(&self.info, &self.topology, queues, writeback);
        read_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // All other fields are read-only.
        let at = config::WRITEBACK.checked_sub(offset);
        let byte = at.and_then(|at| data.get(usize::try_from(at).ok()?));
        let Some(&writeback) = byte else {
            return;
        };
        let was_durable = self.cache.writes_are_durable();
        self.cache.set_writeback(writeback != 0);
        // Linux flushes no more from now on, so what has ended must be durable too. If it cannot be, all
        // later writes fail, as after any flush that failed.
        if self.cache.writes_are_durable()
            && !was_durable
            && let Some(sync) = self.backend.syncer()
            && let Err(error) = sync()
        {
            tracing::debug!("{}: {error}", self.id);
        }
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn request(&mut self, request: &DeviceRequest) -> Result<(), RequestError> {
        let DeviceRequest::Disk(request) = *request else {
            return Err(RequestError::OtherKind);
        };
        let done = self.control(request);
        done.map_err(|error| RequestError::Refused(describe(&error)))
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        Some(Arc::clone(&self.counters) as _)
    }

    fn bell(&self) -> Option<Bell> {
        Some(Bell::Event(Arc::clone(self.backend.bell())))
    }

    fn in_flight(&self) -> bool {
        self.busy > 0
    }

    fn complete(&mut self, rings: &mut [Option<Ring>], dma: &Dma) -> Result<(), RingError> {
        self.limiter.begin_pass();
        while let Some(completion) = self.backend.completed() {
            self.completed(completion);
        }
        self.return_done(rings, dma)
    }

    fn restart(&mut self, rings: &mut [Option<Ring>], dma: &Dma) -> Result<(), RingError> {
        if !self.acquired {
            return Ok(());
        }
        self.begin_waiting(rings, dma)?;
        self.return_done(rings, dma)
    }

    fn serve(&mut self, index: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        if !self.acquired {
            return Ok(false);
        }
        let mut left = ring.size();
        // Without a free slot, the next completion serves all rings.
        while let Some(&slot) = self.free.last() {
            if left == 0 {
                return Ok(true);
            }
            left -= 1;
            if self.limiter.closes() {
                // What is there stays in the ring, and has not begun.
                if ring.rearm(dma)? && self.limiter.hold() {
                    self.counters.held();
                }
                return Ok(false);
            }
            if !ring.pop(dma, &mut self.chain)? {
                if ring.rearm(dma)? {
                    continue;
                }
                return Ok(false);
            }
            if let Err(error) = self.begin(slot, index, dma) {
                ring.undo_pop(self.chain.head());
                return Err(error);
            }
            self.free.pop();
            self.charge(slot);
            if let Some(slot) = self.done.pop_if(|done| *done == slot) {
                if let Err(error) = self.give_back(slot, ring, dma) {
                    self.done.push(slot);
                    return Err(error);
                }
                self.release_slot(slot);
            }
        }
        Ok(false)
    }

    fn wake_at(&self) -> Option<Instant> {
        self.limiter.wake_at()
    }

    fn withdraw(&mut self) {
        while let Some(Request { tag, operation }) = self.backend.cancel() {
            self.take_back(operation);
            self.slots[tag].state = SlotState::Waits;
            self.waiting.push(tag);
        }
    }

    fn resume(&mut self) {
        self.paused = false;
        self.counters.set_paused(false);
    }

    fn syncer(&self) -> Option<Syncer> {
        self.backend.syncer()
    }

    fn blocker(&self) -> Option<String> {
        self.backend.failure()
    }

    fn reset(&mut self) {
        self.slots.fill(Slot::default());
        self.free.clear();
        self.free.extend((0..SLOTS).rev());
        self.done.clear();
        self.waiting.clear();
        self.cache.reset();
    }

    fn save(&self, to: &mut Encoder) {
        to.u64(self.info.size);
        to.u64(self.outstanding().count() as u64);
        for slot in self.outstanding() {
            to.u16(u16::try_from(slot.queue).unwrap_or(u16::MAX));
            to.u16(slot.head);
        }
        self.cache.save(to);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        const SIZE: &str = "size of the disk";
        const COUNT: &str = "number of requests";
        const QUEUE: &str = "queue of a request";
        let size = from.u64(SIZE)?;
        let whole = size.is_multiple_of(self.info.logical_block.into());
        if size != self.info.size && !(whole && self.backend.set_size(size)) {
            let why = format!(
                "{size} bytes, but the image of {} has {}: give the image that it was saved with",
                self.id, self.info.size
            );
            return Err(from.invalid(SIZE, why));
        }
        self.read_info();
        let count = from.count(COUNT, 4)?;
        if count > SLOTS {
            return Err(from.invalid(COUNT, format!("{count}, more than {SLOTS}")));
        }
        for _ in 0..count {
            let queue = usize::from(from.u16(QUEUE)?);
            let head = from.u16("descriptor of a request")?;
            if queue >= self.queues.len() {
                return Err(from.invalid(QUEUE, format!("{queue} of {}", self.queues.len())));
            }
            if self
                .outstanding()
                .any(|slot| (slot.queue, slot.head) == (queue, head))
            {
                let why = format!("{head} of queue {queue} twice");
                return Err(from.invalid("descriptor of a request", why));
            }
            let slot = self.free.pop().expect("no more than there are slots");
            self.slots[slot] = Slot {
                state: SlotState::Waits,
                queue,
                head,
                ..Slot::default()
            };
            self.waiting.push(slot);
        }
        self.cache.load(from)
    }

    fn release(&mut self) {
        self.acquired = false;
        self.backend.release();
    }

    fn acquire(&mut self) -> io::Result<()> {
        self.backend.acquire().map_err(|error| {
            let why = format!("cannot use the disk {}: {}", self.id, describe(&error));
            io::Error::new(error.kind(), why)
        })?;
        self.acquired = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
