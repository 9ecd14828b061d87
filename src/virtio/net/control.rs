//! The driver's commands (virtio 1.2, 5.1.6.5).

use crate::memory::Dma;
use crate::net::Mac;
use crate::virtio::queue::{Chain, RingError};

// Classes and their commands.
const RX: u8 = 0;
const RX_LAST: u8 = 5;
const MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const ANNOUNCE: u8 = 3;
const ANNOUNCE_ACK: u8 = 0;
const MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const GUEST_OFFLOADS: u8 = 5;
const GUEST_OFFLOADS_SET: u8 = 0;

/// Answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Which frames the guest wants.
    Filter,
    /// The card's address.
    SetMac(Mac),
    /// The guest has announced itself.
    Announced,
    /// How many pairs of queues are used.
    SetPairs(u16),
    /// What the guest takes on itself, as features.
    SetOffloads(u64),
}

impl Command {
    /// That of a request. None: it is unknown, or too short.
    ///
    /// # Errors
    /// If it is not in memory.
    pub(super) fn read(chain: &Chain, dma: &Dma) -> Result<Option<Self>, RingError> {
        // Class, command, and the longest data that is looked at.
        let mut bytes = [0; 2 + 8];
        let len = chain.read(dma, 0, &mut bytes)?;
        Ok(Self::parse(&bytes[..len]))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        match (class, command) {
            (RX, ..=RX_LAST) => data.first().map(|_| Self::Filter),
            (MAC, MAC_TABLE_SET) => data.first_chunk::<4>().map(|_| Self::Filter),
            (MAC, MAC_ADDR_SET) => data.first_chunk().copied().map(Self::SetMac),
            (ANNOUNCE, ANNOUNCE_ACK) => Some(Self::Announced),
            (MQ, MQ_VQ_PAIRS_SET) => {
                let pairs = data.first_chunk()?;
                Some(Self::SetPairs(u16::from_le_bytes(*pairs)))
            }
            (GUEST_OFFLOADS, GUEST_OFFLOADS_SET) => {
                let offloads = data.first_chunk()?;
                Some(Self::SetOffloads(u64::from_le_bytes(*offloads)))
            }
            _ => None,
        }
    }
}

/// Answers a request; how many bytes that are.
///
/// # Errors
/// If its last byte is not in memory.
pub(super) fn acknowledge(chain: &Chain, dma: &Dma, done: bool) -> Result<u32, RingError> {
    let written = chain.write(dma, &[if done { OK } else { ERR }])?;
    Ok(u32::try_from(written).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_apart() {
        let cases: &[(&[u8], Option<Command>)] = &[
            (&[0, 0, 1], Some(Command::Filter)),
            (&[0, 5, 0], Some(Command::Filter)),
            (&[0, 6, 0], None),
            (&[0, 0], None),
            (&[1, 0, 0, 0, 0, 0], Some(Command::Filter)),
            (&[1, 0, 0, 0, 0], None),
            (
                &[1, 1, 2, 3, 4, 5, 6, 7],
                Some(Command::SetMac([2, 3, 4, 5, 6, 7])),
            ),
            (&[1, 1, 2, 3, 4, 5, 6], None),
            (&[2, 0, 0, 0], None),
            (&[3, 0], Some(Command::Announced)),
            (&[3, 1], None),
            (&[4, 0, 2, 1], Some(Command::SetPairs(0x102))),
            (&[4, 0, 2], None),
            (
                &[5, 0, 2, 0, 0, 0, 0, 0, 0, 1],
                Some(Command::SetOffloads(2 | 1 << 56)),
            ),
            (&[5, 0, 2, 0, 0, 0, 0, 0, 0], None),
            (&[5], None),
            (&[], None),
        ];
        for (bytes, command) in cases {
            assert_eq!(Command::parse(bytes), *command, "{bytes:?}");
        }
    }
}
