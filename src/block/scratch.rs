//! A disk without an image, for devices without a VM: its blocks are in anonymous memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::raw::RawError;
use super::{Backend, Completion, Info, Operation, Request, Resize};
use crate::sys::eventfd;

/// The size of a new one, in bytes.
const SIZE: u64 = 1 << 20;

/// The disk. Requests end when they are submitted.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    size: u64,
    logical_block: u32,
    bell: Arc<EventFd>,
    completed: Vec<Completion>,
}

impl Scratch {
    /// A disk of 1 MiB, all zeroes, with logical blocks of so many bytes.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(logical_block: u32) -> Result<Self, RawError> {
        Self::in_memory(logical_block).map_err(|source| RawError::Open {
            path: "(memory)".into(),
            source,
        })
    }

    fn in_memory(logical_block: u32) -> io::Result<Self> {
        let file = File::from(memfd_create("disk", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(SIZE)?;
        Ok(Self {
            file,
            size: SIZE,
            logical_block,
            bell: Arc::new(eventfd()?),
            completed: Vec::new(),
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Blocks beyond what a new one has read as zeroes, and are not kept.
    fn carry_out(&self, operation: &mut Operation) -> io::Result<()> {
        match operation {
            Operation::Read { offset, to } => to.read_from(self.fd(), *offset).map(drop),
            Operation::Write { offset, from } if *offset + from.len() <= SIZE => {
                from.write_to(self.fd(), *offset).map(drop)
            }
            Operation::Write { .. }
            | Operation::Flush
            | Operation::Discard { .. }
            | Operation::WriteZeroes { .. } => Ok(()),
        }
    }
}

impl Backend for Scratch {
    fn info(&self) -> Info {
        Info {
            size: self.size,
            read_only: false,
            write_through: false,
            discard: true,
            logical_block: self.logical_block,
            physical_block: 4096,
        }
    }

    fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }

    fn submit(&mut self, request: Request) {
        let Request { tag, mut operation } = request;
        let result = self.carry_out(&mut operation);
        self.completed.push(Completion {
            tag,
            operation,
            result,
        });
        // It fails only if the counter is full, and then the device wakes up as well.
        let _rung = self.bell.write(1);
    }

    fn completed(&mut self) -> Option<Completion> {
        self.completed.pop()
    }

    fn set_size(&mut self, size: u64) -> bool {
        self.size = size;
        true
    }

    fn resize(&mut self, resize: Resize) -> io::Result<()> {
        self.size = resize.target(&self.info(), self.size)?;
        Ok(())
    }
}
