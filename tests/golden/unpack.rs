//! The golden files: VMs that an earlier version saved, and that every later version must restore.
//!
//! `NAME.state.gz` is the state file, compressed. `NAME.ram.gz` is the RAM file without its holes,
//! compressed: its length, then for each page its offset and its bytes; if the offset's lowest bit is set,
//! the bytes are those of the other file at the same offset. All numbers are 64 bits, little-endian. The
//! files were made in the AMD lab (`hypernest save`) from the guest programs of that time: `l1 mode=svm` with
//! L2 running, and `tsc` on two vCPUs with a split irqchip.
//! running, and `tsc` on two vCPUs with a split irqchip.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::read::GzDecoder;

const PAGE: usize = 4096;

/// A saved VM.
pub(crate) struct Golden<'a> {
    pub(crate) state: &'a [u8],
    pub(crate) ram: &'a [u8],
    /// The source of pages that are not in `ram`.
    pub(crate) base: Option<&'a [u8]>,
}

/// An L1 with a running L2 under SVM.
pub(crate) const SVM_L2: Golden<'_> = Golden {
    state: include_bytes!("svm-l2-1.state.gz"),
    ram: include_bytes!("svm-l2-1.ram.gz"),
    base: None,
};

/// Two vCPUs, an I/O APIC in hypernest, a guest that reads every clock and has requested reenlightenment.
pub(crate) const SPLIT: Golden<'_> = Golden {
    state: include_bytes!("split-1.state.gz"),
    ram: include_bytes!("split-1.ram.gz"),
    base: Some(include_bytes!("svm-l2-1.ram.gz")),
};

impl Golden<'_> {
    /// Writes it into a new directory at `dir`, in the form of `hypernest save`.
    pub(crate) fn unpack(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)?;
        fs::write(dir.join("state"), gunzip(self.state)?)?;
        let ram = File::create_new(dir.join("ram"))?;
        let bytes = gunzip(self.ram)?;
        let (length, mut rest) = number(&bytes)?;
        ram.set_len(length)?;
        let base = self.base.map(gunzip).transpose()?;
        while !rest.is_empty() {
            let (place, after) = number(rest)?;
            let offset = place & !1;
            if place & 1 == 0 {
                let (page, after) = after.split_at_checked(PAGE).ok_or_else(cut_off)?;
                ram.write_all_at(page, offset)?;
                rest = after;
            } else {
                let page = page_in(base.as_deref().unwrap_or_default(), offset)?;
                ram.write_all_at(&page, offset)?;
                rest = after;
            }
        }
        Ok(())
    }
}

/// The page at `offset` of a RAM file that contains all of its pages.
fn page_in(bytes: &[u8], offset: u64) -> io::Result<Vec<u8>> {
    let (_length, mut rest) = number(bytes)?;
    while !rest.is_empty() {
        let (place, after) = number(rest)?;
        let (page, after) = after.split_at_checked(PAGE).ok_or_else(cut_off)?;
        if place == offset {
            return Ok(page.to_vec());
        }
        rest = after;
    }
    Err(cut_off())
}

fn gunzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut whole)?;
    Ok(whole)
}

fn number(bytes: &[u8]) -> io::Result<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk().ok_or_else(cut_off)?;
    Ok((u64::from_le_bytes(*number), rest))
}

fn cut_off() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}
