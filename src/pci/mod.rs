//! The PCI host bridge: configuration space through CF8/CFC and ECAM.
