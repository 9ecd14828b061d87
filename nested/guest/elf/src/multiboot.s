# Multiboot 0.6.96, section 3.1: magic, flags, checksum. Flag 16: the addresses below are valid, so that the loader
# need not understand a 64-bit ELF. Flag 1: the loader gives the memory size.
.set FLAGS, (1 << 16) | (1 << 1)
.section .multiboot, "a"
.balign 4
multiboot_header:
    .long 0x1BADB002
    .long FLAGS
    .long -(0x1BADB002 + FLAGS)
    .long multiboot_header
    .long image_start
    .long image_data_end
    .long image_end
    .long start32
.text
