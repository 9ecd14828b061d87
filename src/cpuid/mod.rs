//! Host CPUID and feature MSRs -> the guest's, by named masks.
