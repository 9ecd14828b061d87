//! Eventfds in place of interrupts (`KVM_IRQFD`) and of exits (`KVM_IOEVENTFD`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_irqfd,
};
use kvm_ioctls::VmFd;
use nix::sys::eventfd::EventFd;

use super::{KvmError, ioctl, ioctl_error};
use crate::sys;
use crate::units::Gsi;

/// A new eventfd whose reads do not block.
///
/// # Errors
/// If the process has no descriptors left.
pub fn new() -> Result<EventFd, KvmError> {
    sys::eventfd().map_err(ioctl_error("eventfd2", "create an eventfd"))
}

/// From now on a signal of `event` raises line `gsi` once. A signal that is already pending does so at once.
///
/// # Errors
/// If KVM refuses: the VM has no irqchip, or the eventfd raises another line.
pub fn assign_irq(vm: &VmFd, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
    irqfd(vm, event.as_fd(), gsi, 0, "let an eventfd interrupt")
}

/// Reverts [`assign_irq`]. When this returns, signals made before it are delivered, and those made after it
/// stay in `event`.
///
/// # Errors
/// If KVM refuses.
pub fn deassign_irq(vm: &VmFd, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
    let doing = "disconnect an eventfd from its interrupt";
    irqfd(vm, event.as_fd(), gsi, KVM_IRQFD_FLAG_DEASSIGN, doing)
}

fn irqfd(
    vm: &VmFd,
    event: BorrowedFd<'_>,
    gsi: Gsi,
    flags: u32,
    doing: &'static str,
) -> Result<(), KvmError> {
    let request = kvm_irqfd {
        fd: event.as_raw_fd().cast_unsigned(),
        gsi: gsi.0,
        flags,
        ..Default::default()
    };
    // SAFETY: the descriptor is a VM's, and KVM only reads the request.
    unsafe { ioctl::irqfd(vm.as_raw_fd(), &request) }
        .map(drop)
        .map_err(ioctl_error("KVM_IRQFD", doing))
}

/// A guest address of a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoAddress {
    /// In memory.
    Mmio(u64),
    /// An I/O port.
    Port(u16),
}

/// The writes that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// All writes, of any width and value. At an MMIO address KVM on Intel then need not decode the
    /// instruction (`kvm_fast_mmio_bus`, arch/x86/kvm/vmx/vmx.c handle_ept_misconfig).
    Any,
    /// Writes of 16 bits with this value.
    U16(u16),
    /// Writes of 32 bits with this value.
    U32(u32),
}

impl Match {
    /// Width in bytes, and value.
    fn parts(self) -> (u32, Option<u64>) {
        match self {
            Self::Any => (0, None),
            Self::U16(value) => (2, Some(value.into())),
            Self::U32(value) => (4, Some(value.into())),
        }
    }
}

/// From now on a matching write at `at` signals `event` and does not exit. The value written is lost.
///
/// # Errors
/// If KVM refuses: another eventfd has the same address, width and value, or there are too many.
pub fn assign_io(vm: &VmFd, event: &EventFd, at: IoAddress, which: Match) -> Result<(), KvmError> {
    ioeventfd(vm, event, at, which, 0, "let a write signal an eventfd")
}

/// Reverts [`assign_io`]; the arguments must be the same.
///
/// # Errors
/// If KVM refuses.
pub fn deassign_io(
    vm: &VmFd,
    event: &EventFd,
    at: IoAddress,
    which: Match,
) -> Result<(), KvmError> {
    let deassign = 1 << kvm_ioeventfd_flag_nr_deassign;
    let doing = "disconnect an eventfd from an address";
    ioeventfd(vm, event, at, which, deassign, doing)
}

fn ioeventfd(
    vm: &VmFd,
    event: &EventFd,
    at: IoAddress,
    which: Match,
    mut flags: u32,
    doing: &'static str,
) -> Result<(), KvmError> {
    let addr = match at {
        IoAddress::Mmio(addr) => addr,
        IoAddress::Port(port) => {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
            port.into()
        }
    };
    let (len, value) = which.parts();
    if value.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    let request = kvm_ioeventfd {
        datamatch: value.unwrap_or(0),
        addr,
        len,
        fd: event.as_fd().as_raw_fd(),
        flags,
        ..Default::default()
    };
    // SAFETY: the descriptor is a VM's, and KVM only reads the request.
    unsafe { ioctl::ioeventfd(vm.as_raw_fd(), &request) }
        .map(drop)
        .map_err(ioctl_error("KVM_IOEVENTFD", doing))
}
