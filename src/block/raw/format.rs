//! Images that are not raw, by their first bytes. As a raw disk such an image is useless to a guest, and its
//! first write would destroy it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// First bytes and the name of the format: those that qemu-img has.
const FORMATS: [(&[u8], &str); 7] = [
    (b"QFI\xfb", "qcow2"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"QED\0", "QED"),
    (b"<<< ", "VDI"),
];

/// The format that `image` begins as, if it is one that is known.
///
/// # Errors
/// If it cannot be read.
pub(super) fn format(image: &File) -> io::Result<Option<&'static str>> {
    let mut first = [0; 32];
    let read = image.read_at(&mut first, 0)?;
    let first = &first[..read];
    let found = FORMATS.iter().find(|(magic, _)| first.starts_with(magic));
    Ok(found.map(|(_, name)| *name))
}
