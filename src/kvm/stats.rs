//! KVM's own counters of a VM or a vCPU (`KVM_GET_STATS_FD`, Linux 5.14).
//!
//! The descriptor reads like a file: a header, the id, an array of descriptors, and the live data. A pure
//! function that trusts no input parses the layout once; then reading a counter is one `pread` of 8 bytes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_bindings::{
    KVM_STATS_BASE_MASK, KVM_STATS_BASE_POW2, KVM_STATS_BASE_POW10, KVM_STATS_TYPE_CUMULATIVE,
    KVM_STATS_TYPE_INSTANT, KVM_STATS_TYPE_LINEAR_HIST, KVM_STATS_TYPE_LOG_HIST,
    KVM_STATS_TYPE_MASK, KVM_STATS_TYPE_PEAK, KVM_STATS_UNIT_BOOLEAN, KVM_STATS_UNIT_BYTES,
    KVM_STATS_UNIT_CYCLES, KVM_STATS_UNIT_MASK, KVM_STATS_UNIT_NONE, KVM_STATS_UNIT_SECONDS,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use super::ioctl;

/// `struct kvm_stats_header`.
const HEADER: usize = 24;
/// `struct kvm_stats_desc` without the name.
const DESCRIPTOR: usize = 16;
/// Far above the kernel's values (Linux 6.12: 48-byte names, about 60 descriptors), and far below a harmful
/// size.
const MAX_NAME: u32 = 512;
const MAX_DESCRIPTORS: u32 = 4096;
const MAX_VALUES: u16 = 4096;

/// Why KVM's statistics cannot be read.
#[derive(Debug, Error)]
pub enum StatsError {
    /// KVM does not have them.
    #[error("KVM_GET_STATS_FD failed for the {whose}: binary statistics need Linux 5.14")]
    Open {
        /// `VM` or `vCPU`.
        whose: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Reading the descriptor failed.
    #[error("cannot read {count} bytes at {offset} of KVM's statistics")]
    Read {
        /// The offset.
        offset: u64,
        /// The number of bytes.
        count: usize,
        /// The cause.
        source: io::Error,
    },
    /// The data are malformed.
    #[error("KVM's statistics are malformed: {0}")]
    Malformed(String),
    /// There is no such statistic.
    #[error("KVM has no statistic named {name:?}; it has {known}")]
    NoSuchCounter {
        /// The requested name.
        name: String,
        /// The existing names.
        known: String,
    },
}

/// The kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Cumulative,
    /// It goes up and down.
    Instant,
    /// The highest so far.
    Peak,
    /// Buckets of equal width.
    LinearHistogram {
        /// The width.
        bucket: u32,
    },
    /// Buckets that double in width.
    LogHistogram,
    /// A kind that this version does not support.
    Unknown,
}

/// The unit of a value, before the exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A plain count.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Clock cycles.
    Cycles,
    /// 0 or 1.
    Boolean,
    /// A unit that this version does not support.
    Unknown,
}

/// The base that the exponent applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Powers of ten.
    Ten,
    /// Powers of two.
    Two,
    /// A base that this version does not support.
    Unknown,
}

/// One statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name, e.g. `exits`.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// With `exponent`: a value times base^exponent is in `unit`.
    pub base: Base,
    /// See `base`.
    pub exponent: i16,
    /// The number of u64 values: more than one for histograms.
    pub values: u16,
    /// The offset of the first value from the start of the file.
    pub position: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    name_size: u32,
    descriptors: u32,
    descriptors_at: u32,
    data_at: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn malformed(what: impl Into<String>) -> StatsError {
    StatsError::Malformed(what.into())
}

fn parse_header(bytes: &[u8]) -> Result<Header, StatsError> {
    let field = |at| u32_at(bytes, at).ok_or_else(|| malformed("the header is cut off"));
    let header = Header {
        name_size: field(4)?,
        descriptors: field(8)?,
        descriptors_at: field(16)?,
        data_at: field(20)?,
    };
    if header.name_size == 0 || header.name_size > MAX_NAME {
        return Err(malformed(format!(
            "names of {} bytes (1..={MAX_NAME} expected)",
            header.name_size
        )));
    }
    if header.descriptors > MAX_DESCRIPTORS {
        return Err(malformed(format!(
            "{} descriptors ({MAX_DESCRIPTORS} at most expected)",
            header.descriptors
        )));
    }
    Ok(header)
}

/// Bytes per descriptor with its name; small after the checks of `parse_header`.
fn stride(header: &Header) -> usize {
    DESCRIPTOR + header.name_size as usize
}

fn parse_descriptors(header: &Header, bytes: &[u8]) -> Result<Vec<Descriptor>, StatsError> {
    let count = header.descriptors as usize;
    let descriptors: Vec<_> = bytes.chunks_exact(stride(header)).take(count).collect();
    if descriptors.len() < count {
        return Err(malformed(format!(
            "{count} descriptors announced, {} found",
            descriptors.len()
        )));
    }
    descriptors
        .into_iter()
        .map(|bytes| parse_descriptor(header, bytes))
        .collect()
}

fn parse_descriptor(header: &Header, bytes: &[u8]) -> Result<Descriptor, StatsError> {
    let cut_off = || malformed("a descriptor is cut off");
    let flags = u32_at(bytes, 0).ok_or_else(cut_off)?;
    let exponent = u16_at(bytes, 4).ok_or_else(cut_off)?.cast_signed();
    let values = u16_at(bytes, 6).ok_or_else(cut_off)?;
    let offset = u32_at(bytes, 8).ok_or_else(cut_off)?;
    let bucket = u32_at(bytes, 12).ok_or_else(cut_off)?;
    let name = bytes.get(DESCRIPTOR..).ok_or_else(cut_off)?;
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name)
        .map_err(|_| malformed(format!("a name that is no text: {name:x?}")))?
        .to_owned();
    if values == 0 || values > MAX_VALUES {
        return Err(malformed(format!("{name:?} has {values} values")));
    }
    Ok(Descriptor {
        name,
        kind: match flags & KVM_STATS_TYPE_MASK {
            KVM_STATS_TYPE_CUMULATIVE => Kind::Cumulative,
            KVM_STATS_TYPE_INSTANT => Kind::Instant,
            KVM_STATS_TYPE_PEAK => Kind::Peak,
            KVM_STATS_TYPE_LINEAR_HIST => Kind::LinearHistogram { bucket },
            KVM_STATS_TYPE_LOG_HIST => Kind::LogHistogram,
            _ => Kind::Unknown,
        },
        unit: match flags & KVM_STATS_UNIT_MASK {
            KVM_STATS_UNIT_NONE => Unit::Count,
            KVM_STATS_UNIT_BYTES => Unit::Bytes,
            KVM_STATS_UNIT_SECONDS => Unit::Seconds,
            KVM_STATS_UNIT_CYCLES => Unit::Cycles,
            KVM_STATS_UNIT_BOOLEAN => Unit::Boolean,
            _ => Unit::Unknown,
        },
        base: match flags & KVM_STATS_BASE_MASK {
            KVM_STATS_BASE_POW10 => Base::Ten,
            KVM_STATS_BASE_POW2 => Base::Two,
            _ => Base::Unknown,
        },
        exponent,
        values,
        position: u64::from(header.data_at) + u64::from(offset),
    })
}

/// The statistics of one VM or vCPU. They stay readable after the VM or vCPU has ended, and keep KVM from
/// freeing it.
#[derive(Debug)]
pub struct Stats {
    file: Arc<File>,
    descriptors: Vec<Descriptor>,
}

impl Stats {
    /// The statistics of a VM.
    ///
    /// # Errors
    /// If KVM has none, or they are malformed.
    pub fn of_vm(vm: &VmFd) -> Result<Self, StatsError> {
        Self::open(vm.as_raw_fd(), "VM")
    }

    /// The statistics of a vCPU.
    ///
    /// # Errors
    /// If KVM has none, or they are malformed.
    pub fn of_vcpu(vcpu: &VcpuFd) -> Result<Self, StatsError> {
        Self::open(vcpu.as_raw_fd(), "vCPU")
    }

    fn open(fd: RawFd, whose: &'static str) -> Result<Self, StatsError> {
        // SAFETY: the ioctl takes no argument; on anything but a VM or vCPU it fails.
        let fd = unsafe { ioctl::get_stats_fd(fd) }.map_err(|e| StatsError::Open {
            whose,
            source: e.into(),
        })?;
        // SAFETY: the kernel just created this descriptor for this process, and no other code has it.
        let file = unsafe { File::from_raw_fd(fd) };
        Self::from_file(file)
    }

    fn from_file(file: File) -> Result<Self, StatsError> {
        let header = parse_header(&read_at(&file, 0, HEADER)?)?;
        let room = stride(&header) * header.descriptors as usize;
        let bytes = read_at(&file, header.descriptors_at.into(), room)?;
        Ok(Self {
            descriptors: parse_descriptors(&header, &bytes)?,
            file: Arc::new(file),
        })
    }

    /// All statistics.
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// The current values of one statistic.
    ///
    /// # Errors
    /// If reading fails.
    pub fn values(&self, of: &Descriptor) -> Result<Vec<u64>, StatsError> {
        let bytes = read_at(&self.file, of.position, usize::from(of.values) * 8)?;
        Ok(bytes
            .chunks_exact(8)
            .filter_map(|b| b.first_chunk().copied().map(u64::from_ne_bytes))
            .collect())
    }

    /// The current (first) value of the statistic `name`.
    ///
    /// # Errors
    /// If there is none of that name, or reading fails.
    pub fn read(&self, name: &str) -> Result<u64, StatsError> {
        self.counter(name)?.read()
    }

    /// The statistic `name`, for repeated reads.
    ///
    /// # Errors
    /// If there is none of that name; the message lists the existing ones.
    pub fn counter(&self, name: &str) -> Result<Counter, StatsError> {
        let found = self.descriptors.iter().find(|d| d.name == name);
        let Some(descriptor) = found else {
            let known: Vec<_> = self.descriptors.iter().map(|d| d.name.as_str()).collect();
            return Err(StatsError::NoSuchCounter {
                name: name.to_owned(),
                known: known.join(", "),
            });
        };
        Ok(Counter {
            file: Arc::clone(&self.file),
            position: descriptor.position,
        })
    }
}

/// One statistic's first value; reading it is one system call.
#[derive(Clone, Debug)]
pub struct Counter {
    file: Arc<File>,
    position: u64,
}

impl Counter {
    /// The current value.
    ///
    /// # Errors
    /// If reading fails.
    pub fn read(&self) -> Result<u64, StatsError> {
        let mut bytes = [0; 8];
        self.file
            .read_exact_at(&mut bytes, self.position)
            .map_err(|source| StatsError::Read {
                offset: self.position,
                count: bytes.len(),
                source,
            })?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn read_at(file: &File, offset: u64, count: usize) -> Result<Vec<u8>, StatsError> {
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|source| StatsError::Read {
            offset,
            count,
            source,
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// Name, flags, exponent, offset, bucket width, values.
    type Entry<'a> = (&'a str, u32, i16, u32, u32, &'a [u64]);

    /// A file in the kernel's format: names of 16 bytes, descriptors at 32, data after them.
    fn image(entries: &[Entry<'_>]) -> Vec<u8> {
        let descriptors_at = 32u32;
        let data_at = descriptors_at + 32 * u32::try_from(entries.len()).unwrap();
        let mut bytes = Vec::new();
        for field in [
            0,
            16,
            entries.len().try_into().unwrap(),
            24,
            descriptors_at,
            data_at,
        ] {
            bytes.extend_from_slice(&u32::to_ne_bytes(field));
        }
        bytes.extend_from_slice(b"kvm-1\0\0\0");
        for (name, flags, exponent, offset, bucket, values) in entries {
            bytes.extend_from_slice(&flags.to_ne_bytes());
            bytes.extend_from_slice(&exponent.to_ne_bytes());
            bytes.extend_from_slice(&u16::try_from(values.len()).unwrap().to_ne_bytes());
            bytes.extend_from_slice(&offset.to_ne_bytes());
            bytes.extend_from_slice(&bucket.to_ne_bytes());
            let mut padded = [0; 16];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend_from_slice(&padded);
        }
        for (.., values) in entries {
            for value in *values {
                bytes.extend_from_slice(&value.to_ne_bytes());
            }
        }
        bytes
    }

    fn stats(bytes: &[u8]) -> Result<Stats, StatsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Stats::from_file(file)
    }

    #[test]
    fn values_are_found_by_name() {
        let bytes = image(&[
            ("exits", 0, 0, 0, 0, &[12]),
            ("wait_hist", 4 | 0x20, -9, 8, 0, &[1, 2, 3]),
            ("slots", 3 | 0x110, 10, 32, 4096, &[7, 8]),
        ]);
        let stats = stats(&bytes).unwrap();
        assert_eq!(stats.read("exits").unwrap(), 12);
        let [_, wait, slots] = stats.descriptors() else {
            panic!("three descriptors");
        };
        assert_eq!(stats.values(wait).unwrap(), [1, 2, 3]);
        assert_eq!(
            (wait.kind, wait.unit, wait.base, wait.exponent),
            (Kind::LogHistogram, Unit::Seconds, Base::Ten, -9)
        );
        assert_eq!(stats.values(slots).unwrap(), [7, 8]);
        assert_eq!(
            (slots.kind, slots.unit, slots.base, slots.exponent),
            (
                Kind::LinearHistogram { bucket: 4096 },
                Unit::Bytes,
                Base::Two,
                10
            )
        );
        let missing = stats.read("entries").unwrap_err().to_string();
        assert!(missing.contains("exits, wait_hist, slots"), "{missing}");
    }

    #[test]
    fn kinds_newer_than_this_code_are_kept_as_unknown() {
        let stats = stats(&image(&[("new", 0xfff, 0, 0, 0, &[1])])).unwrap();
        let [new] = stats.descriptors() else {
            panic!("one descriptor");
        };
        assert_eq!(
            (new.kind, new.unit, new.base),
            (Kind::Unknown, Unit::Unknown, Base::Unknown)
        );
        assert_eq!(stats.read("new").unwrap(), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = image(&[("exits", 0, 0, 0, 0, &[12])]);
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            bytes
        };
        let refused = |bytes: &[u8], says: &str| {
            let error = stats(bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(&good[..20], "cannot read 24 bytes");
        refused(&with(4, 0), "names of 0 bytes");
        refused(&with(4, u32::MAX), "names of");
        refused(&with(8, u32::MAX), "descriptors");
        refused(&with(8, 4096), "cannot read");
        refused(&with(16, u32::MAX), "cannot read");
        let mut no_values = good.clone();
        no_values[38..40].fill(0);
        refused(&no_values, "has 0 values");
        let mut no_text = good.clone();
        no_text[48] = 0xff;
        refused(&no_text, "no text");
        let far = with(40, u32::MAX);
        assert!(stats(&far).unwrap().read("exits").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _either = stats(&bytes);
        }

        #[test]
        fn any_flipped_byte_is_parsed_or_refused(at in 0usize..72, value in any::<u8>()) {
            let mut bytes = image(&[("exits", 0, 0, 0, 0, &[12])]);
            bytes[at] = value;
            if let Ok(stats) = stats(&bytes) {
                for descriptor in stats.descriptors() {
                    let _either = stats.values(descriptor);
                }
            }
        }
    }

    #[test]
    fn a_vcpu_counts_its_exits() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let stats = match Stats::of_vcpu(&vcpu) {
            Ok(stats) => stats,
            Err(StatsError::Open { .. }) => {
                return eprintln!("skipped: no KVM_CAP_BINARY_STATS_FD");
            }
            Err(e) => panic!("{e}"),
        };
        let exits = stats.counter("exits").unwrap();
        assert_eq!(exits.read().unwrap(), stats.read("exits").unwrap());
        Stats::of_vm(&vm).unwrap();
    }
}
