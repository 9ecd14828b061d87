//! What kvm-ioctls lacks, and the host's capabilities as named fields.
