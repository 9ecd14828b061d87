//! After a move the network must learn where the card is now: the guest is asked to announce itself (virtio
//! 1.2, 5.1.6.5.4), and switches see its address in frames that the card sends by itself.

use std::time::{Duration, Instant};

use crate::net::Mac;

/// How many frames, and the pauses between them: as QEMU's `announce-rounds`, `-initial` and `-step`. The
/// first ones may be lost, while switches bring their ports up.
const ROUNDS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MORE: Duration = Duration::from_millis(100);

/// Bytes of the frame: the shortest that Ethernet has, without its checksum.
const LEN: usize = 60;

/// The frames that are still to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Announcement {
    sent: u32,
    next: Option<Instant>,
}

impl Announcement {
    /// Begins `now`.
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            sent: 0,
            next: Some(now),
        }
    }

    /// When the next frame is due, if one is left.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether a frame is due; it counts as sent.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.sent += 1;
            let pause = FIRST_PAUSE + MORE * (self.sent - 1);
            self.next = (self.sent < ROUNDS).then(|| now + pause);
        }
        due
    }
}

/// A request of a card by its own address, which hosts ignore and from which switches learn (RARP, RFC 903).
pub(super) fn frame(mac: Mac) -> [u8; LEN] {
    let mut frame = [0; LEN];
    let parts: [(usize, &[u8]); 8] = [
        (0, &[0xff; 6]),
        (6, &mac),
        (12, &0x8035_u16.to_be_bytes()),
        // Ethernet, IPv4, and the lengths of their addresses; the request.
        (14, &[0, 1, 8, 0, 6, 4]),
        (20, &[0, 3]),
        (22, &mac),
        (32, &mac),
        (28, &[0; 4]),
    ];
    for (at, bytes) in parts {
        frame[at..][..bytes.len()].copy_from_slice(bytes);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_frames_are_sent_with_growing_pauses() {
        let start = Instant::now();
        let mut announcement = Announcement::begin(start);
        let mut now = start;
        let mut at = Vec::new();
        while let Some(next) = announcement.next() {
            assert!(next == start || !announcement.take(next - Duration::from_millis(1)));
            now = now.max(next);
            assert!(announcement.take(now));
            at.push(now.duration_since(start).as_millis());
        }
        assert_eq!(at, [0, 50, 200, 450, 800]);
        assert!(!announcement.take(now + Duration::from_secs(1)));
        assert_eq!(Announcement::default().next(), None);
    }

    #[test]
    fn the_frame_is_a_broadcast_with_the_cards_address() {
        let frame = frame([2, 3, 4, 5, 6, 7]);
        assert_eq!(frame[..6], [0xff; 6]);
        for at in [6, 22, 32] {
            assert_eq!(frame[at..][..6], [2, 3, 4, 5, 6, 7]);
        }
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    }
}
