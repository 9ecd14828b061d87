//! A 16550A UART: COM1 and COM2.
//!
//! Registers, receive FIFO and loopback come from `vm_superio::Serial`. This module adds: interrupt
//! identification with priorities and as a level that follows its causes (vm-superio would report two causes
//! at once as a third one, and drop data on reading IIR), the FIFO control register, back-pressure in both
//! directions, and break.

use std::convert::Infallible;
use std::fmt;
use std::mem;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Registers, SerialState};

use super::char::{CharDevice, TxQueue};
use super::io_thread::Waker;
use crate::bus::{LockedDevice, Region};
use crate::irq::IrqLine;
use crate::state::{Decoder, Encoder, StateError};

// Register offsets (PC16550D data sheet, table II).
const DATA: u8 = 0;
const IER: u8 = 1;
/// IIR when read, FCR when written.
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
/// The number of ports that the UART decodes.
pub const PORTS: u64 = 8;

const IER_RECEIVED: u8 = 1 << 0;
const IER_THR_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;

const IIR_NONE: u8 = 0x01;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DLAB: u8 = 1 << 7;

const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_BITS: u8 = 0x1f;

const LSR_BREAK: u8 = 1 << 4;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 6;

/// The receive FIFO of a 16550A.
const FIFO: usize = 16;

/// The register file raises no interrupts itself: [`Serial::update`] computes the line from the causes.
struct NoTrigger;

impl Trigger for NoTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// One UART.
pub struct Serial {
    name: String,
    irq: IrqLine,
    uart: Registers<NoTrigger, NoEvents, TxQueue>,
    /// Shadow of IER, which the divisor latch hides.
    ier: u8,
    lcr: u8,
    fifo_enabled: bool,
    thr_interrupt: bool,
    /// The guest read, or would have read, a transmitter that is not ready.
    tx_blocked: bool,
    /// The source was notified that there is no room.
    rx_paused: bool,
    break_state: Break,
    line_high: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    None,
    /// After the bytes in the FIFO.
    Waiting,
    /// In the FIFO as a zero byte, with BI in LSR until that is read.
    Reported,
}

impl Serial {
    /// A UART called `name`. Its output wakes `waker`; without one it is dropped.
    pub fn new(name: &str, irq: IrqLine, waker: Option<Waker>) -> Self {
        Self {
            name: name.to_owned(),
            irq,
            uart: Registers::new(NoTrigger, TxQueue::new(waker)),
            ier: 0,
            lcr: 0x03,
            fifo_enabled: false,
            thr_interrupt: false,
            tx_blocked: false,
            rx_paused: false,
            break_state: Break::None,
            line_high: false,
        }
    }

    fn write_register(&mut self, offset: u8, value: u8) {
        let latch = self.lcr & LCR_DLAB != 0;
        match offset {
            DATA | IER if latch => self.pass(offset, value),
            DATA => {
                self.pass(DATA, value);
                self.thr_interrupt = self.tx_ready();
                self.tx_blocked = !self.thr_interrupt;
            }
            IER => {
                // Enabling the interrupt of a transmitter that is empty raises it at once.
                if value & !self.ier & IER_THR_EMPTY != 0 && self.tx_ready() {
                    self.thr_interrupt = true;
                }
                self.ier = value & 0x0f;
                self.pass(IER, value);
            }
            IIR_FCR => {
                let enable = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 || enable != self.fifo_enabled {
                    self.clear_receiver();
                }
                self.fifo_enabled = enable;
            }
            LCR => {
                self.lcr = value;
                self.pass(LCR, value);
            }
            MCR => self.pass(MCR, value & MCR_BITS),
            _ => self.pass(offset, value),
        }
        self.update();
    }

    fn read_register(&mut self, offset: u8) -> u8 {
        let value = match offset {
            IIR_FCR => {
                let cause = self.cause();
                if cause == IIR_THR_EMPTY {
                    self.thr_interrupt = false;
                }
                cause
                    | if self.fifo_enabled {
                        IIR_FIFO_ENABLED
                    } else {
                        0
                    }
            }
            LSR => {
                let status = self.line_status();
                if self.break_state == Break::Reported {
                    self.break_state = Break::None;
                }
                if status & LSR_THR_EMPTY == 0 {
                    self.tx_blocked = true;
                }
                status
            }
            _ => self.uart.read(offset),
        };
        self.update();
        value
    }

    fn pass(&mut self, offset: u8, value: u8) {
        // Neither the trigger nor the queue can fail.
        let _infallible = self.uart.write(offset, value);
    }

    /// Empties the receive FIFO, even if the divisor latch hides it.
    fn clear_receiver(&mut self) {
        self.pass(LCR, self.lcr & !LCR_DLAB);
        while self.received() > 0 {
            self.uart.read(DATA);
        }
        self.pass(LCR, self.lcr);
        self.break_state = Break::None;
    }

    fn received(&self) -> usize {
        // vm-superio's FIFO holds 64 bytes; loopback can fill it beyond a 16550's 16.
        64 - self.uart.fifo_capacity()
    }

    fn tx_ready(&self) -> bool {
        self.uart.writer().has_room()
    }

    fn line_status(&mut self) -> u8 {
        let mut status = self.uart.read(LSR);
        if !self.tx_ready() {
            status &= !(LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY);
        }
        if self.break_state == Break::Reported {
            status |= LSR_BREAK;
        }
        status
    }

    /// The interrupt with the highest priority among those enabled (data sheet, table IV).
    fn cause(&self) -> u8 {
        if self.ier & IER_LINE_STATUS != 0 && self.break_state == Break::Reported {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVED != 0 && self.received() > 0 {
            IIR_RECEIVED
        } else if self.ier & IER_THR_EMPTY != 0 && self.thr_interrupt {
            IIR_THR_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// After every change: admits a pending break, resumes a paused source, drives the line.
    fn update(&mut self) {
        if self.break_state == Break::Waiting && self.received() == 0 && !self.in_loopback() {
            self.break_state = Break::Reported;
            let _fits = self.uart.enqueue_raw_bytes(&[0]);
        }
        if self.rx_paused && self.received() == 0 && self.room() > 0 {
            self.rx_paused = false;
            self.uart.writer().wake();
        }
        let high = self.cause() != IIR_NONE;
        if high != self.line_high {
            self.line_high = high;
            self.irq.set(high);
        }
    }

    fn in_loopback(&mut self) -> bool {
        self.uart.read(MCR) & MCR_LOOPBACK != 0
    }

    fn room(&mut self) -> usize {
        if self.in_loopback() || self.break_state == Break::Waiting {
            return 0;
        }
        let limit = if self.fifo_enabled { FIFO } else { 1 };
        limit.saturating_sub(self.received())
    }
}

/// The register at `offset`.
fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset)
        .ok()
        .filter(|register| u64::from(*register) < PORTS)
}

/// The registers in the order in which they are saved.
fn registers(uart: &SerialState) -> [u8; 9] {
    [
        uart.baud_divisor_low,
        uart.baud_divisor_high,
        uart.interrupt_enable,
        uart.interrupt_identification,
        uart.line_control,
        uart.line_status,
        uart.modem_control,
        uart.modem_status,
        uart.scratch,
    ]
}

impl LockedDevice for Serial {
    fn name(&self) -> &str {
        &self.name
    }

    /// Output that the guest sent before is still delivered.
    fn reset(&mut self) {
        let sent = mem::take(self.uart.writer_mut());
        self.uart = Registers::new(NoTrigger, sent);
        self.ier = 0;
        self.lcr = 0x03;
        self.fifo_enabled = false;
        self.thr_interrupt = false;
        self.tx_blocked = false;
        self.break_state = Break::None;
        self.update();
    }

    // The ISA bus splits wider accesses into bytes at consecutive ports.
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..) {
            if let Some(register) = register(offset) {
                *byte = self.read_register(register);
            }
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        for (byte, offset) in data.iter().zip(offset..) {
            if let Some(register) = register(offset) {
                self.write_register(register, *byte);
            }
        }
    }

    // Pending output is not part of it: the saved VM delivers it. A restored VM has an empty transmitter, and
    // signals that to a guest that waits for one.
    fn save(&self, to: &mut Encoder) {
        let uart = self.uart.state();
        to.array(&registers(&uart));
        to.bytes(&uart.in_buffer);
        to.bool(self.fifo_enabled);
        to.bool(self.thr_interrupt || self.tx_blocked);
        to.u8(match self.break_state {
            Break::None => 0,
            Break::Waiting => 1,
            Break::Reported => 2,
        });
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        let [low, high, ier, iir, lcr, lsr, mcr, msr, scratch] = from.array("registers")?;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: ier & 0x0f,
            interrupt_identification: iir,
            line_control: lcr,
            line_status: lsr,
            modem_control: mcr & MCR_BITS,
            modem_status: msr,
            scratch,
            in_buffer: from.bytes("received bytes")?.to_vec(),
        };
        self.fifo_enabled = from.bool("FIFOs")?;
        self.thr_interrupt = from.bool("transmitter interrupt")?;
        self.break_state = match from.u8("break")? {
            0 => Break::None,
            1 => Break::Waiting,
            2 => Break::Reported,
            other => return Err(from.invalid("break", format!("{other}"))),
        };
        let sent = mem::take(self.uart.writer_mut());
        match Registers::from_state(&state, NoTrigger, NoEvents, sent) {
            Ok(uart) => self.uart = uart,
            // Output is pending in a restored VM only if state is loaded twice; it is dropped with the
            // previous state.
            Err(_) => {
                let count = state.in_buffer.len();
                return Err(from.invalid("received bytes", format!("{count} do not fit")));
            }
        }
        self.ier = state.interrupt_enable;
        self.lcr = lcr;
        self.tx_blocked = false;
        self.rx_paused = false;
        // Notifications before the restore are void.
        self.line_high = self.cause() != IIR_NONE;
        self.irq.set(self.line_high);
        self.update();
        self.uart.writer().wake();
        Ok(())
    }
}

impl CharDevice for Serial {
    fn input_room(&mut self) -> usize {
        let room = self.room();
        self.rx_paused = room == 0;
        room
    }

    fn input(&mut self, bytes: &[u8]) {
        let room = self.room();
        // Refused only without room, and the caller was promised that much.
        let _fits = self.uart.enqueue_raw_bytes(&bytes[..bytes.len().min(room)]);
        self.update();
    }

    fn input_break(&mut self) {
        self.break_state = Break::Waiting;
        self.update();
    }

    fn take_output(&mut self, buf: &mut [u8]) -> usize {
        let count = self.uart.writer_mut().take(buf);
        if count > 0 && mem::take(&mut self.tx_blocked) {
            self.thr_interrupt = true;
            self.update();
        }
        count
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("name", &self.name)
            .field("ier", &self.ier)
            .field("received", &self.received())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
