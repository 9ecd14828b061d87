//! Why nested Hyper-V will or will not work on this host, in words a user can act on.
