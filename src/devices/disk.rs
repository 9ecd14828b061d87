//! Disks: an image of the host behind a controller.

use std::num::NonZeroU64;

use super::table::{BuildError, DeviceConfig, DeviceKey, Fault, PACKED, Site, Takes};
use crate::block::Backend;
use crate::block::raw::{Cache, RawDisk, RawError, RawOptions};
use crate::block::scratch::Scratch;
use crate::block::throttle::{Limits, MAX_IOPS};
use crate::pci::Slot;
use crate::virtio::blk::{Blk, BlkOptions, MAX_QUEUES, OnError, SERIAL_LEN, Topology};

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
const WRITE_CACHE: &str = "write-cache";
const LOGICAL: &str = "logical_block_size";
const PHYSICAL: &str = "physical_block_size";
const MIN_IO: &str = "min_io_size";
const OPT_IO: &str = "opt_io_size";
const GRANULARITY: &str = "discard_granularity";

/// The sizes of blocks, which are QEMU's.
const BLOCKS: std::ops::RangeInclusive<u64> = 512..=2 << 20;
/// Most logical blocks of the smallest good request, whose field has 16 bits (virtio 1.2, 5.2.4).
const MAX_MIN_IO: u64 = 0xffff;
/// Most bytes of the other sizes, as in QEMU.
const MAX_SIZE: u64 = 0xffff_ffff;

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
    DeviceKey {
        takes: Takes::Switch,
        about: "the mode of a reset disk, which the guest may change: a write is durable when the guest has \
                flushed (`on`), or when it ends (`off`)",
        default: "`off` with `cache=writethrough`, else `on`",
        ..DeviceKey::of(WRITE_CACHE)
    },
    DeviceKey {
        takes: Takes::Size,
        about: "bytes of the guest's sectors, a power of two from 512 to 2M; the image is a multiple of it. \
                Linux takes at most the size of its pages, 4096",
        default: "512",
        ..DeviceKey::of(LOGICAL)
    },
    DeviceKey {
        takes: Takes::Size,
        about: "bytes of the smallest write that needs no read before, a power of two from the logical block \
                to 2M",
        default: "the host's",
        ..DeviceKey::of(PHYSICAL)
    },
    DeviceKey {
        takes: Takes::Size,
        about: "bytes of the smallest request that is good, a multiple of the logical block, of which it has \
                65535 at most",
        default: "the physical block",
        ..DeviceKey::of(MIN_IO)
    },
    DeviceKey {
        takes: Takes::Size,
        about: "the best size of requests in bytes, a multiple of the logical block",
        default: "none",
        ..DeviceKey::of(OPT_IO)
    },
    DeviceKey {
        takes: Takes::Size,
        about: "what discards are best aligned to, in bytes, a multiple of the logical block",
        default: "the physical block",
        ..DeviceKey::of(GRANULARITY)
    },
    PACKED,
];

/// Checks the sizes of blocks.
pub fn check(config: &mut DeviceConfig, _vm: &str, here: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |what: String, expected: String| faults.push(Fault { what, expected });
    for key in [LOGICAL, PHYSICAL] {
        let size = config.number(key);
        if config.values.contains_key(key) && !(size.is_power_of_two() && BLOCKS.contains(&size)) {
            let (first, last) = BLOCKS.into_inner();
            fault(
                format!("{key}={size} is no size of a block"),
                format!("a power of two from {first} to {last}"),
            );
        }
    }
    let logical = match config.number(LOGICAL) {
        size if BLOCKS.contains(&size) => size,
        _ => *BLOCKS.start(),
    };
    if config.values.contains_key(PHYSICAL) && config.number(PHYSICAL) < logical {
        fault(
            format!(
                "{PHYSICAL}={} is less than {LOGICAL}={logical}",
                config.number(PHYSICAL)
            ),
            format!("{logical} or more"),
        );
    }
    for (key, most) in [
        (MIN_IO, (MAX_MIN_IO * logical).min(MAX_SIZE)),
        (OPT_IO, MAX_SIZE),
        (GRANULARITY, MAX_SIZE),
    ] {
        let size = config.number(key);
        if !size.is_multiple_of(logical) || size > most {
            fault(
                format!("{key}={size} does not go with {LOGICAL}={logical}"),
                format!("a multiple of {logical} up to {most}"),
            );
        }
    }
    // A block device's size, and one of no whole sectors, are found when the image is opened.
    if here
        && config.values.contains_key(LOGICAL)
        && let Some(path) = config.text(FILE_KEY)
        && let Ok(metadata) = std::fs::metadata(path)
        && metadata.is_file()
        && !metadata.len().is_multiple_of(logical)
    {
        let size = metadata.len();
        let path = path.into();
        let block = u32::try_from(logical).unwrap_or(u32::MAX);
        let error = RawError::Size { path, size, block };
        fault(error.to_string(), format!("a multiple of {logical} bytes"));
    }
    faults
}

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
        topology: Topology {
            physical_block: bytes(config, PHYSICAL),
            min_io: bytes(config, MIN_IO),
            opt_io: bytes(config, OPT_IO).unwrap_or(0),
            discard_granularity: bytes(config, GRANULARITY),
        },
        write_cache: config
            .values
            .contains_key(WRITE_CACHE)
            .then(|| config.switch(WRITE_CACHE)),
        on_error,
        events: site.events.clone(),
        limits: Limits {
            iops: NonZeroU64::new(config.number(IOPS)),
            bps: NonZeroU64::new(config.number(BPS)),
        },
    });
    site.virtio(config, Box::new(blk))
}

/// The bytes of a key, if it is set.
fn bytes(config: &DeviceConfig, key: &str) -> Option<u32> {
    u32::try_from(config.number(key))
        .ok()
        .filter(|bytes| *bytes > 0)
}

fn backend(config: &DeviceConfig, site: &Site<'_>) -> Result<Box<dyn Backend>, BuildError> {
    let logical_block = bytes(config, LOGICAL).unwrap_or(512);
    // The configuration requires an image; only the devices without a VM have none.
    let Some(path) = config.text(FILE_KEY) else {
        return Ok(Box::new(Scratch::new(logical_block)?));
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
        logical_block,
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

#[cfg(test)]
mod tests;
