//! The platform's devices. They do not depend on KVM: each handles accesses from the bus, drives its
//! interrupt lines, and reports events of the VM as a whole through a
//! [`GuestEvents`](crate::life::GuestEvents).
//!
//! ```text
//!   vCPU ──► bus ──► Serial, Cmos, AcpiPm, …        (one lock: the device's own)
//!                       ▲      │ Waker
//!                       │      ▼
//!                    IoThread: input, output, deadlines ──► terminal, file, pty, socket
//! ```

pub mod acpi_pm;
pub mod balloon;
pub mod char;
pub mod clock;
pub mod cmos;
pub mod console;
pub mod debug;
pub mod disk;
pub mod flash;
pub mod fw_cfg;
pub mod i8042;
pub mod io_thread;
pub mod net;
pub mod port61;
pub mod port92;
pub mod post;
pub mod pvpanic;
pub mod serial;
pub mod state;
pub mod table;

#[cfg(test)]
pub(crate) mod testing;
