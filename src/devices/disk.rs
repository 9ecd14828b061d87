//! Disks: an image of the host behind a controller.

use std::num::NonZeroU64;

use super::table::{BuildError, DeviceConfig, DeviceKey, PACKED, Site, Takes};
use crate::block::Backend;
use crate::block::raw::{Cache, RawDisk, RawOptions};
use crate::block::scratch::Scratch;
use crate::block::throttle::{Limits, MAX_IOPS};
use crate::pci::Slot;
use crate::virtio::blk::{Blk, BlkOptions, MAX_QUEUES, OnError, SERIAL_LEN};

/// The key with the image.
pub const FILE_KEY: &str = "file";
const FORMAT: &str = "format";
const CACHE: &str = "cache";
/// The key of a disk that is only read.
pub const READ_ONLY_KEY: &str = "readonly";
const DISCARD: &str = "discard";
const SERIAL: &str = "serial";
const QUEUES: &str = "num-queues";
const ON_ERROR: &str = "on-error";
const IOPS: &str = "iops";
const BPS: &str = "bps";

/// The keys of a disk, beside those of its controller.
pub static VIRTIO_BLK_KEYS: &[DeviceKey] = &[
    DeviceKey {
        takes: Takes::Path,
        about: "the image, raw: a file or a block device; hypernest never creates it",
        default: "must be given",
        required: true,
        local: true,
        ..DeviceKey::of(FILE_KEY)
    },
    DeviceKey {
        takes: Takes::Words(&["raw"]),
        about: "`raw`: the image is raw also if it begins as another format does, which is refused otherwise",
        default: "raw, if it does not",
        adjustable: true,
        ..DeviceKey::of(FORMAT)
    },
    DeviceKey {
        takes: Takes::Words(&["writeback", "none", "writethrough", "unsafe"]),
        about: "when writes are durable: when the guest flushes, through the host's page cache \
                (`writeback`) or past it (`none`, O_DIRECT); at once (`writethrough`); or when the host \
                likes (`unsafe`)",
        default: "`writeback`",
        adjustable: true,
        ..DeviceKey::of(CACHE)
    },
    DeviceKey {
        takes: Takes::Switch,
        about: "the guest cannot write; other VMs may read the image as well",
        default: "`off`",
        ..DeviceKey::of(READ_ONLY_KEY)
    },
    DeviceKey {
        takes: Takes::Words(&["unmap", "ignore"]),
        about: "whether blocks that the guest discards are given back to the host (`unmap`) or not \
                (`ignore`)",
        default: "`unmap`",
        ..DeviceKey::of(DISCARD)
    },
    DeviceKey {
        takes: Takes::Text { max: SERIAL_LEN },
        about: "the serial number that the guest sees, of at most 20 characters",
        default: "the id",
        ..DeviceKey::of(SERIAL)
    },
    DeviceKey {
        takes: Takes::Number {
            what: "number of queues",
            first: 1,
            last: MAX_QUEUES as u32,
        },
        about: "how many queues the guest may use, from 1 to 64",
        default: "1",
        ..DeviceKey::of(QUEUES)
    },
    DeviceKey {
        takes: Takes::Words(&["enospc", "report", "pause"]),
        about: "what follows if the host refuses a request: the guest gets an error (`report`), the VM is \
                paused and `hypernest resume` makes the request again (`pause`), or the latter if the host \
                has no space left and else the former (`enospc`)",
        default: "`enospc`",
        adjustable: true,
        ..DeviceKey::of(ON_ERROR)
    },
    DeviceKey {
        takes: Takes::Number {
            what: "number of operations per second",
            first: 0,
            last: MAX_IOPS,
        },
        about: "how many reads, writes, discards and write zeroes the guest may make in a second; 0: no \
                limit",
        default: "no limit",
        adjustable: true,
        ..DeviceKey::of(IOPS)
    },
    DeviceKey {
        takes: Takes::Size,
        about: "how many bytes the guest may read, write and zero in a second, e.g. `50M`; 0: no limit",
        default: "no limit",
        adjustable: true,
        ..DeviceKey::of(BPS)
    },
    PACKED,
];

/// Makes a block device.
///
/// # Errors
/// If the image cannot be opened, or see [`Site::virtio`].
pub fn virtio_blk(config: &DeviceConfig, site: &Site<'_>) -> Result<Slot, BuildError> {
    let queues = config.number(QUEUES).max(1);
    let queues = u16::try_from(queues).unwrap_or(MAX_QUEUES);
    let on_error = match config.text(ON_ERROR) {
        Some("report") => OnError::Report,
        Some("pause") => OnError::Pause,
        _ => OnError::PauseIfFull,
    };
    let blk = Blk::new(BlkOptions {
        backend: backend(config, site)?,
        id: config.id.clone(),
        serial: serial(config.text(SERIAL).unwrap_or(&config.id)),
        queues,
        on_error,
        events: site.events.clone(),
        limits: Limits {
            iops: NonZeroU64::new(config.number(IOPS)),
            bps: NonZeroU64::new(config.number(BPS)),
        },
    });
    site.virtio(config, Box::new(blk))
}

fn backend(config: &DeviceConfig, site: &Site<'_>) -> Result<Box<dyn Backend>, BuildError> {
    // The configuration requires an image; only the devices without a VM have none.
    let Some(path) = config.text(FILE_KEY) else {
        return Ok(Box::new(Scratch::new()?));
    };
    let options = RawOptions {
        path: path.into(),
        cache: match config.text(CACHE) {
            Some("none") => Cache::None,
            Some("writethrough") => Cache::Writethrough,
            Some("unsafe") => Cache::Unsafe,
            _ => Cache::Writeback,
        },
        read_only: config.switch(READ_ONLY_KEY),
        discard: config.text(DISCARD) != Some("ignore"),
        any_content: config.text(FORMAT) == Some("raw"),
    };
    let name = format!("{}", site.place);
    let watch = || site.events.watch_thread();
    Ok(Box::new(RawDisk::open(&options, &name, watch)?))
}

/// The first bytes of `text`, with zeroes behind.
fn serial(text: &str) -> [u8; SERIAL_LEN] {
    let mut serial = [0; SERIAL_LEN];
    for (byte, letter) in serial.iter_mut().zip(text.bytes()) {
        *byte = letter;
    }
    serial
}
