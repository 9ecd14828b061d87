//! A buffer that direct I/O accepts.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Larger than the unit of direct I/O of most disks, and a multiple of all others.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Bytes of the buffer.
pub(super) const LEN: usize = 1 << 20;

/// The buffer. It is allocated when it is used first.
#[derive(Default)]
pub(crate) struct Bounce(Vec<Page>);

impl Bounce {
    /// All of it, at a page's start.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.0.resize(LEN / size_of::<Page>(), Page([0; 4096]));
        self.0.as_mut_slice().as_mut_bytes()
    }
}

/// Bytes of [`ZEROES`].
const ZEROES_LEN: usize = 1 << 16;

/// Is at a page's start.
#[repr(align(4096))]
struct Aligned([u8; ZEROES_LEN]);

static ZEROES: Aligned = Aligned([0; ZEROES_LEN]);

/// Zeroes to write, at a page's start.
pub(super) fn zeroes() -> &'static [u8] {
    &ZEROES.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_kept() {
        let mut bounce = Bounce::default();
        let first = bounce.bytes();
        assert_eq!((first.len(), first.as_ptr().addr() % 4096), (LEN, 0));
        first[LEN - 1] = 7;
        let at = first.as_ptr();
        let second = bounce.bytes();
        assert_eq!((second.as_ptr(), second[LEN - 1]), (at, 7));
        assert_eq!(zeroes().as_ptr().addr() % 4096, 0);
    }
}
