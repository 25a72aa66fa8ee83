#ifdef __x86_64__
asm(R"(
    .text
    .globl ofa_emulation_switch
    .hidden ofa_emulation_switch
    .type ofa_emulation_switch, @function
ofa_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size ofa_emulation_switch, . - ofa_emulation_switch
)");
#endif
