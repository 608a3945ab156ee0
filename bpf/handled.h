/* SPDX-License-Identifier: GPL-2.0-only */
/* Faults that went to a handler of the process's own: the last one of each thread. */
#ifndef SEAL_MONITOR_HANDLED_H
#define SEAL_MONITOR_HANDLED_H

#include "arch.h"
#include "definitions.h"
#include "kernel.h"
#include "overflow.h"

#define SIGSEGV 11
#define SIGNAL_BIT(number) (1ULL << ((number)-1)) /* in a sigset_t */

struct handled {
    struct fault fault;
    u64 frame_pointer;
    u64 blocked;  /* signals, when it happened */
    u64 execs;    /* of the task: a handler may execute another program */
    u64 reported; /* not 0: it makes an event of its own */
};
BPF_TABLE("lru_hash", u64, struct handled, handled_faults, HANDLED_FAULTS_MAX);

/*
 * Whether the thread is still in the handler of that fault. A handler runs on the thread's
 * alternate stack; or below where the fault was, with its signal blocked, which the kernel takes
 * back when the handler returns, and siglongjmp() when it leaves. One that may be
 * interrupted by its own signal (SA_NODEFER) and has no stack of its own is not recognized.
 */
static __always_inline bool is_in_handler(struct task_struct *task, struct handled *first,
                                          struct pt_regs *regs)
{
    u64 stack = TASK_FIELD(u64, task, sas_ss_sp), size = TASK_FIELD(u64, task, sas_ss_size);
    u64 blocked = TASK_FIELD(u64, task, blocked);

    if (stack_pointer(regs) - stack < size && first->fault.stack_pointer - stack >= size)
        return true;
    return stack_pointer(regs) < first->fault.stack_pointer &&
           blocked & ~first->blocked & SIGNAL_BIT(SIGSEGV);
}

/* Whether the thread is where that fault was: what it did since has come to nothing. */
static __always_inline bool is_back(struct handled *first, struct pt_regs *regs)
{
    return instruction_pointer(regs) == first->fault.instruction_pointer &&
           stack_pointer(regs) == first->fault.stack_pointer;
}

#endif
