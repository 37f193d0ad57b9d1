// SPDX-License-Identifier: Apache-2.0
// A boot sector for a guest of 64 MiB that never comes to rest: it writes to each page from 16 to 48 MiB, over and over.
// Between two rounds it waits for the next tick (55 ms), or a few such guests would take all CPUs of the machine.
.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $flat
.code32
flat:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %ss
    movl $0x7000, %esp
    lidt idt_pointer
    movb $0xfe, %al         // of all interrupts only that of the timer
    outb %al, $0x21
    movb $0xff, %al
    outb %al, $0xa1
again:
    movl $0x1000000, %edi
page:
    incl (%edi)
    movl %edi, 4(%edi)      // no two pages alike, and none zero: nothing to compress
    addl $4096, %edi
    cmpl $0x3000000, %edi
    jb page
    sti
    hlt
    cli
    jmp again
tick:
    pushl %eax
    movb $0x20, %al
    outb %al, $0x20
    popl %eax
    iret
.balign 8
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
idt:                        // the timer is interrupt 8, as the BIOS leaves it
    .fill 8, 8, 0
    .word tick, 8, 0x8e00, 0
idt_pointer:
    .word idt_pointer - idt - 1
    .long idt
.org 510
    .word 0xaa55
