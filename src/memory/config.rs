//! What backs guest RAM, as asked for.

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes; a multiple of the page size in use.
    pub size: u64,
    /// Back the RAM with huge pages of this size.
    pub hugepages: Option<HugePageSize>,
}

/// The sizes of huge pages that x86 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePageSize {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}
