/* SPDX-License-Identifier: GPL-2.0-only */
/* The processor. arch/ has a file for each, and all of them define the same names. */
#ifndef SEAL_MONITOR_ARCH_H
#define SEAL_MONITOR_ARCH_H

#include "definitions.h"

/* The system call that a task is in. Its registers are known in arch/ alone. */
struct call {
    u64 arguments[6];
    s64 result;
    u64 operation;
    u64 number;
    u64 compat; /* not 0: a 32-bit system call */
};

#define SI_KERNEL 0x80 /* include/uapi/asm-generic/siginfo.h */

#if defined(__x86_64__)
#include "arch/x86_64.h"
#elif defined(__aarch64__)
#include "arch/arm64.h"
#else
#error "bpf/arch/ has no file for this processor"
#endif

#define PAGE_BYTES (1ULL << PAGE_SHIFT)
#define PAGE_ALIGN_DOWN(x) ((u64)(x) & ~(PAGE_BYTES - 1))
#define PAGE_ALIGN(x) PAGE_ALIGN_DOWN((u64)(x) + PAGE_BYTES - 1)
/* bcc's, a constant: the ring buffer that it makes has whole pages on every kernel. */
#define PAGE_SIZE (1 << PAGE_SHIFT_MAX)

#endif
