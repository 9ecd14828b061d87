//! Kernels, ACPI and SMBIOS tables, written into guest RAM, and the registers that the boot vCPU starts with.
