// SPDX-License-Identifier: GPL-2.0-only
/*
 * The raw tracepoint sys_exit: every system call of the host passes here, and pays for it. It is
 * not skipped while another task is inside bpf(2), and sees 32-bit callers, to whom syscalls:* is
 * blind.
 */

#include "abi.h"
#include "arch.h"
#include "bypasses.h"
#include "call.h"
#include "counters.h"
#include "definitions.h"
#include "kernel.h"
#include "proof.h"
#include "report.h"
#include "seals.h"

BPF_PROG_ARRAY(raw_tails, TAILS);

static __always_inline struct scratch *raw_call(struct bpf_raw_tracepoint_args *ctx, u32 owner,
                                                struct task_struct *task)
{
    struct scratch *scratch = scratch_for_call(owner);
    struct pt_regs *regs = saved_registers(task);

    if (!scratch)
        return NULL;
    scratch->call.result = ctx->args[1];
    scratch->call.number = number_of(regs);
    scratch->call.operation = current_operation(task, regs);
    scratch->call.compat = is_compat(task);
    read_arguments(&scratch->call, regs);
    return scratch;
}

static __always_inline void run_raw_denied(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct scratch *scratch = raw_call(ctx, SCRATCH_RAW_DENIED, task);

    if (scratch)
        judge_and_report(scratch, task, saved_registers(task));
}

static __always_inline void run_raw_changed(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct scratch *scratch = raw_call(ctx, SCRATCH_RAW_CHANGED, task);

    if (scratch)
        report_change(scratch, task);
}

static __always_inline void raw_discard_exit(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct pt_regs *regs = saved_registers(task);
    u32 operation = current_operation(task, regs);

    if (went_through(operation, ctx->args[1]) &&
        may_discard(task, operation, regs, is_compat(task)))
        raw_tails.call(ctx, TAIL_CHANGED);
}

int raw_denied(struct bpf_raw_tracepoint_args *ctx)
{
    begin_alone();
    run_raw_denied(ctx);
    end_alone();
    raw_discard_exit(ctx);
    return 0;
}

int raw_changed(struct bpf_raw_tracepoint_args *ctx)
{
    raw_tails.call(ctx, TAIL_NONE);
    begin_alone();
    run_raw_changed(ctx);
    end_alone();
    return 0;
}

/* The first look, at the registers alone: a helper costs more than all of it. */
static __always_inline bool may_matter(struct bpf_raw_tracepoint_args *ctx)
{
    u32 number = number_at(ctx->args[0]);
    s64 result = ctx->args[1];

    return result == -EPERM || native_number(number) == NR_MSEAL ||
           (result >= 0 && (hides_refusal(operation_of(native_number(number))) ||
                            hides_refusal(operation_of_32(number)) || is_multiplexed(number))) ||
           went_through(operation_of(native_number(number)), result) ||
           went_through(operation_of_32(number), result) ||
           (!result && (number == NR_PTRACE || number == NR_PTRACE_32));
}

static __always_inline int on_raw_exit(struct bpf_raw_tracepoint_args *ctx,
                                       struct task_struct *task, struct pt_regs *regs)
{
    u32 operation = current_operation(task, regs);
    bool compat = is_compat(task), refused, discarded;
    struct config *config;

    if (operation >= OPERATIONS)
        return 0;
    refused = may_be_refused(operation, ctx->args[1], regs, compat);
    discarded = went_through(operation, ctx->args[1]) && may_discard(task, operation, regs, compat);
    if (!refused && !discarded)
        return 0;
    config = configuration();
    /* Only what no other hook reports. */
    if (!config ||
        !((compat ? config->compat_operations : config->raw_operations) >> operation & 1))
        return 0;
    if (refused)
        raw_tails.call(ctx, TAIL_DENIED);
    raw_tails.call(ctx, TAIL_CHANGED);
    return 0;
}

/* The same of mseal, whose number is 462 for all kinds of callers. */
static __always_inline void mseal_exit(struct bpf_raw_tracepoint_args *ctx,
                                       struct task_struct *task, struct pt_regs *regs)
{
    bool compat = is_compat(task);
    struct config *config;

    if (native_number(number_of(regs)) != NR_MSEAL)
        return;
    config = configuration();
    if (config && (compat ? config->compat_mseal : config->raw_mseal))
        sealed(SCRATCH_RAW_SEALED, task, regs, ctx->args[1], compat);
}

/* The same of what ptrace wrote. */
static __always_inline void poke_exit(struct bpf_raw_tracepoint_args *ctx, struct task_struct *task,
                                      struct pt_regs *regs)
{
    bool compat = is_compat(task);
    struct config *config;

    if (ctx->args[1] || number_of(regs) != (compat ? NR_PTRACE_32 : NR_PTRACE) ||
        !is_poke(argument_at(regs, 0, compat)))
        return;
    config = configuration();
    if (config && (compat ? config->compat_pokes : config->raw_pokes))
        raw_tails.call(ctx, TAIL_CHANGED);
}

int raw_exit(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task;
    struct pt_regs *regs;

    if (!may_matter(ctx))
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    regs = saved_registers(task);
    mseal_exit(ctx, task, regs);
    poke_exit(ctx, task, regs);
    return on_raw_exit(ctx, task, regs);
}

/* Beside hooks that are blind to 32-bit callers: those alone. */
int raw_exit_compat(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task;

    if (!may_matter(ctx))
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    if (!is_compat(task))
        return 0;
    mseal_exit(ctx, task, saved_registers(task));
    poke_exit(ctx, task, saved_registers(task));
    return on_raw_exit(ctx, task, saved_registers(task));
}
