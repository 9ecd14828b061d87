//! The payload of `KVM_EXIT_INTERNAL_ERROR`.

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};

/// A `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    words: [u64; 16],
    count: usize,
}

impl InternalError {
    /// The debugging data that KVM added; their meaning depends on `suberror` and the kernel's version.
    pub fn data(&self) -> &[u64] {
        self.words.get(..self.count).unwrap_or(&self.words)
    }

    /// The meaning of the suberror.
    pub fn meaning(&self) -> &'static str {
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "KVM could not emulate an instruction",
            KVM_INTERNAL_ERROR_SIMUL_EX => "KVM met an impossible combination of exceptions",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "KVM could not deliver an event to the guest",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                "the CPU exited the guest for a reason unknown to KVM"
            }
            _ => "an error code newer than this hypernest",
        }
    }

    /// The instruction bytes at the guest's instruction pointer, if KVM added them (`emulation_failure` in
    /// kvm.h): word 0 holds flags, then follow a length byte and 15 bytes of instruction.
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

/// Reads it; `None` if the last exit was another one.
pub(super) fn read_internal_error(run: &kvm_run) -> Option<InternalError> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: for this exit reason, this member is the valid one; it holds integers only, so any bits are
    // valid.
    let error = unsafe { run.__bindgen_anon_1.internal };
    Some(InternalError {
        suberror: error.suberror,
        words: error.data,
        count: usize::try_from(error.ndata)
            .unwrap_or(usize::MAX)
            .min(error.data.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
