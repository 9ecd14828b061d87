//! Converts a saved VM to the form of the golden files, which is small.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::unistd::{Whence, lseek};

const PAGE: usize = 4096;

/// The saved VM in `dir`, as a state file and a RAM file of this form.
pub(crate) fn pack(dir: &Path) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let ram = File::open(dir.join("ram"))?;
    let length = ram.metadata()?.len();
    let mut pages = length.to_le_bytes().to_vec();
    let mut offset = 0;
    // The file's holes, which may be most of it, are skipped.
    while let Ok(data) = lseek(&ram, offset, Whence::SeekData) {
        let end = lseek(&ram, data, Whence::SeekHole)?;
        for place in (data..end).step_by(PAGE) {
            let place = u64::try_from(place).map_err(io::Error::other)?;
            let mut page = [0; PAGE];
            ram.read_exact_at(&mut page, place)?;
            pages.extend(place.to_le_bytes());
            pages.extend(page);
        }
        offset = end;
    }
    let state = fs::read(dir.join("state"))?;
    Ok((gzip(&state)?, gzip(&pages)?))
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes)?;
    packed.finish()
}
