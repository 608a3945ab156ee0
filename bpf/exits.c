// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that a seal can refuse, seen at their exit.
 *
 * A program per call does one comparison and, for a refusal, tail-calls `denied`, which holds the
 * proof: that is verified once, and costs a call that succeeds nothing. The arguments come from the
 * registers saved at entry, so no entry hook and no state between the two is needed.
 */

#include "arch.h"
#include "bypasses.h"
#include "call.h"
#include "definitions.h"
#include "kernel.h"
#include "proof.h"
#include "report.h"
#include "seals.h"

BPF_PROG_ARRAY(tracepoint_tails, TAILS);

/* Format of the tracepoints syscalls:sys_exit_*: the number is an int. */
struct sys_exit {
    u64 common;
    s32 number;
    u32 padding;
    s64 result;
};

static __always_inline struct scratch *ended_call(struct sys_exit *ctx, u32 owner,
                                                  struct pt_regs *regs)
{
    struct scratch *scratch = scratch_for_call(owner);

    if (!scratch)
        return NULL;
    scratch->call.result = ctx->result;
    scratch->call.number = ctx->number;
    scratch->call.compat = false;
    scratch->call.operation = operation_of(ctx->number);
    read_arguments(&scratch->call, regs);
    return scratch;
}

static __always_inline void run_denied(struct sys_exit *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct pt_regs *regs = saved_registers(task);
    struct scratch *scratch = ended_call(ctx, SCRATCH_DENIED, regs);

    if (scratch)
        judge_and_report(scratch, task, regs);
}

static __always_inline void run_changed(struct sys_exit *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct scratch *scratch = ended_call(ctx, SCRATCH_CHANGED, saved_registers(task));

    if (scratch)
        report_change(scratch, task);
}

static __always_inline void discard_exit(struct sys_exit *ctx, u32 operation)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();

    if (may_discard(task, operation, saved_registers(task), false))
        tracepoint_tails.call(ctx, TAIL_CHANGED);
}

int denied(struct sys_exit *ctx)
{
    begin_alone();
    run_denied(ctx);
    end_alone();
    /* What came before the seal may have been discarded around another one; not by a refusal. */
    if (ctx->result != -EPERM && went_through(operation_of(ctx->number), ctx->result))
        discard_exit(ctx, operation_of(ctx->number));
    return 0;
}

int changed(struct sys_exit *ctx)
{
    tracepoint_tails.call(ctx, TAIL_NONE);
    begin_alone();
    run_changed(ctx);
    end_alone();
    return 0;
}

/* The operation is a constant for the verifier, so only brk, madvise, process_madvise and shmdt
 * keep more than a comparison. */
static __always_inline int on_exit(struct sys_exit *ctx, u32 operation)
{
    struct pt_regs *regs = NULL;

    if (hides_refusal(operation))
        regs = saved_registers((struct task_struct *)bpf_get_current_task_btf());
    if (may_be_refused(operation, ctx->result, regs, false))
        tracepoint_tails.call(ctx, TAIL_DENIED);
    if (went_through(operation, ctx->result))
        discard_exit(ctx, operation);
    return 0;
}

/* The same for every call, to whose tracepoint it is attached: see OPERATION. */
int exit_call(struct sys_exit *ctx)
{
    return on_exit(ctx, OPERATION);
}

int exit_ptrace(struct sys_exit *ctx)
{
    struct task_struct *task;

    if (ctx->result)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    if (is_poke(argument_at(saved_registers(task), 0, false)))
        tracepoint_tails.call(ctx, TAIL_CHANGED);
    return 0;
}

int exit_mseal(struct sys_exit *ctx)
{
    struct task_struct *task;

    if (ctx->result != 0 && ctx->result != -EINVAL)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    return sealed(SCRATCH_SEALED, task, saved_registers(task), ctx->result, false);
}
