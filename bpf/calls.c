// SPDX-License-Identifier: GPL-2.0-only
/*
 * The functions of the system calls, seen at their return (fexit): where the function in which a
 * seal refuses cannot be attached to, they stand in for it, call by call. The proof is the one of
 * the exit tracepoints; other system calls pay nothing.
 */

#include "arch.h"
#include "call.h"
#include "kernel.h"
#include "proof.h"
#include "report.h"

static __always_inline int on_return(s64 result, u32 operation)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct pt_regs *regs = saved_registers(task);
    bool compat = is_compat(task);
    struct scratch *scratch;

    if (!may_be_refused(operation, result, regs, compat))
        return 0;
    scratch = scratch_of(SCRATCH_CALLS + 2 * operation + compat);
    if (!scratch)
        return 0;
    scratch->call.result = result;
    scratch->call.number = number_of(regs);
    scratch->call.operation = operation;
    scratch->call.compat = compat;
    read_arguments(&scratch->call, regs);
    return judge_and_report(scratch, task, regs);
}

/* The same for every call, whose function it is attached to: see OPERATION. */
int fexit_call(u64 *ctx)
{
    return on_return(ctx[1], OPERATION); /* after the registers */
}
