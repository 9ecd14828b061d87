//! The flash memory that ends at 4 GiB: firmware's code, and below it the variables that it keeps.
//!
//! ```text
//!   4 GiB ┬ code, read-only
//!         ├ variables: reads are those of memory; writes are the chip's commands
//!         └ 8 MiB below: nothing
//! ```
//!
//! The guest reads both at the speed of memory: they are slots that KVM does not let it write to. While reads
//! show the status of the chip instead, the slot of the variables is removed.

mod chip;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Mutex;

use thiserror::Error;
use tracing::{error, warn};

use crate::block::store::{Store, StoreError};
use crate::bus::{Device, Handler, Region, lock};
use crate::error::chain;
use crate::kvm::KvmError;
use crate::kvm::memory::MemorySlots;
use crate::memory::slots::{AddressSpace, SlotId, SlotKind};
use crate::memory::{GuestRam, MemoryConfig, MemoryError};
use crate::state::{Decoder, Encoder, StateError};
use crate::units::Gpa;
pub use chip::BLOCK;
use chip::{BLOCK_LEN, Change, Chip, ERASED};

/// The end of the flash memory.
const END: u64 = 1 << 32;

/// The most that QEMU's `q35` takes, too (`max-fw-size`).
pub const MAX_LEN: u64 = 8 << 20;

/// The addresses that are the flash memory's.
pub const START: Gpa = Gpa(END - MAX_LEN);

/// What cannot be flash memory.
#[derive(Debug, Error)]
pub enum FlashError {
    /// The lengths do not fit.
    #[error(
        "{what} of {len} bytes cannot be flash memory: code and variables are whole blocks of 4096 bytes, at \
         most 8 MiB together"
    )]
    Length {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
    },
    /// The host does not give it.
    #[error("cannot have the memory of the flash")]
    Memory(#[from] MemoryError),
    /// KVM does not take it.
    #[error("cannot give the guest its flash memory")]
    Kvm(#[from] KvmError),
    /// The file of the variables.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The flash memory.
#[derive(Debug)]
pub struct Flash(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    slots: MemorySlots,
    code: Option<Part>,
    vars: Option<Vars>,
    /// The file of the variables.
    store: Option<Store>,
    /// The guest has other variables than the file: it comes from another process.
    store_is_behind: bool,
    /// What was written to the file is not on stable storage.
    unsynced: bool,
    /// A failed write was reported: a guest can repeat it as often as it likes.
    reported: bool,
}

/// A part of the flash memory, that the guest sees as long as it has a slot.
#[derive(Debug)]
struct Part {
    memory: GuestRam,
    start: Gpa,
    len: u64,
    slots: Vec<SlotId>,
}

#[derive(Debug)]
struct Vars {
    part: Part,
    chip: Chip,
}

impl Part {
    /// `content` that ends at `end`, not shown yet.
    fn new(end: u64, content: &[u8]) -> Result<Self, MemoryError> {
        let len = content.len() as u64;
        let start = Gpa(end - len);
        let memory = GuestRam::new(&MemoryConfig::of(0), &[(start, len)])?;
        let part = Self {
            memory,
            start,
            len,
            slots: Vec::new(),
        };
        part.put(0, content);
        Ok(part)
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let written = self.memory.write(Gpa(self.start.0 + offset), bytes);
        written.expect("the part has all of its bytes");
    }

    fn get(&self, offset: u64, bytes: &mut [u8]) {
        let read = self.memory.read(Gpa(self.start.0 + offset), bytes);
        read.expect("the part has all of its bytes");
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(self.len).expect("at most 8 MiB")];
        self.get(0, &mut content);
        content
    }

    /// The offset of the address `at` of [`START`], and how many bytes are left there.
    fn offset(&self, at: u64) -> Option<(u64, u64)> {
        let offset = (START.0 + at).checked_sub(self.start.0)?;
        let left = self.len.checked_sub(offset).filter(|left| *left > 0)?;
        Some((offset, left))
    }

    fn show(&mut self, slots: &MemorySlots, shown: bool) -> Result<(), KvmError> {
        if shown == self.slots.is_empty() {
            if shown {
                self.slots = slots.add(SlotKind::Rom, AddressSpace::Normal, &self.memory)?;
            } else {
                slots.remove(&self.slots)?;
                self.slots.clear();
            }
        }
        Ok(())
    }
}

impl Flash {
    /// Empty flash memory, which the guest will see through `slots`.
    pub fn new(slots: MemorySlots) -> Self {
        Self(Mutex::new(Inner {
            slots,
            code: None,
            vars: None,
            store: None,
            store_is_behind: false,
            unsynced: false,
            reported: false,
        }))
    }

    /// Puts firmware's code into it. Code that is there already stays: a VM has one.
    ///
    /// # Errors
    /// If its length cannot be, or it cannot be shown to the guest.
    pub fn set_code(&self, code: &[u8]) -> Result<(), FlashError> {
        let mut inner = lock(&self.0);
        if inner.code.is_some() {
            return Ok(());
        }
        inner.check_len("firmware", code.len())?;
        let mut part = Part::new(END, code)?;
        part.show(&inner.slots, true)?;
        inner.code = Some(part);
        // Variables of a saved VM may have come first.
        if let Some(vars) = &inner.vars {
            let content = vars.part.content();
            let chip = vars.chip;
            inner.set_vars(&content, chip)?;
        }
        Ok(())
    }

    /// Gives it variables: those in the file at `path`, or else `template`, with which the file is made.
    ///
    /// # Errors
    /// If their length cannot be, or the file cannot be used.
    pub fn set_vars(&self, template: &[u8], path: Option<&Path>) -> Result<(), FlashError> {
        let mut inner = lock(&self.0);
        inner.check_len("the variable store", template.len())?;
        let store = path.map(|path| Store::open(path, template)).transpose()?;
        let content = match &store {
            Some(store) => store.read(template.len())?,
            None => template.to_vec(),
        };
        inner.store = store;
        inner.set_vars(&content, Chip::default())
    }

    /// Has the variables, which come with the saved state, in the file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened or made.
    pub fn keep_vars_in(&self, path: &Path) -> Result<(), FlashError> {
        lock(&self.0).store = Some(Store::open(path, &[])?);
        Ok(())
    }

    /// The last bytes of the code, at most `most`: what a PC has below 1 MiB as well.
    pub fn code_end(&self, most: u64) -> Vec<u8> {
        let inner = lock(&self.0);
        let Some(code) = &inner.code else {
            return Vec::new();
        };
        let len = code.len.min(most);
        let mut end = vec![0; usize::try_from(len).expect("at most 8 MiB")];
        code.get(code.len - len, &mut end);
        end
    }

    /// Whether there is code to run.
    pub fn has_code(&self) -> bool {
        lock(&self.0).code.is_some()
    }
}

impl Inner {
    /// What is not the code's.
    fn end_of_vars(&self) -> u64 {
        self.code.as_ref().map_or(END, |code| code.start.0)
    }

    fn check_len(&self, what: &'static str, len: usize) -> Result<(), FlashError> {
        let bytes = len as u64;
        let others = END - self.end_of_vars();
        let fits = bytes > 0 && bytes.is_multiple_of(BLOCK) && bytes <= MAX_LEN - others;
        match fits {
            true => Ok(()),
            false => Err(FlashError::Length { what, len }),
        }
    }

    fn set_vars(&mut self, content: &[u8], chip: Chip) -> Result<(), FlashError> {
        if let Some(vars) = &mut self.vars {
            vars.part.show(&self.slots, false)?;
        }
        let part = Part::new(self.end_of_vars(), content)?;
        self.vars = Some(Vars { part, chip });
        // Without code, their place is not known yet.
        if self.code.is_some() {
            self.show_vars()?;
        }
        Ok(())
    }

    /// The guest sees the variables, or what the chip shows instead.
    fn show_vars(&mut self) -> Result<(), KvmError> {
        match &mut self.vars {
            Some(vars) => {
                let shown = vars.chip.status().is_none();
                vars.part.show(&self.slots, shown)
            }
            None => Ok(()),
        }
    }

    /// Carries out a change at `offset`, of which `left` bytes of the chip are left.
    fn change(&mut self, change: Change, offset: u64, left: u64, data: &[u8]) -> bool {
        let Some(vars) = &self.vars else {
            return false;
        };
        let erased;
        let (at, bytes) = match change {
            Change::Settle => return self.settle(),
            Change::Program => {
                let len = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
                (offset, &data[..len])
            }
            Change::Erase => {
                erased = [ERASED; BLOCK_LEN];
                (offset - offset % BLOCK, &erased[..])
            }
        };
        // First the file: what the guest reads must not get lost.
        if let Some(store) = &self.store
            && let Err(e) = store.write(at, bytes)
        {
            self.report(&e);
            return false;
        }
        vars.part.put(at, bytes);
        self.unsynced = self.store.is_some();
        change == Change::Program || self.settle()
    }

    fn settle(&mut self) -> bool {
        if !self.unsynced {
            return true;
        }
        let synced = self.store.as_ref().map_or(Ok(()), Store::sync);
        match synced {
            Ok(()) => {
                self.unsynced = false;
                true
            }
            Err(e) => {
                self.report(&e);
                false
            }
        }
    }

    fn acquire(&mut self) -> Result<(), StoreError> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        store.lock()?;
        if self.store_is_behind
            && let Some(vars) = &self.vars
        {
            store.replace(&vars.part.content())?;
            self.store_is_behind = false;
        }
        Ok(())
    }

    fn report(&mut self, error: &StoreError) {
        if !self.reported {
            self.reported = true;
            let error = chain(error);
            warn!("the firmware's variables are not kept, and the guest is told so: {error}");
        }
    }
}

impl Handler for Flash {
    fn read(&self, _region: Region, offset: u64, data: &mut [u8]) {
        let inner = lock(&self.0);
        // What there is no code and no variable store for reads as all ones.
        let Some(vars) = &inner.vars else {
            return;
        };
        let Some((offset, left)) = vars.part.offset(offset) else {
            return;
        };
        match vars.chip.status() {
            Some(status) => data.fill(status),
            None => {
                let len = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
                vars.part.get(offset, &mut data[..len]);
            }
        }
    }

    fn write(&self, _region: Region, offset: u64, data: &[u8]) {
        let mut inner = lock(&self.0);
        let inner = &mut *inner;
        let (Some(vars), Some(&first)) = (&mut inner.vars, data.first()) else {
            return;
        };
        let Some((offset, left)) = vars.part.offset(offset) else {
            return;
        };
        let change = vars.chip.write(first);
        if let Some(change) = change {
            let succeeded = inner.change(change, offset, left, data);
            if let Some(vars) = &mut inner.vars {
                vars.chip.done(change, succeeded);
            }
        }
        if let Err(e) = inner.show_vars() {
            error!("the guest's flash memory: {}", chain(&e));
        }
    }
}

impl Device for Flash {
    fn name(&self) -> String {
        "flash".to_owned()
    }

    fn acquire(&self) -> io::Result<()> {
        let mut inner = lock(&self.0);
        inner.acquire().map_err(|e| io::Error::other(chain(&e)))
    }

    fn release(&self) {
        let mut inner = lock(&self.0);
        inner.settle();
        if let Some(store) = &inner.store {
            store.unlock();
        }
    }

    fn reset(&self) {
        let mut inner = lock(&self.0);
        inner.settle();
        if let Some(vars) = &mut inner.vars {
            vars.chip = Chip::default();
        }
        if let Err(e) = inner.show_vars() {
            error!("the guest's flash memory: {}", chain(&e));
        }
    }

    fn save(&self, to: &mut Encoder) {
        let inner = lock(&self.0);
        to.bool(inner.vars.is_some());
        if let Some(vars) = &inner.vars {
            to.array(&vars.chip.to_bytes());
            to.bytes(&vars.part.content());
        }
    }

    fn load(&self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let mut inner = lock(&self.0);
        if !from.bool("variables")? {
            return match inner.vars {
                None => Ok(()),
                Some(_) => Err(from.invalid("variables", "there are none, and the VM has some")),
            };
        }
        let chip: [u8; 2] = from.array("chip")?;
        let chip = Chip::from_bytes(chip)
            .ok_or_else(|| from.invalid("chip", format!("{chip:?} is no state of it")))?;
        let content = from.bytes("content")?;
        let set = inner.check_len("the variable store", content.len());
        let set = set.and_then(|()| inner.set_vars(content, chip));
        set.map_err(|e| from.invalid("content", chain(&e)))?;
        inner.store_is_behind = true;
        Ok(())
    }
}
