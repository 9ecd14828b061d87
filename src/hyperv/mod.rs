//! The Hyper-V enlightenments: one table, its resolution, the CPUID leaves, and the synthetic MSRs that hypernest owns.
