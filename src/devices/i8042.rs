//! The keyboard controller (8042) with a keyboard and no mouse.
//!
//! Enough of both for the probes of Linux (i8042, atkbd) and Windows to succeed quickly: a probe without a
//! reply waits half a second. There is no input from this keyboard; users use the serial console.

use std::collections::VecDeque;

use crate::bus::{LockedDevice, Region};
use crate::irq::IrqLine;
use crate::life::{GuestEvent, GuestEvents};
use crate::state::{Decoder, Encoder, StateError};

/// The data port (0x60).
pub const DATA: Region = Region(0);
/// The status and command port (0x64).
pub const COMMAND: Region = Region(1);

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
/// Keyboard not locked by a key switch.
const STATUS_UNLOCKED: u8 = 1 << 4;

const CONTROL_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const CONTROL_SYSTEM: u8 = 1 << 2;
const CONTROL_KEYBOARD_DISABLE: u8 = 1 << 4;
const CONTROL_AUX_DISABLE: u8 = 1 << 5;
const CONTROL_TRANSLATE: u8 = 1 << 6;
/// As a PC's firmware leaves it: a kernel started without firmware expects the same.
const CONTROL_POWER_ON: u8 =
    CONTROL_KEYBOARD_INTERRUPT | CONTROL_SYSTEM | CONTROL_AUX_DISABLE | CONTROL_TRANSLATE;

/// Output port: bit 0 high = no reset, bit 1 high = A20 open.
const OUTPUT_NO_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;
const OUTPUT_PORT_POWER_ON: u8 = 0xcc | OUTPUT_NO_RESET | OUTPUT_A20;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0x55;
const KEYBOARD_TEST_PASSED: u8 = 0xaa;

/// The keyboard's own buffer is 16 bytes.
const KEYBOARD_QUEUE: usize = 16;

/// The target of the next byte written to the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Keyboard,
    /// Internal RAM; byte 0 is the controller's command byte.
    Ram(u8),
    OutputPort,
    /// Echoed as if the keyboard had sent it.
    KeyboardLoop,
    /// Echoed without the mouse flag, by which drivers detect that there is no mouse port.
    AuxLoop,
    Nothing,
}

impl Expect {
    fn code(self) -> [u8; 2] {
        match self {
            Self::Keyboard => [0, 0],
            Self::Ram(index) => [1, index],
            Self::OutputPort => [2, 0],
            Self::KeyboardLoop => [3, 0],
            Self::AuxLoop => [4, 0],
            Self::Nothing => [5, 0],
        }
    }

    fn from_code(code: [u8; 2]) -> Option<Self> {
        Some(match code {
            [0, 0] => Self::Keyboard,
            [1, index @ 0..=31] => Self::Ram(index),
            [2, 0] => Self::OutputPort,
            [3, 0] => Self::KeyboardLoop,
            [4, 0] => Self::AuxLoop,
            [5, 0] => Self::Nothing,
            _ => return None,
        })
    }
}

/// The keyboard command that waits for its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyboardArgument {
    Accept,
    ScancodeSet,
}

/// The controller and the keyboard.
#[derive(Debug)]
pub struct I8042 {
    irq: IrqLine,
    events: GuestEvents,
    ram: [u8; 32],
    output_port: u8,
    /// The byte in the data port, if its "output full" bit is set.
    output: Option<Byte>,
    /// The reply to a controller command, if the data port was full when it was ready.
    reply: Option<u8>,
    last_read: u8,
    last_was_command: bool,
    expect: Expect,
    keyboard: VecDeque<u8>,
    keyboard_last: u8,
    keyboard_argument: Option<KeyboardArgument>,
    scancode_set: u8,
}

#[derive(Clone, Copy, Debug)]
struct Byte {
    value: u8,
    from_keyboard: bool,
}

impl I8042 {
    /// The controller as firmware leaves it, with the keyboard's interrupt at `irq`.
    pub fn new(irq: IrqLine, events: GuestEvents) -> Self {
        let mut controller = Self {
            irq,
            events,
            ram: [0; 32],
            output_port: OUTPUT_PORT_POWER_ON,
            output: None,
            reply: None,
            last_read: 0,
            last_was_command: false,
            expect: Expect::Keyboard,
            keyboard: VecDeque::with_capacity(KEYBOARD_QUEUE),
            keyboard_last: 0,
            keyboard_argument: None,
            scancode_set: 2,
        };
        controller.ram[0] = CONTROL_POWER_ON;
        controller
    }

    fn control(&self) -> u8 {
        self.ram[0]
    }

    fn command(&mut self, command: u8) {
        self.last_was_command = true;
        self.expect = Expect::Keyboard;
        match command {
            0x20..=0x3f => self.answer(self.ram[usize::from(command & 0x1f)]),
            0x60..=0x7f => self.expect = Expect::Ram(command & 0x1f),
            // Password installed? No.
            0xa4 => self.answer(0xf1),
            0xa7 => self.ram[0] |= CONTROL_AUX_DISABLE,
            0xa8 => self.ram[0] &= !CONTROL_AUX_DISABLE,
            // Mouse port test: clock line stuck low, since there is no such port.
            0xa9 => self.answer(0x01),
            0xaa => {
                self.ram[0] |= CONTROL_SYSTEM;
                self.answer(SELF_TEST_PASSED);
            }
            // Keyboard port test: no error.
            0xab => self.answer(0x00),
            0xad => self.ram[0] |= CONTROL_KEYBOARD_DISABLE,
            0xae => self.ram[0] &= !CONTROL_KEYBOARD_DISABLE,
            // Input port: keyboard not inhibited.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port),
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::KeyboardLoop,
            0xd3 => self.expect = Expect::AuxLoop,
            0xd4 => self.expect = Expect::Nothing,
            0xdd => self.output_port &= !OUTPUT_A20,
            0xdf => self.output_port |= OUTPUT_A20,
            // Pulse the output lines whose bit is clear; bit 0 is the CPU's reset.
            0xf0..=0xff if command & OUTPUT_NO_RESET == 0 => self.reset_machine(),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Keyboard => {
                // A byte to the keyboard enables its port.
                self.ram[0] &= !CONTROL_KEYBOARD_DISABLE;
                self.keyboard_command(value);
            }
            Expect::Ram(index) => self.ram[usize::from(index)] = value,
            Expect::OutputPort => {
                self.output_port = value;
                if value & OUTPUT_NO_RESET == 0 {
                    self.reset_machine();
                }
            }
            Expect::KeyboardLoop => {
                self.output = Some(Byte {
                    value,
                    from_keyboard: true,
                });
            }
            Expect::AuxLoop => self.answer(value),
            Expect::Nothing => {}
        }
    }

    fn keyboard_command(&mut self, value: u8) {
        match self.keyboard_argument.take() {
            Some(KeyboardArgument::Accept) => return self.send(&[ACK]),
            Some(KeyboardArgument::ScancodeSet) => match value {
                0 => return self.send(&[ACK, self.scancode_set]),
                1..=3 => {
                    self.scancode_set = value;
                    return self.send(&[ACK]);
                }
                _ => return self.send(&[RESEND]),
            },
            None => {}
        }
        match value {
            // LEDs, typematic rate, per-key types.
            0xed | 0xf3 | 0xfb..=0xfd => {
                self.keyboard_argument = Some(KeyboardArgument::Accept);
                self.send(&[ACK]);
            }
            0xf0 => {
                self.keyboard_argument = Some(KeyboardArgument::ScancodeSet);
                self.send(&[ACK]);
            }
            0xee => self.send(&[0xee]),
            // Identify: an MF2 keyboard.
            0xf2 => self.send(&[ACK, 0xab, 0x83]),
            // Enable, types of all keys.
            0xf4 | 0xf7..=0xfa => self.send(&[ACK]),
            // Disable, defaults: both drop queued bytes.
            0xf5 | 0xf6 => {
                self.keyboard.clear();
                self.scancode_set = 2;
                self.send(&[ACK]);
            }
            RESEND => self.send(&[self.keyboard_last]),
            0xff => {
                self.keyboard.clear();
                self.scancode_set = 2;
                self.send(&[ACK, KEYBOARD_TEST_PASSED]);
            }
            _ => self.send(&[RESEND]),
        }
    }

    /// From the keyboard. Beyond its buffer, bytes are lost.
    fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.keyboard.len() < KEYBOARD_QUEUE {
                self.keyboard.push_back(*byte);
            }
        }
    }

    /// From the controller itself. A second reply replaces one that was not read.
    fn answer(&mut self, value: u8) {
        self.reply = Some(value);
    }

    fn reset_machine(&self) {
        self.events.report(GuestEvent::Reset {
            by: "keyboard controller",
        });
    }

    /// Fills the data port if it is free, and drives the line.
    fn update(&mut self) {
        if self.output.is_none() {
            if let Some(value) = self.reply.take() {
                self.output = Some(Byte {
                    value,
                    from_keyboard: false,
                });
            } else if self.control() & CONTROL_KEYBOARD_DISABLE == 0
                && let Some(value) = self.keyboard.pop_front()
            {
                self.keyboard_last = value;
                self.output = Some(Byte {
                    value: self.translate(value),
                    from_keyboard: true,
                });
            }
        }
        let enabled = self.control() & CONTROL_KEYBOARD_INTERRUPT != 0;
        // Only the keyboard's bytes interrupt: drivers poll for the controller's replies.
        self.irq
            .set(enabled && self.output.is_some_and(|byte| byte.from_keyboard));
    }

    /// Set 2 to set 1, as far as the bytes that this keyboard sends differ between them.
    fn translate(&self, value: u8) -> u8 {
        if self.control() & CONTROL_TRANSLATE == 0 {
            return value;
        }
        match value {
            0x83 => 0x41,
            0x01 => 0x43,
            0x02 => 0x41,
            0x03 => 0x3f,
            other => other,
        }
    }
}

impl LockedDevice for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn reset(&mut self) {
        *self = Self::new(self.irq.clone(), self.events.clone());
        self.update();
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8]) {
        let Some(byte) = data.first_mut() else { return };
        match (region, offset) {
            (DATA, 0) => {
                if let Some(output) = self.output.take() {
                    self.last_read = output.value;
                }
                *byte = self.last_read;
                // Low between two bytes, so that the next one makes an edge.
                self.irq.set(false);
                self.update();
            }
            (COMMAND, 0) => {
                *byte = STATUS_UNLOCKED
                    | (self.control() & STATUS_SYSTEM)
                    | if self.output.is_some() {
                        STATUS_OUTPUT_FULL
                    } else {
                        0
                    }
                    | if self.last_was_command {
                        STATUS_COMMAND
                    } else {
                        0
                    };
            }
            _ => {}
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match (region, offset) {
            (DATA, 0) => self.data(value),
            (COMMAND, 0) => self.command(value),
            _ => return,
        }
        self.update();
    }

    fn save(&self, to: &mut Encoder) {
        to.array(&self.ram);
        to.u8(self.output_port);
        for byte in [self.output.map(|byte| byte.value), self.reply] {
            to.bool(byte.is_some());
            to.u8(byte.unwrap_or(0));
        }
        to.bool(self.output.is_some_and(|byte| byte.from_keyboard));
        to.u8(self.last_read);
        to.bool(self.last_was_command);
        to.array(&self.expect.code());
        to.bytes(&self.keyboard.iter().copied().collect::<Vec<_>>());
        to.u8(self.keyboard_last);
        to.u8(match self.keyboard_argument {
            None => 0,
            Some(KeyboardArgument::Accept) => 1,
            Some(KeyboardArgument::ScancodeSet) => 2,
        });
        to.u8(self.scancode_set);
    }

    fn load(&mut self, from: &mut Decoder<'_>) -> Result<(), StateError> {
        self.ram = from.array("RAM")?;
        self.output_port = from.u8("output port")?;
        let mut byte = |item| {
            let there = from.bool(item)?;
            from.u8(item).map(|value| there.then_some(value))
        };
        let (output, reply) = (byte("output")?, byte("reply")?);
        let from_keyboard = from.bool("source of the output")?;
        self.output = output.map(|value| Byte {
            value,
            from_keyboard,
        });
        self.reply = reply;
        self.last_read = from.u8("last byte read")?;
        self.last_was_command = from.bool("last byte written")?;
        let expect = from.array("expected byte")?;
        self.expect = Expect::from_code(expect)
            .ok_or_else(|| from.invalid("expected byte", format!("{expect:?} is nothing")))?;
        let keyboard = from.bytes("keyboard buffer")?;
        if keyboard.len() > KEYBOARD_QUEUE {
            return Err(from.invalid("keyboard buffer", format!("{} bytes", keyboard.len())));
        }
        self.keyboard.clear();
        self.keyboard.extend(keyboard);
        self.keyboard_last = from.u8("last scan code")?;
        self.keyboard_argument = match from.u8("keyboard argument")? {
            0 => None,
            1 => Some(KeyboardArgument::Accept),
            2 => Some(KeyboardArgument::ScancodeSet),
            other => return Err(from.invalid("keyboard argument", format!("{other}"))),
        };
        self.scancode_set = match from.u8("scan code set")? {
            set @ 1..=3 => set,
            other => return Err(from.invalid("scan code set", format!("{other}"))),
        };
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
