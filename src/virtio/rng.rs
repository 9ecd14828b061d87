//! The entropy device (virtio 1.2, 5.4): it fills the driver's buffers with the host's random bytes.

use super::device::{Kind, VirtioDevice, serve_in_order};
use super::queue::{Chain, Ring, RingError};
use crate::memory::Dma;

/// As QEMU's.
const QUEUES: &[u16] = &[8];

/// The most that one request gets, which may be less than it asks for (5.4.6.2): it bounds how long the
/// device is busy.
const MAX_BYTES: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Rng {
    chain: Chain,
    bytes: Box<[u8; MAX_BYTES]>,
}

impl Default for Rng {
    fn default() -> Self {
        Self {
            chain: Chain::default(),
            bytes: Box::new([0; MAX_BYTES]),
        }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn queues(&self) -> &[u16] {
        QUEUES
    }

    fn serve(&mut self, _index: usize, ring: &mut Ring, dma: &Dma) -> Result<bool, RingError> {
        let Self { chain, bytes } = self;
        serve_in_order(ring, dma, chain, |chain| {
            let mut written = 0;
            for segment in chain.writable() {
                let room = MAX_BYTES - written;
                let len = usize::try_from(segment.len).map_or(room, |len| len.min(room));
                let bytes = &mut bytes[..len];
                // The kernel's generator does not fail once it is seeded; until then nothing is handed out.
                if getrandom::fill(bytes).is_err() {
                    break;
                }
                dma.write(segment.gpa, bytes)?;
                written += len;
            }
            // At most MAX_BYTES.
            Ok(u32::try_from(written).unwrap_or(0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BUFFERS, Driver, NEXT, RING, WRITE};
    use super::*;
    use crate::virtio::queue::RingFeatures;

    #[test]
    fn buffers_are_filled_up_to_the_limit() {
        let mut driver = Driver::new(8);
        let dma = driver.dma();
        let mut ring = driver.ring(RingFeatures::default());
        let mut rng = Rng::default();
        driver.describe(RING.descriptors, 0, (0, 64, NEXT, 1));
        driver.describe(RING.descriptors, 1, (BUFFERS, 64, NEXT | WRITE, 2));
        driver.describe(RING.descriptors, 2, (BUFFERS + 64, 0x1_0000, WRITE, 0));
        driver.describe(RING.descriptors, 3, (BUFFERS, 0, WRITE, 0));
        driver.describe(RING.descriptors, 4, (BUFFERS, 8, 0, 0));
        for (head, written) in [(0, 4096), (3, 0), (4, 0)] {
            driver.offer(head);
            assert_eq!(rng.serve(0, &mut ring, &dma), Ok(false));
            assert_eq!(driver.take_used(), Some((head.into(), written)));
        }
        let [first, second, end]: [[u8; 64]; 3] = [0, 64, 4096].map(|at| driver.get(BUFFERS + at));
        assert!(first != second && first != [0; 64] && second != [0; 64]);
        assert_eq!(end, [0; 64], "nothing behind the limit");
    }

    #[test]
    fn a_request_waits_while_the_function_is_no_bus_master() {
        let mut driver = Driver::new(8);
        let dma = driver.dma();
        let mut ring = driver.ring(RingFeatures::default());
        driver.describe(RING.descriptors, 0, (BUFFERS, 8, WRITE, 0));
        driver.offer(0);
        dma.gate().set(false);
        let error = Rng::default().serve(0, &mut ring, &dma).unwrap_err();
        assert!(error.is_gate_closed());
        dma.gate().set(true);
        let interrupted = serve_in_order(&mut ring, &dma, &mut Chain::default(), |_| {
            dma.gate().set(false);
            Ok(0)
        });
        assert!(interrupted.unwrap_err().is_gate_closed());
        assert_eq!(driver.take_used(), None);
        dma.gate().set(true);
        assert_eq!(Rng::default().serve(0, &mut ring, &dma), Ok(false));
        assert_eq!(driver.take_used(), Some((0, 8)));
    }

    #[test]
    fn a_driver_that_never_stops_does_not_keep_it() {
        let mut driver = Driver::new(8);
        let dma = driver.dma();
        let mut ring = driver.ring(RingFeatures::default());
        driver.describe(RING.descriptors, 0, (BUFFERS, 8, WRITE, 0));
        driver.offer(0);
        let mut count = 0;
        let more = serve_in_order(&mut ring, &dma, &mut Chain::default(), |_| {
            count += 1;
            driver.offer(0);
            Ok(8)
        });
        assert_eq!((more, count), (Ok(true), 8));
    }
}
