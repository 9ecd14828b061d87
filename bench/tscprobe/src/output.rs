//! The output of reports.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hypernest_nested::probe::{Width, samples_header};
use nix::sys::termios::{self, SetArg};

use crate::{ProbeError, io_error};

/// The output; a lock serializes its writers.
#[derive(Debug)]
pub(crate) struct Output(Mutex<To>);

#[derive(Debug)]
enum To {
    Serial(File),
    Nowhere,
}

impl Output {
    /// A serial port in raw mode.
    pub(crate) fn serial(device: &Path) -> Result<Self, ProbeError> {
        let name = device.display().to_string();
        let file = File::options()
            .write(true)
            .open(device)
            .map_err(io_error(format!("cannot open {name}")))?;
        // A file that is not a terminal needs no settings.
        if let Ok(mut attributes) = termios::tcgetattr(&file) {
            termios::cfmakeraw(&mut attributes);
            termios::tcsetattr(&file, SetArg::TCSANOW, &attributes)
                .map_err(|e| io_error(format!("cannot set up {name}"))(e.into()))?;
        }
        Ok(Self(Mutex::new(To::Serial(file))))
    }

    /// No output.
    pub(crate) fn nowhere() -> Self {
        Self(Mutex::new(To::Nowhere))
    }

    /// Writes a frame with the words that `fill` gives. `fill` is called with the lock held, so that its data
    /// is as old as the frame.
    pub(crate) fn frame<'a>(
        &self,
        name: &str,
        fill: impl FnOnce() -> &'a [u64],
    ) -> Result<(), ProbeError> {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let words = fill();
        let Some(header) = samples_header(name, Width::Eight, words.len()) else {
            return Ok(());
        };
        let mut bytes = Vec::with_capacity(header.len() + name.len() + words.len() * 8);
        bytes.extend(header);
        bytes.extend(name.bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        to.bytes(&bytes)
    }

    /// Writes bytes unchanged.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), ProbeError> {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        to.bytes(bytes)
    }
}

impl To {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), ProbeError> {
        match self {
            Self::Serial(file) => file.write_all(bytes).map_err(io_error("cannot report")),
            Self::Nowhere => Ok(()),
        }
    }
}
