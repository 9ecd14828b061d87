# What the compiler expects of a C library, with the System V calling convention: RDI, RSI, RDX in, RAX out.
.text
.global memcpy, memmove, memset, memcmp, bcmp

memmove:
    movq %rdi, %rax
    subq %rsi, %rax
    cmpq %rdx, %rax             # unsigned: less only if the target begins inside of the source
    jb 1f
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
1:  movq %rdi, %rax
    movq %rdx, %rcx
    leaq -1(%rdi,%rdx), %rdi
    leaq -1(%rsi,%rdx), %rsi
    std
    rep movsb
    cld
    ret

memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret

memcmp:
bcmp:
    xorl %eax, %eax
    movq %rdx, %rcx
    cmpq %rax, %rax             # equal if there is nothing to compare
    repe cmpsb
    je 1f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    subl %ecx, %eax
1:  ret
