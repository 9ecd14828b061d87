//! When a write has to be durable (virtio 1.2, 5.2.5 and 5.2.6.2): when it ends (writethrough), or when the
//! driver has flushed (writeback). A driver may switch between them.
//!
//! That is what the driver relies on, whatever the disk does: one that writes through stays so.

use super::config::{F_CONFIG_WCE, F_FLUSH};
use crate::state::{Decoder, Encoder, StateError};

/// The mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheMode {
    /// That of a reset device.
    configured: bool,
    /// As the configuration shows it.
    writeback: bool,
    /// What the driver has agreed on.
    features: u64,
}

impl CacheMode {
    pub(super) fn new(writeback: bool) -> Self {
        Self {
            configured: writeback,
            writeback,
            features: 0,
        }
    }

    /// The driver has agreed on `features`.
    pub(super) fn agree(&mut self, features: u64) {
        self.features = features;
        // Without flushes there is no writeback (5.2.5.2).
        if features & (F_CONFIG_WCE | F_FLUSH) == F_CONFIG_WCE {
            self.writeback = false;
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.configured);
    }

    /// `writeback` of the configuration.
    pub(super) fn is_writeback(&self) -> bool {
        self.writeback
    }

    /// The driver writes it, if it may.
    pub(super) fn set_writeback(&mut self, writeback: bool) {
        let both = F_CONFIG_WCE | F_FLUSH;
        if self.features & both == both {
            self.writeback = writeback;
        }
    }

    /// Whether the driver expects a write to be durable when it ends.
    pub(super) fn writes_are_durable(&self) -> bool {
        match self.features & F_CONFIG_WCE {
            0 => self.features & F_FLUSH == 0,
            _ => !self.writeback,
        }
    }

    /// Only a driver that can switch it has something to save.
    pub(super) fn save(&self, to: &mut Encoder) {
        if self.features & F_CONFIG_WCE != 0 {
            to.bool(self.writeback);
        }
    }

    /// Takes over what was saved, by a driver that had agreed on the same features.
    pub(super) fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        if self.features & F_CONFIG_WCE != 0 {
            let writeback = from.bool("writeback")?;
            self.set_writeback(writeback);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_the_features_and_the_driver() {
        let both = F_CONFIG_WCE | F_FLUSH;
        // Configured, features, what the driver writes; shown, durable.
        for (configured, features, written, shown, durable) in [
            (true, 0, None, true, true),
            (true, 0, Some(false), true, true),
            (true, F_FLUSH, None, true, false),
            (false, F_FLUSH, None, false, false),
            (true, F_FLUSH, Some(false), true, false),
            (true, both, None, true, false),
            (true, both, Some(false), false, true),
            (false, both, None, false, true),
            (false, both, Some(true), true, false),
            (true, F_CONFIG_WCE, None, false, true),
            (true, F_CONFIG_WCE, Some(true), false, true),
        ] {
            let mut mode = CacheMode::new(configured);
            mode.agree(features);
            if let Some(writeback) = written {
                mode.set_writeback(writeback);
            }
            let case = (configured, features, written);
            let outcome = (mode.is_writeback(), mode.writes_are_durable());
            assert_eq!(outcome, (shown, durable), "{case:?}");
            let mut e = Encoder::new();
            mode.save(&mut e);
            let body = e.into_body();
            // In a process with another configuration.
            let mut loaded = CacheMode::new(!configured);
            loaded.agree(features);
            let mut from = Decoder::new("blk", 1, &body);
            loaded.load(&mut from).unwrap();
            from.finish().unwrap();
            assert_eq!(loaded.writes_are_durable(), durable, "{case:?}");
            mode.reset();
            assert_eq!(mode, CacheMode::new(configured));
        }
    }
}
