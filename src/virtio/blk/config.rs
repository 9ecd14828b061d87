//! What the device tells its driver of the disk: features, and the device's own configuration.

use crate::block::{Info, SECTOR};

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
pub(super) const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes of `struct virtio_blk_config` (5.2.4) with all fields that are served.
const LEN: usize = 60;
/// Where `writeback` is, which the driver writes.
pub(super) const WRITEBACK: u64 = 32;

/// What the driver is told of the disk's blocks beside the size of the logical ones, in bytes, multiples of
/// that size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The smallest write that needs no read before, a power of two; None: what the host has.
    pub physical_block: Option<u32>,
    /// The smallest request that is good; None: a physical block.
    pub min_io: Option<u32>,
    /// The best size of a request; 0: none is.
    pub opt_io: u32,
    /// What discards are best aligned to; None: a physical block.
    pub discard_granularity: Option<u32>,
}

/// The features of a disk.
pub(super) fn features(info: &Info) -> u64 {
    let mut features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_CONFIG_WCE | F_MQ;
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

/// The configuration of a disk with so many queues, whose driver has its cache in this mode.
pub(super) fn config(
    info: &Info,
    topology: &Topology,
    queues: usize,
    writeback: bool,
) -> [u8; LEN] {
    let mut config = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..][..bytes.len()].copy_from_slice(bytes);
    let block = info.logical_block;
    // The host's block may be smaller.
    let physical = topology.physical_block.unwrap_or(info.physical_block);
    let physical = physical.max(block);
    let discard = topology.discard_granularity.unwrap_or(physical);
    let dwords = [
        (12, SEG_MAX),
        (20, block),
        (28, topology.opt_io / block),
        (36, MAX_SECTORS),
        // One range in each request.
        (40, 1),
        (44, u32::try_from(u64::from(discard) / SECTOR).unwrap_or(0)),
        (48, MAX_ZEROED),
        (52, 1),
    ];
    for (at, value) in dwords {
        put(at, &value.to_le_bytes());
    }
    put(0, &(info.size / SECTOR).to_le_bytes());
    // The physical block as an exponent of two, and the least request, in logical blocks.
    put(24, &[(physical / block).ilog2().to_le_bytes()[0]]);
    let min_io = topology.min_io.unwrap_or(physical) / block;
    let min_io = u16::try_from(min_io).unwrap_or(u16::MAX);
    put(26, &min_io.to_le_bytes());
    put(32, &[writeback.into()]);
    let queues = u16::try_from(queues).unwrap_or(u16::MAX);
    put(34, &queues.to_le_bytes());
    put(56, &[info.discard.into()]);
    config
}
