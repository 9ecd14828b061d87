//! The platform's devices. None of them knows KVM.
