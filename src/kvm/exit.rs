//! The payloads of exits that `VcpuExit` names without showing.
//!
//! Each function reads the union in the vCPU's `kvm_run` page that goes with its exit reason, and answers `None` for any
//! other reason. Nothing here allocates.

use kvm_bindings::{
    KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNDBG, KVM_EXIT_HYPERV_SYNIC,
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_NOTIFY, KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::VcpuFd;

use crate::units::{Gpa, Msr};

/// A `KVM_EXIT_HYPERV`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervExit {
    /// The guest wrote SCONTROL, SIEFP or SIMP; KVM has stored the value already.
    Synic {
        /// Which of them.
        msr: Msr,
        /// The value of SCONTROL.
        control: u64,
        /// The value of SIEFP.
        event_page: u64,
        /// The value of SIMP.
        message_page: u64,
    },
    /// A hypercall that KVM leaves to user space, which answers through [`set_hypercall_result`].
    Hypercall {
        /// The input value: call code, flags, counts.
        input: u64,
        /// The input page's address, or the first parameter of a fast call.
        input_param: u64,
        /// The output page's address, or the second parameter of a fast call.
        output_param: u64,
    },
    /// The guest wrote a synthetic debugger MSR; user space answers through [`set_syndbg_status`].
    Syndbg {
        /// CONTROL or PENDING_BUFFER.
        msr: Msr,
        /// The value of CONTROL.
        control: u64,
        /// The page to send from.
        send_page: Gpa,
        /// The page to receive into.
        recv_page: Gpa,
        /// The page that says whether something waits.
        pending_page: Gpa,
    },
    /// A kind that is newer than this code.
    Unknown(u32),
}

/// A `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    words: [u64; 16],
    count: usize,
}

impl InternalError {
    /// The words that KVM added for debugging; what they mean depends on `suberror` and the kernel's version.
    pub fn data(&self) -> &[u64] {
        self.words.get(..self.count).unwrap_or(&self.words)
    }

    /// What the suberror means.
    pub fn meaning(&self) -> &'static str {
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate an instruction",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions came together that cannot come together",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM could not deliver an event to the guest",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                "the CPU left the guest for a reason that KVM does not know"
            }
            _ => "a kind of error that is newer than hypernest",
        }
    }

    /// The instruction bytes at the guest's instruction pointer, when KVM added them (`emulation_failure` in kvm.h): word 0
    /// holds flags, then come a length byte and 15 bytes of instruction.
    pub fn instruction(&self) -> Option<([u8; 15], usize)> {
        let with_bytes = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let [flags, first, second, ..] = self.data() else {
            return None;
        };
        if self.suberror != KVM_INTERNAL_ERROR_EMULATION || flags & with_bytes == 0 {
            return None;
        }
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&first.to_ne_bytes());
        raw[8..].copy_from_slice(&second.to_ne_bytes());
        let [length, bytes @ ..] = raw;
        Some((bytes, usize::from(length).min(bytes.len())))
    }
}

/// The payload of `KVM_EXIT_HYPERV`.
pub fn hyperv(vcpu: &mut VcpuFd) -> Option<HypervExit> {
    read_hyperv(vcpu.get_kvm_run())
}

fn read_hyperv(run: &kvm_run) -> Option<HypervExit> {
    if run.exit_reason != KVM_EXIT_HYPERV {
        return None;
    }
    // SAFETY: the exit reason says that this member is the current one; it holds integers only, so any bits are valid.
    let exit = unsafe { run.__bindgen_anon_1.hyperv };
    Some(match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            // SAFETY: the type says that this member is the current one; integers only.
            let synic = unsafe { exit.u.synic };
            HypervExit::Synic {
                msr: Msr(synic.msr),
                control: synic.control,
                event_page: synic.evt_page,
                message_page: synic.msg_page,
            }
        }
        KVM_EXIT_HYPERV_HCALL => {
            // SAFETY: the type says that this member is the current one; integers only.
            let call = unsafe { exit.u.hcall };
            HypervExit::Hypercall {
                input: call.input,
                input_param: call.params[0],
                output_param: call.params[1],
            }
        }
        KVM_EXIT_HYPERV_SYNDBG => {
            // SAFETY: the type says that this member is the current one; integers only.
            let debug = unsafe { exit.u.syndbg };
            HypervExit::Syndbg {
                msr: Msr(debug.msr),
                control: debug.control,
                send_page: Gpa(debug.send_page),
                recv_page: Gpa(debug.recv_page),
                pending_page: Gpa(debug.pending_page),
            }
        }
        other => HypervExit::Unknown(other),
    })
}

/// Answers a [`HypervExit::Hypercall`]: the guest finds `result` (status in bits 15:0, repetitions done in 43:32) when the
/// vCPU runs again.
pub fn set_hypercall_result(vcpu: &mut VcpuFd, result: u64) {
    vcpu.get_kvm_run().__bindgen_anon_1.hyperv.u.hcall.result = result;
}

/// Answers a [`HypervExit::Syndbg`]: the value of the STATUS MSR when the vCPU runs again.
pub fn set_syndbg_status(vcpu: &mut VcpuFd, status: u64) {
    vcpu.get_kvm_run().__bindgen_anon_1.hyperv.u.syndbg.status = status;
}

/// The payload of `KVM_EXIT_INTERNAL_ERROR`.
pub fn internal_error(vcpu: &mut VcpuFd) -> Option<InternalError> {
    read_internal_error(vcpu.get_kvm_run())
}

fn read_internal_error(run: &kvm_run) -> Option<InternalError> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason says that this member is the current one; it holds integers only, so any bits are valid.
    let error = unsafe { run.__bindgen_anon_1.internal };
    Some(InternalError {
        suberror: error.suberror,
        words: error.data,
        count: usize::try_from(error.ndata)
            .unwrap_or(usize::MAX)
            .min(error.data.len()),
    })
}

/// The flags of `KVM_EXIT_NOTIFY` (bit 0: the guest's context is no longer valid).
pub fn notify_flags(vcpu: &mut VcpuFd) -> Option<u32> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_NOTIFY {
        return None;
    }
    // SAFETY: the exit reason says that this member is the current one; an integer.
    Some(unsafe { run.__bindgen_anon_1.notify }.flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::{KVM_EXIT_HLT, kvm_hyperv_exit};

    fn hyperv_run(exit: kvm_hyperv_exit) -> kvm_run {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_HYPERV,
            ..Default::default()
        };
        run.__bindgen_anon_1.hyperv = exit;
        run
    }

    #[test]
    fn a_hypercall_shows_its_input_and_parameters() {
        let mut exit = kvm_hyperv_exit {
            type_: KVM_EXIT_HYPERV_HCALL,
            ..Default::default()
        };
        exit.u.hcall.input = 0x5c;
        exit.u.hcall.params = [0x1000, 0x2000];
        assert_eq!(
            read_hyperv(&hyperv_run(exit)),
            Some(HypervExit::Hypercall {
                input: 0x5c,
                input_param: 0x1000,
                output_param: 0x2000
            })
        );
    }

    #[test]
    fn a_synic_write_shows_the_register_and_the_pages() {
        let mut exit = kvm_hyperv_exit {
            type_: KVM_EXIT_HYPERV_SYNIC,
            ..Default::default()
        };
        exit.u.synic.msr = 0x4000_0083;
        exit.u.synic.control = 1;
        exit.u.synic.evt_page = 0x3001;
        exit.u.synic.msg_page = 0x4001;
        assert_eq!(
            read_hyperv(&hyperv_run(exit)),
            Some(HypervExit::Synic {
                msr: Msr(0x4000_0083),
                control: 1,
                event_page: 0x3001,
                message_page: 0x4001
            })
        );
    }

    #[test]
    fn a_debugger_write_shows_its_pages() {
        let mut exit = kvm_hyperv_exit {
            type_: KVM_EXIT_HYPERV_SYNDBG,
            ..Default::default()
        };
        exit.u.syndbg.msr = 0x4000_00f1;
        exit.u.syndbg.control = 3;
        exit.u.syndbg.send_page = 0x1000;
        exit.u.syndbg.recv_page = 0x2000;
        exit.u.syndbg.pending_page = 0x3000;
        assert_eq!(
            read_hyperv(&hyperv_run(exit)),
            Some(HypervExit::Syndbg {
                msr: Msr(0x4000_00f1),
                control: 3,
                send_page: Gpa(0x1000),
                recv_page: Gpa(0x2000),
                pending_page: Gpa(0x3000)
            })
        );
    }

    #[test]
    fn other_types_and_other_reasons_are_told_apart() {
        let exit = kvm_hyperv_exit {
            type_: 77,
            ..Default::default()
        };
        let mut run = hyperv_run(exit);
        assert_eq!(read_hyperv(&run), Some(HypervExit::Unknown(77)));
        run.exit_reason = KVM_EXIT_HLT;
        assert_eq!(read_hyperv(&run), None);
        assert_eq!(read_internal_error(&run), None);
    }

    fn error_run(suberror: u32, ndata: u32, data: [u64; 16]) -> kvm_run {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_INTERNAL_ERROR,
            ..Default::default()
        };
        run.__bindgen_anon_1.internal.suberror = suberror;
        run.__bindgen_anon_1.internal.ndata = ndata;
        run.__bindgen_anon_1.internal.data = data;
        run
    }

    #[test]
    fn an_emulation_failure_shows_the_instruction() {
        let mut data = [0; 16];
        data[0] = 1;
        data[1] = u64::from_ne_bytes([3, 0x0f, 0x01, 0xf9, 0xcc, 0, 0, 0]);
        let error = read_internal_error(&error_run(1, 3, data)).unwrap();
        let (bytes, length) = error.instruction().unwrap();
        assert_eq!(&bytes[..length], &[0x0f, 0x01, 0xf9]);
        assert_eq!(error.data().len(), 3);
    }

    #[test]
    fn counts_and_lengths_from_outside_are_bounded() {
        let mut data = [u64::MAX; 16];
        data[0] = 1;
        let error = read_internal_error(&error_run(1, u32::MAX, data)).unwrap();
        assert_eq!(error.data().len(), 16);
        assert_eq!(error.instruction().unwrap().1, 15);
        let error = read_internal_error(&error_run(1, 2, data)).unwrap();
        assert_eq!(error.instruction(), None);
        let error = read_internal_error(&error_run(3, 16, data)).unwrap();
        assert_eq!(error.instruction(), None);
    }
}
