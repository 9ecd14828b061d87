//! What the device offers, by key.

use std::collections::BTreeMap;

/// The text "QEMU": how guests find the device.
const SIGNATURE: u16 = 0x00;
/// Which interfaces there are: bit 0, the ports; bit 1, DMA.
const ID: u16 = 0x01;
const ID_PORTS: u32 = 1 << 0;
const ID_DMA: u32 = 1 << 1;
/// Bytes of RAM.
const RAM_SIZE: u16 = 0x03;
/// Whether there is no display.
const NOGRAPHIC: u16 = 0x04;
/// Processors at power-on.
const NB_CPUS: u16 = 0x05;
/// On x86: the highest APIC id that there may be, plus one.
const MAX_CPUS: u16 = 0x0f;
/// The directory of files: their number, and an entry for each. Its numbers are big endian.
const FILE_DIR: u16 = 0x19;
/// The first file. Keys of items that are selected end where the bit for writing begins.
const FILE_FIRST: u16 = 0x20;
/// A file's name in the directory, with at least one NUL.
const FILE_NAME_LEN: usize = 56;

/// Files: name and content.
pub type Files = Vec<(&'static str, Vec<u8>)>;

/// The items of a machine. Numbers are little endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Items {
    contents: BTreeMap<u16, Vec<u8>>,
    /// The keys of the files.
    files: BTreeMap<String, u16>,
}

impl Items {
    /// The items of a machine without a display that has `ram` bytes of RAM and `cpus` processors with APIC
    /// ids below `apic_id_limit`.
    pub fn of_machine(ram: u64, cpus: u16, apic_id_limit: u16) -> Self {
        let contents = BTreeMap::from([
            (SIGNATURE, b"QEMU".to_vec()),
            (ID, ID_PORTS.to_le_bytes().to_vec()),
            (RAM_SIZE, ram.to_le_bytes().to_vec()),
            (NOGRAPHIC, 1_u16.to_le_bytes().to_vec()),
            (NB_CPUS, cpus.to_le_bytes().to_vec()),
            (MAX_CPUS, apic_id_limit.to_le_bytes().to_vec()),
        ]);
        Self {
            contents,
            files: BTreeMap::new(),
        }
    }

    /// The same of a device that has DMA.
    #[must_use]
    pub(super) fn with_dma(mut self) -> Self {
        let id = ID_PORTS | ID_DMA;
        self.contents.insert(ID, id.to_le_bytes().to_vec());
        self
    }

    /// The same with `files`: name and content. A guest finds them by their names.
    ///
    /// # Panics
    /// If a name has more than 55 bytes.
    #[must_use]
    pub fn with_files(mut self, files: Vec<(&str, Vec<u8>)>) -> Self {
        // The order of names, as in QEMU.
        let files: BTreeMap<_, _> = files.into_iter().collect();
        let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        let mut directory = count.to_be_bytes().to_vec();
        for (key, (file, content)) in (FILE_FIRST..).zip(files) {
            let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
            let mut name = [0; FILE_NAME_LEN];
            name[..FILE_NAME_LEN - 1][..file.len()].copy_from_slice(file.as_bytes());
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            // Reserved.
            directory.extend([0; 2]);
            directory.extend(name);
            self.contents.insert(key, content);
            self.files.insert(file.to_owned(), key);
        }
        self.contents.insert(FILE_DIR, directory);
        self
    }

    /// Whether the item with this key is one of these files.
    pub(super) fn is_one_of(&self, key: u16, files: &[&str]) -> bool {
        files.iter().any(|name| self.files.get(*name) == Some(&key))
    }

    /// Gives files another content of the same length: the directory has it.
    pub(super) fn renew(&mut self, files: Files) {
        for (name, content) in files {
            let there = self.files.get(name);
            let there = there.and_then(|key| self.contents.get_mut(key));
            if let Some(there) = there
                && there.len() == content.len()
            {
                *there = content;
            }
        }
    }

    /// The bytes of the item with this key; none if there is no such item.
    pub(super) fn get(&self, key: u16) -> &[u8] {
        self.contents.get(&key).map_or(&[], Vec::as_slice)
    }
}
