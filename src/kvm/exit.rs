//! One KVM_RUN and its exit, as a plain enum.
//!
//! kvm-ioctls decodes most exits; the rest (the element size of string port I/O, the payloads of
//! KVM_EXIT_HYPERV and KVM_EXIT_INTERNAL_ERROR) is read from `kvm_run` here.

use kvm_bindings::{
    KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNDBG, KVM_EXIT_HYPERV_SYNIC, kvm_hyperv_exit, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::internal_error::{InternalError, read_internal_error};

/// Why KVM_RUN returned. Result fields are borrowed from `kvm_run`; the caller sets them before the next
/// KVM_RUN.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `in`, or `rep ins`: `data` holds elements of `size` bytes to be filled, in order.
    PortIn {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// A multiple of `size` bytes.
        data: &'a mut [u8],
    },
    /// `out`, or `rep outs`.
    PortOut {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// A multiple of `size` bytes.
        data: &'a [u8],
    },
    /// A load from an address without RAM.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// 1..=8 bytes to be filled.
        data: &'a mut [u8],
    },
    /// A store to an address without RAM.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// 1..=8 bytes.
        data: &'a [u8],
    },
    /// RDMSR of a filtered or unknown register.
    Rdmsr {
        /// Its number.
        msr: u32,
        /// The result.
        data: &'a mut u64,
        /// Non-zero: inject #GP instead.
        error: &'a mut u8,
    },
    /// WRMSR of a filtered or unknown register.
    Wrmsr {
        /// Its number.
        msr: u32,
        /// The value written.
        data: u64,
        /// Non-zero: inject #GP.
        error: &'a mut u8,
    },
    /// The guest reconfigured its SynIC (`KVM_EXIT_HYPERV_SYNIC`).
    Synic {
        /// The register's number.
        msr: u32,
    },
    /// A hypercall that KVM leaves to user space (`KVM_EXIT_HYPERV_HCALL`).
    HvHypercall {
        /// The hypercall input value (TLFS: code, flags, rep count and start).
        input: u64,
        /// Input and output parameter registers.
        params: [u64; 2],
        /// The hypercall result value.
        result: &'a mut u64,
    },
    /// The guest wrote a synthetic-debugger control register (`KVM_EXIT_HYPERV_SYNDBG`).
    Syndbg,
    /// HLT, when the LAPIC is not in the kernel.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// Reset or crash through Hyper-V's MSRs, or another `KVM_SYSTEM_EVENT_*`.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*`.
        kind: u32,
    },
    /// End of interrupt for a vector that the user-space I/O APIC sent.
    IoapicEoi {
        /// The vector.
        vector: u8,
    },
    /// The vCPU's dirty ring has no more room (`KVM_EXIT_DIRTY_RING_FULL`).
    DirtyRingFull,
    /// KVM_RUN returned early: a signal, or `immediate_exit`.
    Interrupted,
    /// KVM cannot continue (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError(InternalError),
    /// The CPU refused to enter the guest.
    FailEntry {
        /// The VMX instruction error or SVM exit code.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// The guest touched memory that KVM could not map.
    MemoryFault {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// errno.
        errno: i32,
    },
    /// An exit that this VM did not enable.
    Unexpected {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

/// Enters the guest and waits for the next exit.
pub fn run(vcpu: &mut VcpuFd) -> Exit<'_> {
    // Exits that `VcpuExit` does not decode are read after it has been dropped, since it borrows the vCPU.
    enum Rest {
        PortIn(u16, *mut u8, usize),
        PortOut(u16, *const u8, usize),
        Hyperv,
        InternalError,
        Other,
    }
    let rest = match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => Rest::PortIn(port, data.as_mut_ptr(), data.len()),
        Ok(VcpuExit::IoOut(port, data)) => Rest::PortOut(port, data.as_ptr(), data.len()),
        Ok(VcpuExit::Hyperv) => Rest::Hyperv,
        Ok(VcpuExit::InternalError) => Rest::InternalError,
        Ok(VcpuExit::Intr) => return Exit::Interrupted,
        Ok(VcpuExit::Hlt) => return Exit::Hlt,
        Ok(VcpuExit::Shutdown) => return Exit::Shutdown,
        Ok(VcpuExit::SystemEvent(kind, _)) => return Exit::SystemEvent { kind },
        Ok(VcpuExit::IoapicEoi(vector)) => return Exit::IoapicEoi { vector },
        Ok(VcpuExit::FailEntry(reason, cpu)) => return Exit::FailEntry { reason, cpu },
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => return Exit::MemoryFault { gpa, size },
        Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
            return Exit::Interrupted;
        }
        Err(e) => return Exit::RunFailed { errno: e.errno() },
        Ok(_) => Rest::Other,
    };
    let run = vcpu.get_kvm_run();
    match rest {
        Rest::PortIn(port, data, len) => {
            // SAFETY: KVM_RUN ended with KVM_EXIT_IO, so `io` is the valid member of the union.
            let size = usize::from(unsafe { run.__bindgen_anon_1.io.size });
            // SAFETY: `data` and `len` come from a slice inside the vCPU's kvm_run mapping, which lives as
            // long as the vCPU that the result borrows; the slice itself is gone, so this is the only
            // reference.
            let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
            Exit::PortIn { port, size, data }
        }
        Rest::PortOut(port, data, len) => {
            // SAFETY: as for PortIn.
            let size = usize::from(unsafe { run.__bindgen_anon_1.io.size });
            // SAFETY: as for PortIn.
            let data = unsafe { std::slice::from_raw_parts(data, len) };
            Exit::PortOut { port, size, data }
        }
        Rest::Hyperv => {
            // SAFETY: KVM_RUN ended with KVM_EXIT_HYPERV, so `hyperv` is the valid member of the union.
            hyperv(unsafe { &mut run.__bindgen_anon_1.hyperv })
        }
        Rest::InternalError => match read_internal_error(run) {
            Some(error) => Exit::InternalError(error),
            None => Exit::Unexpected {
                reason: run.exit_reason,
            },
        },
        Rest::Other => other(run),
    }
}

fn hyperv(exit: &mut kvm_hyperv_exit) -> Exit<'_> {
    match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            // SAFETY: for this type, `synic` is the valid member.
            let msr = unsafe { exit.u.synic.msr };
            Exit::Synic { msr }
        }
        KVM_EXIT_HYPERV_HCALL => {
            // SAFETY: for this type, `hcall` is the valid member.
            let call = unsafe { &mut exit.u.hcall };
            Exit::HvHypercall {
                input: call.input,
                params: call.params,
                result: &mut call.result,
            }
        }
        KVM_EXIT_HYPERV_SYNDBG => Exit::Syndbg,
        _ => Exit::Unexpected {
            reason: kvm_bindings::KVM_EXIT_HYPERV,
        },
    }
}

/// MMIO and MSR exits: kvm-ioctls decodes them, but its borrow could not be returned from [`run`]'s first
/// match.
fn other(run: &mut kvm_run) -> Exit<'_> {
    match run.exit_reason {
        kvm_bindings::KVM_EXIT_MMIO => {
            // SAFETY: for this exit reason, `mmio` is the valid member of the union.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let len = usize::try_from(mmio.len).map_or(0, |n| n.min(mmio.data.len()));
            let data = &mut mmio.data[..len];
            if mmio.is_write == 0 {
                Exit::MmioRead {
                    addr: mmio.phys_addr,
                    data,
                }
            } else {
                Exit::MmioWrite {
                    addr: mmio.phys_addr,
                    data,
                }
            }
        }
        kvm_bindings::KVM_EXIT_DIRTY_RING_FULL => Exit::DirtyRingFull,
        reason @ (kvm_bindings::KVM_EXIT_X86_RDMSR | kvm_bindings::KVM_EXIT_X86_WRMSR) => {
            // SAFETY: for this exit reason, `msr` is the valid member of the union.
            let exit = unsafe { &mut run.__bindgen_anon_1.msr };
            let error = &mut exit.error;
            if reason == kvm_bindings::KVM_EXIT_X86_RDMSR {
                Exit::Rdmsr {
                    msr: exit.index,
                    data: &mut exit.data,
                    error,
                }
            } else {
                Exit::Wrmsr {
                    msr: exit.index,
                    data: exit.data,
                    error,
                }
            }
        }
        reason => Exit::Unexpected { reason },
    }
}
