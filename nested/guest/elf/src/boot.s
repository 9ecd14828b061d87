# Entry from a PVH or Multiboot loader: 32-bit protected mode, flat segments, paging off, EBX = start information
# (Xen "x86/HVM direct boot ABI"; Multiboot 0.6.96 section 3.2, with the magic in EAX).

.section .boot, "ax"
.code32
.global start32
start32:
    movl %eax, %esi             # kept for boot_processor
    movl ${console}, %edx
    movb ${alive}, %al
    outb %al, %dx
    cli
    cld
    # A loader that boots the image again after a reset need not clear it.
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl
    movl $boot64, %edi
    jmp enter_long_mode

# An application processor in flat protected mode.
ap32:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $ap64, %edi

# To long mode, then to the address in EDI. Keeps EBX and ESI.
enter_long_mode:
    lgdt gdt_pointer
    movl $0x620, %eax           # CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx      # EFER: LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80010033, %eax      # CR0: PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $0x08, $long_mode

.code64
long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %edi, %edi
    jmp *%rdi

boot64:
    leaq stacks + {stack_size}(%rip), %rsp
    xorl %ebp, %ebp
    movl %esi, %edi
    movl %ebx, %esi
    pushq $0                    # a return address: the ABI wants RSP = 8 modulo 16 at a function's entry
    jmp boot_processor

ap64:
    movl $1, %edi
    lock xaddl %edi, ap_next(%rip)
    cmpl ${max_cpus}, %edi
    jae 1f
    movl %edi, %eax
    incl %eax
    imull ${stack_size}, %eax, %eax
    leaq stacks(%rip), %rsp
    addq %rax, %rsp
    xorl %ebp, %ebp
    pushq $0
    jmp application_processor
1:  cli
    hlt
    jmp 1b

# Copied below 1 MiB; an application processor starts it in real mode with CS = its page.
.section .rodata.trampoline, "a"
.global trampoline_start, trampoline_end
.code16
trampoline_start:
    cli
    lgdtl %cs:(trampoline_gdt - trampoline_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $ap32
.balign 4
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:
.code64

.section .data.boot, "aw"
.balign 8
gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF    # 0x08: 64-bit code
    .quad 0x00CF93000000FFFF    # 0x10: data
    .quad 0x00CF9B000000FFFF    # 0x18: 32-bit code
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.balign 4
ap_next:
    .long 1                     # the boot processor is 0

# The first 4 GiB, mapped one to one by 2 MiB pages: present, writable, accessed, dirty.
.balign 4096
pml4:
    .quad pdpt + 0x23
    .fill 511, 8, 0
pdpt:
    .quad pd + 0x0023
    .quad pd + 0x1023
    .quad pd + 0x2023
    .quad pd + 0x3023
    .fill 508, 8, 0
pd:
    .set frame, 0
    .rept 2048
    .quad frame + 0xE3
    .set frame, frame + 0x200000
    .endr

.section .stacks, "aw", @nobits
.balign 4096
stacks:
    .skip {max_cpus} * {stack_size}

# What else the linker puts into this file's unit of assembly expects the usual state.
.code64
.text
