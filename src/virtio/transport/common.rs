//! The common configuration structure (virtio 1.2, 4.1.4.3): negotiation and the queues' places, as plain
//! values.

use crate::state::{Decoder, Encoder, StateError};
use crate::virtio::device::read_config;
use crate::virtio::queue::{Addresses, RingFeatures};

/// Bytes of the structure, up to `queue_reset`, which is not offered.
pub const LEN: usize = 0x3c;

/// No vector: the driver wants no interrupt for it (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Features of every device here (6).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// As [`INDIRECT_DESC`].
pub const EVENT_IDX: u64 = 1 << 29;
/// As [`INDIRECT_DESC`]; without it the driver is of the time before virtio 1.0, which is not served.
pub const VERSION_1: u64 = 1 << 32;
/// The driver may have its rings packed. Offered if that is asked for.
pub const RING_PACKED: u64 = 1 << 34;
const TRANSPORT_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;

/// Device status bits (2.1).
pub mod status {
    /// The driver has agreed on features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 0x40;
    /// What a driver sets: acknowledge, driver, driver OK, features OK and failed.
    pub const DRIVERS: u8 = 0x8f;
}
use status::{DRIVER_OK, FEATURES_OK, NEEDS_RESET};

/// What a write asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Reset the device.
    Reset,
    /// The driver has agreed on features.
    Agreed,
    /// The driver is ready: serve the queues.
    Started,
    /// This queue is enabled.
    QueueEnabled(usize),
}

/// The registers of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRegisters {
    max: u16,
    /// How many descriptors.
    pub size: u16,
    /// The vector that interrupts for it.
    pub vector: u16,
    /// Whether the driver uses it.
    pub enabled: bool,
    /// Where its parts are.
    pub at: Addresses,
}

impl QueueRegisters {
    fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            vector: NO_VECTOR,
            enabled: false,
            at: Addresses::default(),
        }
    }
}

/// The structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    offered: u64,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Common {
    /// Of a device with these features beside those that all have, these queues, and so many vectors.
    pub fn new(features: u64, queues: &[u16], vectors: u16) -> Self {
        Self {
            offered: features | TRANSPORT_FEATURES,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            queues: queues.iter().map(|&max| QueueRegisters::new(max)).collect(),
        }
    }

    /// Back to before the driver came.
    pub fn reset(&mut self) {
        let queues: Vec<_> = self.queues.iter().map(|q| q.max).collect();
        let generation = self.generation;
        *self = Self::new(self.offered, &queues, self.vectors);
        // A driver may read the configuration at any time (2.5.1).
        self.generation = generation;
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The features that the driver has agreed on.
    pub fn agreed_features(&self) -> u64 {
        match self.status & FEATURES_OK {
            0 => 0,
            _ => self.driver_features,
        }
    }

    /// The driver is no longer ready: it has reset the device.
    pub fn stop(&mut self) {
        self.status &= !DRIVER_OK;
    }

    /// Whether queues are to be served: the driver is ready, and no ring is broken.
    pub fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// A ring is broken.
    pub fn set_needs_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// The vector that tells of changes of the configuration.
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// The device's own configuration has this generation now; its low bits are what the driver sees.
    pub fn set_generation(&mut self, generation: u32) {
        self.generation = generation.to_le_bytes()[0];
    }

    /// The queues.
    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    fn is_packed(&self) -> bool {
        self.driver_features & RING_PACKED != 0
    }

    /// Whether a driver may choose so many descriptors (2.7, 2.8 and 4.1.4.3.2). It may do so before it has
    /// agreed on the ring's form: a split ring of a size that is no power of two is refused when it is used.
    fn is_size(&self, size: u16, max: u16) -> bool {
        let any = self.offered & RING_PACKED != 0;
        (1..=max).contains(&size) && (any || size.is_power_of_two())
    }

    /// What was negotiated about rings.
    pub fn ring_features(&self) -> RingFeatures {
        RingFeatures {
            packed: self.is_packed(),
            indirect: self.driver_features & INDIRECT_DESC != 0,
            event_index: self.driver_features & EVENT_IDX != 0,
        }
    }

    /// Reads from `offset` on, in any width.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.image(), offset, data);
    }

    fn image(&self) -> [u8; LEN] {
        let mut image = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..][..bytes.len()].copy_from_slice(bytes);
        let half = |features: u64, select: u32| match select {
            0 => features.to_le_bytes()[..4].to_vec(),
            1 => features.to_le_bytes()[4..].to_vec(),
            _ => vec![0; 4],
        };
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_feature_select));
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(self.driver_features, self.driver_feature_select),
        );
        put(0x10, &self.config_vector.to_le_bytes());
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(0x12, &queues.to_le_bytes());
        put(0x14, &[self.status, self.generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that is not there has no descriptors (4.1.4.3.1).
        let Some(queue) = self.queues.get(usize::from(self.queue_select)) else {
            put(0x1a, &NO_VECTOR.to_le_bytes());
            return image;
        };
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &queue.vector.to_le_bytes());
        put(0x1c, &[queue.enabled.into()]);
        // Each queue has its own register to notify, by its number; so is what is written there.
        put(0x1e, &self.queue_select.to_le_bytes());
        put(0x20, &queue.at.descriptors.to_le_bytes());
        put(0x28, &queue.at.available.to_le_bytes());
        put(0x30, &queue.at.used.to_le_bytes());
        put(0x38, &self.queue_select.to_le_bytes());
        image
    }

    /// Writes the register at `offset`, in its own width, or half of a wide one (4.1.3.1); others are
    /// ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Change {
        let value = match data {
            &[a] if offset == 0x14 => return self.set_status(a),
            &[a, b] => u16::from_le_bytes([a, b]).into(),
            &[a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            data => match <[u8; 8]>::try_from(data) {
                Ok(bytes) => u64::from_le_bytes(bytes),
                Err(_) => return Change::None,
            },
        };
        let word = u16::try_from(value).unwrap_or(u16::MAX);
        let dword = u32::try_from(value).unwrap_or(u32::MAX);
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = dword,
            (0x08, 4) => self.driver_feature_select = dword,
            (0x0c, 4) if self.status & FEATURES_OK == 0 => match self.driver_feature_select {
                0 => set_half(&mut self.driver_features, 0, dword),
                1 => set_half(&mut self.driver_features, 1, dword),
                _ => {}
            },
            (0x10, 2) => self.config_vector = self.vector(word),
            (0x16, 2) => self.queue_select = word,
            (0x18, 2) => {
                let max = self.configurable().map_or(0, |queue| queue.max);
                if self.is_size(word, max)
                    && let Some(queue) = self.configurable()
                {
                    queue.size = word;
                }
            }
            (0x1a, 2) => {
                let vector = self.vector(word);
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = vector;
                }
            }
            (0x1c, 2) => return self.enable(word),
            (0x20..0x38, 4 | 8) if offset.is_multiple_of(data.len() as u64) => {
                let Some(queue) = self.configurable() else {
                    return Change::None;
                };
                let part = match offset {
                    0x20..0x28 => &mut queue.at.descriptors,
                    0x28..0x30 => &mut queue.at.available,
                    _ => &mut queue.at.used,
                };
                match (data.len(), offset % 8) {
                    (8, _) => *part = value,
                    (_, 0) => set_half(part, 0, dword),
                    _ => set_half(part, 1, dword),
                }
            }
            _ => {}
        }
        Change::None
    }

    /// The selected queue, as long as it may be configured.
    fn configurable(&mut self) -> Option<&mut QueueRegisters> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled).then_some(queue)
    }

    /// What a vector that the driver chose becomes: none, if there is no such (4.1.5.1.2.1).
    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.vectors {
            wanted
        } else {
            NO_VECTOR
        }
    }

    /// The driver writes 1, once, after it agreed on features; there is no disabling but by a reset.
    fn enable(&mut self, value: u16) -> Change {
        let agreed = self.status & FEATURES_OK != 0;
        match self.configurable() {
            Some(queue) if agreed && value == 1 => {
                queue.enabled = true;
                Change::QueueEnabled(self.queue_select.into())
            }
            _ => Change::None,
        }
    }

    /// Writing 0 resets; other bits are only ever added (2.1.1).
    fn set_status(&mut self, value: u8) -> Change {
        if value == 0 {
            return Change::Reset;
        }
        let mut added = value & status::DRIVERS & !self.status;
        // Some features alone are not served (2.2.2 and 6.1).
        let refused = self.driver_features & !self.offered != 0;
        if refused || self.driver_features & VERSION_1 == 0 {
            added &= !FEATURES_OK;
        }
        if (self.status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        match added & (DRIVER_OK | FEATURES_OK) {
            0 => Change::None,
            FEATURES_OK => Change::Agreed,
            _ => Change::Started,
        }
    }

    /// Writes down what the driver wrote.
    pub fn save(&self, to: &mut Encoder) {
        to.u32(self.device_feature_select);
        to.u32(self.driver_feature_select);
        to.u64(self.driver_features);
        to.u16(self.config_vector);
        to.u8(self.status);
        to.u16(self.queue_select);
        to.u64(self.queues.len() as u64);
        for queue in &self.queues {
            to.u16(queue.size);
            to.u16(queue.vector);
            to.bool(queue.enabled);
            to.u64(queue.at.descriptors);
            to.u64(queue.at.available);
            to.u64(queue.at.used);
        }
    }

    /// Takes over what was saved.
    ///
    /// # Errors
    /// If something is missing, or cannot be.
    pub fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.reset();
        self.device_feature_select = from.u32("device feature select")?;
        self.driver_feature_select = from.u32("driver feature select")?;
        self.driver_features = from.u64("driver features")?;
        self.config_vector = self.vector(from.u16("configuration vector")?);
        self.status = from.u8("device status")?;
        let agreed = self.status & FEATURES_OK != 0;
        let lacking = self.driver_features & !self.offered;
        if agreed && lacking != 0 {
            let why = format!("features {lacking:#x} are not offered here");
            return Err(from.invalid("driver features", why));
        }
        if self.status & DRIVER_OK != 0 && !agreed {
            return Err(from.invalid("device status", "a driver without features"));
        }
        self.queue_select = from.u16("queue select")?;
        let count = from.count("number of queues", 29)?;
        if count != self.queues.len() {
            let why = format!("{count}, but this device has {}", self.queues.len());
            return Err(from.invalid("number of queues", why));
        }
        for index in 0..count {
            let size = from.u16("queue size")?;
            let vector = self.vector(from.u16("queue vector")?);
            if !self.is_size(size, self.queues[index].max) {
                return Err(from.invalid("queue size", format!("{size} descriptors")));
            }
            let queue = &mut self.queues[index];
            queue.size = size;
            queue.vector = vector;
            queue.enabled = from.bool("queue enable")?;
            if queue.enabled && !agreed {
                return Err(from.invalid("queue enable", "before features were agreed on"));
            }
            queue.at = Addresses {
                descriptors: from.u64("descriptor table")?,
                available: from.u64("available ring")?,
                used: from.u64("used ring")?,
            };
        }
        Ok(())
    }
}

/// Writes bits 31:0 (`half` 0) or 63:32 of `register`.
fn set_half(register: &mut u64, half: u32, value: u32) {
    let shift = half * 32;
    *register = (*register & !(u64::from(u32::MAX) << shift)) | u64::from(value) << shift;
}

#[cfg(test)]
mod tests;
