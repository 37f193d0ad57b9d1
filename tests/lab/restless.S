// SPDX-License-Identifier: Apache-2.0
// A boot sector for a guest of 64 MiB that never comes to rest: it writes to each page from 16 to 48 MiB, over and over.
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
again:
    movl $0x1000000, %edi
page:
    incl (%edi)
    movl %edi, 4(%edi)      // no two pages alike, and none zero: nothing to compress
    addl $4096, %edi
    cmpl $0x3000000, %edi
    jb page
    jmp again
.balign 8
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
.org 510
    .word 0xaa55
