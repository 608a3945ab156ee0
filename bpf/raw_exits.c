// SPDX-License-Identifier: GPL-2.0-only
/*
 * The raw tracepoint sys_exit: every system call of the host passes here, and pays for it. It is
 * not skipped while another task is inside bpf(2), and sees 32-bit callers, to whom syscalls:* is
 * blind.
 */

#define TS_COMPAT 0x0002

static __always_inline bool is_compat(struct task_struct *task)
{
    return TASK_FIELD(u32, task, thread_info_status) & TS_COMPAT;
}

/* The kernel takes the number from the low half of the register alone. */
static __always_inline u32 number_of(struct pt_regs *regs)
{
    return regs->orig_ax;
}

static __always_inline u32 raw_operation_of(struct task_struct *task, struct pt_regs *regs)
{
    if (is_compat(task))
        return operation_of_32(number_of(regs));
    return operation_of(number_of(regs) & ~X32_SYSCALL_BIT);
}

int raw_denied(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct scratch *scratch = scratch_of(SCRATCH_RAW_DENIED);
    struct pt_regs *regs = saved_registers(task);

    if (!scratch)
        return 0;
    scratch->call.result = ctx->args[1];
    scratch->call.number = number_of(regs);
    scratch->call.operation = raw_operation_of(task, regs);
    scratch->call.compat = is_compat(task);
    read_arguments(&scratch->call, regs);
    return report(scratch, task, regs);
}

/* The first look, at the registers alone: a helper costs more than all of it. */
static __always_inline bool may_matter(struct bpf_raw_tracepoint_args *ctx)
{
    u32 number = *kernel_words(ctx->args[0] + __builtin_offsetof(struct pt_regs, orig_ax));
    s64 result = ctx->args[1];

    return result == -EPERM || number == NR_MSEAL ||
           (result >= 0 && (hides_refusal(operation_of(number & ~X32_SYSCALL_BIT)) ||
                            hides_refusal(operation_of_32(number))));
}

static __always_inline int on_raw_exit(struct bpf_raw_tracepoint_args *ctx,
                                       struct task_struct *task, struct pt_regs *regs)
{
    u32 operation = raw_operation_of(task, regs);
    struct config *config;

    if (operation >= OPERATIONS || !may_be_refused(operation, ctx->args[1], regs, is_compat(task)))
        return 0;
    config = configuration();
    /* Only what no tracepoint reports; those are blind to 32-bit callers. */
    if (config && (is_compat(task) || config->raw_operations >> operation & 1))
        raw_tails.call(ctx, TAIL_DENIED);
    return 0;
}

int raw_exit(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task;
    struct config *config;
    struct pt_regs *regs;

    if (!may_matter(ctx))
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    regs = saved_registers(task);
    if (number_of(regs) == NR_MSEAL && !is_compat(task)) {
        config = configuration();
        if (config && config->raw_mseal)
            return sealed(SCRATCH_RAW_SEALED, task, regs, ctx->args[1]);
    }
    return on_raw_exit(ctx, task, regs);
}

/* Beside the per-call tracepoints: 32-bit callers alone. */
int raw_exit_compat(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task;

    if (!may_matter(ctx))
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    return is_compat(task) ? on_raw_exit(ctx, task, saved_registers(task)) : 0;
}
