//! What the device tells its driver of the disk: features, and the device's own configuration.

use crate::block::{Info, SECTOR};
use crate::virtio::device::read_config;

/// As QEMU's.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Data descriptors of a request: all of a ring but those of the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most sectors of a discard: 2 GiB.
pub(super) const MAX_SECTORS: u32 = 1 << 22;
/// The most sectors of write zeroes: 64 MiB, as a file system may have to write them all.
pub(super) const MAX_ZEROED: u32 = 1 << 17;

// Features (5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
pub(super) const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes of `struct virtio_blk_config` (5.2.4) with all fields that are served.
const LEN: usize = 60;

/// The features of a disk.
pub(super) fn features(info: &Info) -> u64 {
    let mut features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_MQ;
    for (feature, offered) in [
        (F_RO, info.read_only),
        // Always: a driver that was told of flushes keeps them on a disk that writes through.
        (F_FLUSH, true),
        (F_DISCARD, info.discard && !info.read_only),
        (F_WRITE_ZEROES, !info.read_only),
    ] {
        features |= if offered { feature } else { 0 };
    }
    features
}

/// Reads the configuration of a disk with so many queues from `offset` on.
pub(super) fn read(info: &Info, queues: usize, offset: u64, data: &mut [u8]) {
    read_config(&config(info, queues), offset, data);
}

fn config(info: &Info, queues: usize) -> [u8; LEN] {
    let mut config = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..][..bytes.len()].copy_from_slice(bytes);
    let physical = (u64::from(info.physical_block) / SECTOR).max(1);
    let dwords = [
        (12, SEG_MAX),
        (20, u32::try_from(SECTOR).unwrap_or(0)),
        (36, MAX_SECTORS),
        // One range in each request.
        (40, 1),
        (44, u32::try_from(physical).unwrap_or(1)),
        (48, MAX_ZEROED),
        (52, 1),
    ];
    for (at, value) in dwords {
        put(at, &value.to_le_bytes());
    }
    put(0, &(info.size / SECTOR).to_le_bytes());
    // The physical block as an exponent of two, and the least request without a read before, in blocks.
    put(24, &[u8::try_from(physical.ilog2()).unwrap_or(0)]);
    put(26, &u16::try_from(physical).unwrap_or(1).to_le_bytes());
    let queues = u16::try_from(queues).unwrap_or(u16::MAX);
    put(34, &queues.to_le_bytes());
    put(56, &[info.discard.into()]);
    config
}
