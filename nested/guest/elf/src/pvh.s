# The PVH entry, announced as Xen's ELF note for its physical 32-bit entry point.
.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18              # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start32
.text
