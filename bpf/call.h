/* SPDX-License-Identifier: GPL-2.0-only */
/* The system call that a task is in: which one, with which arguments. */
#ifndef SEAL_MONITOR_CALL_H
#define SEAL_MONITOR_CALL_H

#include "arch.h"
#include "definitions.h"
#include "kernel.h"

static __always_inline struct pt_regs *saved_registers(struct task_struct *task)
{
    return (struct pt_regs *)bpf_task_pt_regs(task);
}

/* OPERATIONS where the call is not watched. */
static __always_inline u32 current_operation(struct task_struct *task, struct pt_regs *regs)
{
    if (is_compat(task))
        return operation_of_compat(number_of(regs), argument_at(regs, 0, true));
    return operation_of(native_number(number_of(regs)));
}

static __always_inline void read_arguments(struct call *call, struct pt_regs *regs)
{
    if (call->compat)
        read_compat_arguments(call, regs);
    else
        read_native_arguments(call, regs);
}

#endif
