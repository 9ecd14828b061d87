//! Balloons: memory that the guest gives back to the host.

use std::time::Duration;

use super::table::{BuildError, DeviceConfig, DeviceKey, PACKED, Site, Takes};
use crate::pci::Slot;
use crate::virtio::balloon::{Balloon, BalloonOptions};

const DEFLATE_ON_OOM: &str = "deflate-on-oom";
const REPORTING: &str = "free-page-reporting";
const INTERVAL: &str = "stats-interval";

/// Seconds between two of the guest's statistics.
const DEFAULT_INTERVAL: u64 = 10;

/// The keys of a balloon.
pub static VIRTIO_BALLOON_KEYS: &[DeviceKey] = &[
    DeviceKey {
        takes: Takes::Switch,
        about: "the guest takes memory out of the balloon rather than end a process for lack of it",
        default: "`off`",
        ..DeviceKey::of(DEFLATE_ON_OOM)
    },
    DeviceKey {
        takes: Takes::Switch,
        about: "the guest reports memory as free, which is given back to the host until it is used again",
        default: "`off`",
        ..DeviceKey::of(REPORTING)
    },
    DeviceKey {
        takes: Takes::Number {
            what: "number of seconds",
            first: 0,
            last: 86400,
        },
        about: "how often the guest sends its statistics, in seconds; 0: never",
        default: "10",
        ..DeviceKey::of(INTERVAL)
    },
    PACKED,
];

/// Makes a balloon.
///
/// # Errors
/// See [`Site::virtio`].
pub fn virtio_balloon(config: &DeviceConfig, site: &Site<'_>) -> Result<Slot, BuildError> {
    let seconds = match config.values.contains_key(INTERVAL) {
        true => config.number(INTERVAL),
        false => DEFAULT_INTERVAL,
    };
    let balloon = Balloon::new(BalloonOptions {
        ram: site.ram,
        deflate_on_oom: config.switch(DEFLATE_ON_OOM),
        reporting: config.switch(REPORTING),
        interval: (seconds > 0).then(|| Duration::from_secs(seconds)),
    });
    site.virtio(config, Box::new(balloon))
}
