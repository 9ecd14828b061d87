//! A machine's devices without a VM: to see whether a saved state is one of theirs.

use std::sync::Arc;
use std::time::Duration;

use super::error::MachineError;
use super::lines::{CurrentVm, KernelLines, Messages};
use super::wiring;
use crate::config::{Irqchip, VmConfig};
use crate::devices;
use crate::devices::char::CharBackend;
use crate::devices::io_thread::IoThread;
use crate::irq::IrqSink;
use crate::irq::ioapic::IoApic;
use crate::life::LifeHandle;
use crate::machine::TransferError;
use crate::state::Sections;

/// Loads the devices of a VM of `config`, which are connected to nothing, from their sections and takes these out.
///
/// # Errors
/// If a section is missing, or cannot be what it says.
pub fn check_devices(config: &VmConfig, sections: &mut Sections) -> Result<(), TransferError> {
    let nobody = || CharBackend::None;
    let config = VmConfig {
        serial: [nobody(), nobody()],
        debugcon: config.debugcon.as_ref().map(|_| nobody()),
        ..config.clone()
    };
    let failed = |e: MachineError| TransferError::Devices(Box::new(e));
    let life = LifeHandle::channel().0;
    let lines = CurrentVm::default();
    let ioapic = (config.irqchip == Irqchip::Split)
        .then(|| Arc::new(IoApic::new(Arc::new(Messages(lines.clone())))));
    let sink: Arc<dyn IrqSink> = match &ioapic {
        Some(ioapic) => Arc::clone(ioapic) as _,
        None => Arc::new(KernelLines(lines)),
    };
    let mut io = IoThread::new(life.clone()).map_err(|source| {
        failed(MachineError::Thread {
            what: "I/O",
            source,
        })
    })?;
    let wired =
        wiring::wire(&config, &[], &sink, ioapic.as_ref(), &life, &mut io).map_err(failed)?;
    devices::state::load(&wired.devices, &wired.clock, Duration::ZERO, sections)?;
    Ok(())
}
