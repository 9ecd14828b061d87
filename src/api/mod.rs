//! The control socket and the run directory: how a running VM is found and told what to do.
