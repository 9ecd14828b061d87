//! What backs guest RAM, as asked for.

use std::fmt;

/// Guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes; a multiple of the page size in use.
    pub size: u64,
    /// Back the RAM with huge pages of this size.
    pub hugepages: Option<HugePageSize>,
    /// What this host does with it.
    pub host: HostMemory,
}

impl MemoryConfig {
    /// `size` bytes, as they come.
    pub fn of(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }
}

/// The sizes of huge pages that x86 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePageSize {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

/// What the host is to do with guest RAM. It is not the guest's, and not saved with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// Every page has its memory before the guest runs.
    pub prealloc: bool,
    /// Pages of equal content may be merged (KSM).
    pub mergeable: bool,
    /// No page is written to swap.
    pub lock: bool,
    /// Where the memory comes from.
    pub numa: Option<Numa>,
}

/// NUMA nodes of the host that memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numa {
    /// How they are used.
    pub policy: NumaPolicy,
    /// At least one; just one for [`NumaPolicy::Preferred`].
    pub nodes: NodeSet,
}

/// How NUMA nodes are used, as in set_mempolicy(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumaPolicy {
    /// From no other nodes.
    Bind,
    /// From others when it has no more.
    Preferred,
    /// From each in turn.
    Interleave,
}

impl NumaPolicy {
    /// Each and its word, as in QEMU.
    pub const WORDS: [(&str, Self); 3] = [
        ("bind", Self::Bind),
        ("preferred", Self::Preferred),
        ("interleave", Self::Interleave),
    ];
}

impl fmt::Display for Numa {
    /// As in the setting: `0-1`, `preferred:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = NumaPolicy::WORDS.iter();
        if let Some((word, _)) = words.find(|(_, policy)| *policy == self.policy)
            && self.policy != NumaPolicy::Bind
        {
            write!(f, "{word}:")?;
        }
        self.nodes.fmt(f)
    }
}

/// Some of the nodes 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSet(u64);

impl NodeSet {
    /// The highest node that there can be.
    pub const LAST: u32 = u64::BITS - 1;

    /// The nodes whose bits are set.
    pub fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit for each.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..=Self::LAST).filter(move |node| self.0 >> node & 1 != 0)
    }
}

impl fmt::Display for NodeSet {
    /// `0-1+3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.iter().collect();
        for (i, run) in nodes.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let plus = if i == 0 { "" } else { "+" };
            match run {
                [one] => write!(f, "{plus}{one}")?,
                [first, .., last] => write!(f, "{plus}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_shown_as_they_are_given() {
        for (policy, nodes, shown) in [
            (NumaPolicy::Bind, 1, "0"),
            (NumaPolicy::Bind, 0b1_1011, "0-1+3-4"),
            (NumaPolicy::Preferred, 0b100, "preferred:2"),
            (NumaPolicy::Interleave, u64::MAX, "interleave:0-63"),
        ] {
            let nodes = NodeSet::new(nodes);
            assert_eq!(Numa { policy, nodes }.to_string(), shown);
        }
    }
}
