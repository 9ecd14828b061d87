//! The debug console: text lines and probe frames.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use hypernest_nested::probe::{self, CONSOLE_PORT, WIDE_CONSOLE, Width};

use crate::cpu;

static WIDE: AtomicBool = AtomicBool::new(false);
static BUSY: AtomicBool = AtomicBool::new(false);

/// Detects whether the console accepts four bytes at a time.
pub(crate) fn detect_width() {
    WIDE.store(cpu::in32(CONSOLE_PORT) == WIDE_CONSOLE, Ordering::Relaxed);
}

/// One line, from any processor; lines do not mix.
#[macro_export]
#[doc(hidden)]
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}

pub(crate) fn line(arguments: fmt::Arguments<'_>) {
    exclusively(|| {
        let mut console = Console::new();
        // The console itself never fails.
        let _ = console.write_fmt(arguments);
        console.byte(b'\n');
        console.flush();
    });
}

/// A named point in the run.
pub(crate) fn mark(name: &str) {
    if let Some(header) = probe::mark_header(name) {
        exclusively(|| {
            let mut console = Console::new();
            console.bytes(&header);
            console.bytes(name.as_bytes());
            console.flush();
        });
    }
}

/// A block of samples.
pub(crate) fn samples(name: &str, values: &[u64]) {
    let width = Width::for_max(values.iter().copied().max().unwrap_or(0));
    match probe::samples_header(name, width, values.len()) {
        Some(header) => exclusively(|| {
            let mut console = Console::new();
            console.bytes(&header);
            console.bytes(name.as_bytes());
            for value in values {
                console.bytes(&value.to_le_bytes()[..width.bytes()]);
            }
            console.flush();
        }),
        None => line(format_args!(
            "FAIL {name}: {} samples do not fit into a frame",
            values.len()
        )),
    }
}

/// A frame with the words that `fill` returns. `fill` is called once no other processor writes: the data that
/// it reads is as old as the frame.
pub(crate) fn frame<'a>(name: &str, fill: impl FnOnce() -> &'a [u64]) {
    exclusively(|| {
        let words = fill();
        let Some(header) = probe::samples_header(name, Width::Eight, words.len()) else {
            return;
        };
        let mut console = Console::new();
        console.bytes(&header);
        console.bytes(name.as_bytes());
        for word in words {
            console.bytes(&word.to_le_bytes());
        }
        console.flush();
    });
}

fn exclusively(write: impl FnOnce()) {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    write();
    BUSY.store(false, Ordering::Release);
}

/// Collects bytes for the widest access that the console accepts.
struct Console {
    wide: bool,
    pending: [u8; 4],
    len: usize,
}

impl Console {
    fn new() -> Self {
        Self {
            wide: WIDE.load(Ordering::Relaxed),
            pending: [0; 4],
            len: 0,
        }
    }

    fn byte(&mut self, byte: u8) {
        if !self.wide {
            cpu::out8(CONSOLE_PORT, byte);
            return;
        }
        self.pending[self.len] = byte;
        self.len += 1;
        if self.len == self.pending.len() {
            cpu::out32(CONSOLE_PORT, u32::from_le_bytes(self.pending));
            self.len = 0;
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    fn flush(&mut self) {
        for &byte in &self.pending[..self.len] {
            cpu::out8(CONSOLE_PORT, byte);
        }
        self.len = 0;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}
