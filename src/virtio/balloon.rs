//! The balloon (virtio 1.2, 5.5): pages that the guest does not use are given back to the host. The guest
//! puts them into the balloon, as many as a user asks for, or reports them as free. It may use them again
//! without a word: they are then zero.

mod requests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::device::{Kind, VirtioDevice, serve_in_order, serve_next};
use super::queue::{Chain, Ring, RingError};
use crate::bus::{DeviceRequest, Gauge, RequestError};
use crate::memory::Dma;
use crate::memory::balloon::{BalloonCounters, BalloonRequest};
use crate::state::{Decoder, Encoder, StateError};
use requests::Pages;

// Features (5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_POISON: u64 = 1 << 4;
const F_REPORTING: u64 = 1 << 5;

/// Bytes of the configuration, and what the driver writes in it (5.5.4).
const CONFIG_LEN: usize = 16;
const ACTUAL: u64 = 4;
const POISON: u64 = 12;

/// As QEMU's.
const QUEUE_SIZE: u16 = 128;
const WITHOUT_REPORTS: &[u16] = &[QUEUE_SIZE; 3];
/// Drivers give the reports queue 4, as the specification has it, or the first that no other feature has.
const WITH_REPORTS: &[u16] = &[QUEUE_SIZE; 5];

/// The unit of the balloon, whatever pages the guest has (5.5).
const PAGE: u64 = 4096;

/// The least that a guest is left, as at its start.
const LEAST: u64 = 16 << 20;

/// What the balloon is made of.
#[derive(Clone, Copy, Debug)]
pub struct BalloonOptions {
    /// Bytes of the guest's RAM.
    pub ram: u64,
    /// The guest takes pages out of the balloon rather than end a process.
    pub deflate_on_oom: bool,
    /// The guest reports pages that it does not use.
    pub reporting: bool,
    /// How often the guest is asked for statistics.
    pub interval: Option<Duration>,
}

/// The device.
pub struct Balloon {
    options: BalloonOptions,
    counters: Arc<BalloonCounters>,
    features: u64,
    /// Pages that are to be in the balloon, and that the guest says are in it.
    wanted: u32,
    actual: u32,
    generation: u32,
    /// What the guest fills free pages with, if it relies on their content.
    poison: u32,
    /// The buffer with statistics that the driver waits for, to send newer ones.
    held: Option<u16>,
    /// When it is returned.
    due: Option<Instant>,
    chain: Chain,
    pages: Pages,
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("wanted", &self.wanted)
            .field("actual", &self.actual)
            .finish_non_exhaustive()
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Inflate,
    Deflate,
    Statistics,
    Reports,
}

impl Balloon {
    /// With `options`; empty.
    pub fn new(options: BalloonOptions) -> Self {
        Self {
            counters: Arc::new(BalloonCounters::new(options.ram)),
            options,
            features: 0,
            wanted: 0,
            actual: 0,
            generation: 0,
            poison: 0,
            held: None,
            due: None,
            chain: Chain::default(),
            pages: Pages::default(),
        }
    }

    fn queue(&self, index: usize) -> Queue {
        match index {
            0 => Queue::Inflate,
            1 => Queue::Deflate,
            2 if self.features & F_STATS_VQ != 0 => Queue::Statistics,
            _ => Queue::Reports,
        }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..4].copy_from_slice(&self.wanted.to_le_bytes());
        config[4..8].copy_from_slice(&self.actual.to_le_bytes());
        config[12..].copy_from_slice(&self.poison.to_le_bytes());
        config
    }

    fn set_wanted(&mut self, pages: u32) {
        if self.wanted != pages {
            self.wanted = pages;
            self.generation = self.generation.wrapping_add(1);
        }
        self.counters.set_target(self.left(pages));
    }

    fn set_actual(&mut self, pages: u32) {
        self.actual = pages;
        self.counters.set_actual(self.left(pages));
    }

    /// What is left of RAM, if so many pages are in the balloon.
    fn left(&self, pages: u32) -> u64 {
        self.options.ram.saturating_sub(u64::from(pages) * PAGE)
    }

    /// Takes pages into the balloon: a request in each pass, as the host's kernel takes its time for it.
    fn inflate(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let Self {
            chain,
            pages,
            counters,
            ..
        } = self;
        one(ring, dma, chain, |chain| {
            pages.read(chain, dma)?;
            for (gpa, len) in pages.runs() {
                counters.add_released(dma.release(gpa, len)?);
            }
            Ok(())
        })
    }

    /// Releases pages that the guest does not use: the same.
    fn report(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let Self {
            chain,
            poison,
            counters,
            ..
        } = self;
        // They would have to keep their content, or get that one.
        let keeps = *poison != 0;
        one(ring, dma, chain, |chain| {
            for page in chain.writable().iter().filter(|_| !keeps) {
                counters.add_released(dma.release(page.gpa, page.len.into())?);
            }
            Ok(())
        })
    }

    /// Takes statistics, and asks for the next when they are due.
    fn statistics(&mut self, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let Some(interval) = self.options.interval else {
            return Ok(false);
        };
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.give_back(ring, dma)?;
        }
        if !ring.pop(dma, &mut self.chain)? {
            return ring.rearm(dma);
        }
        let head = self.chain.head();
        let read = requests::read_statistics(&self.chain, dma)
            // One was sent unasked: only one can wait.
            .and_then(|stats| self.give_back(ring, dma).map(|()| stats));
        match read {
            Ok(stats) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.map_or(0, |now| now.as_secs());
                self.counters.update(stats.iter(), now);
            }
            Err(error) => {
                ring.undo_pop(head);
                return Err(error);
            }
        }
        self.held = Some(head);
        self.due = Instant::now().checked_add(interval);
        Ok(true)
    }

    /// Returns the buffer that the driver waits for.
    fn give_back(&mut self, ring: &mut Ring, dma: &Dma) -> Result<(), RingError> {
        if let Some(head) = self.held {
            ring.push(dma, head, 0)?;
        }
        self.held = None;
        self.due = None;
        Ok(())
    }
}

/// Serves one request. Whether there may be more.
fn one(
    ring: &mut Ring,
    dma: &Dma,
    chain: &mut Chain,
    request: impl FnOnce(&Chain) -> Result<(), RingError>,
) -> Result<bool, RingError> {
    let served = serve_next(ring, dma, chain, |chain| request(chain).map(|()| 0))?;
    Ok(served || ring.rearm(dma)?)
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        let BalloonOptions {
            deflate_on_oom,
            reporting,
            interval,
            ..
        } = self.options;
        let mut features = 0;
        for (feature, offered) in [
            (F_STATS_VQ, interval.is_some()),
            (F_DEFLATE_ON_OOM, deflate_on_oom),
            (F_PAGE_POISON | F_REPORTING, reporting),
        ] {
            features |= if offered { feature } else { 0 };
        }
        features
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    fn queues(&self) -> &[u16] {
        match self.options.reporting {
            true => WITH_REPORTS,
            false => WITHOUT_REPORTS,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::device::read_config(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            ACTUAL => self.set_actual(value),
            POISON => self.poison = value,
            _ => {}
        }
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn request(&mut self, request: &DeviceRequest) -> Result<(), RequestError> {
        let DeviceRequest::Balloon(BalloonRequest::Target(target)) = *request else {
            return Err(RequestError::OtherKind);
        };
        let ram = self.options.ram;
        if !(LEAST.min(ram)..=ram).contains(&target) {
            return Err(RequestError::Refused(format!(
                "the size must be from 16 MiB to the VM's {} MiB, and is {target} bytes",
                ram >> 20
            )));
        }
        let pages = (ram - target) / PAGE;
        self.set_wanted(u32::try_from(pages).unwrap_or(u32::MAX));
        Ok(())
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        Some(Arc::clone(&self.counters) as _)
    }

    fn complete(&mut self, rings: &mut [Option<Ring>], _dma: &Dma) -> Result<(), RingError> {
        // Statistics that nobody can ask for are not due: what was saved may be anything.
        let asked = |(index, ring): (usize, &Option<Ring>)| {
            ring.is_some() && matches!(self.queue(index), Queue::Statistics)
        };
        if self.options.interval.is_none() || !rings.iter().enumerate().any(asked) {
            self.due = None;
        }
        Ok(())
    }

    fn serve(&mut self, index: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        match self.queue(index) {
            Queue::Inflate => self.inflate(ring, dma),
            // The pages are there when they are used.
            Queue::Deflate => serve_in_order(ring, dma, &mut self.chain, |_| Ok(0)),
            Queue::Statistics => self.statistics(ring, dma),
            Queue::Reports if self.features & F_REPORTING != 0 => self.report(ring, dma),
            Queue::Reports => Ok(false),
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        self.due
    }

    /// What a user asked for stays.
    fn reset(&mut self) {
        self.features = 0;
        self.set_actual(0);
        self.poison = 0;
        self.held = None;
        self.due = None;
        self.counters.clear();
    }

    fn save(&self, to: &mut Encoder) {
        to.u32(self.wanted);
        to.u32(self.actual);
        to.u32(self.poison);
        to.bool(self.held.is_some());
        to.u16(self.held.unwrap_or(0));
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let wanted = from.u32("pages to be in the balloon")?;
        self.set_wanted(wanted);
        let actual = from.u32("pages in the balloon")?;
        self.set_actual(actual);
        self.poison = from.u32("poison")?;
        let held = from.bool("statistics buffer")?;
        let head = from.u16("statistics buffer's number")?;
        self.held = held.then_some(head);
        // Those here are due at once.
        self.due = held.then(Instant::now);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
