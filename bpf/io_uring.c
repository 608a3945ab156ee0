// SPDX-License-Identifier: GPL-2.0-only
/*
 * madvise by io_uring: no system call event shows it. The completion carries the result, the
 * request the range. The kernel runs this request in a worker thread of the caller's own process.
 */

#include "abi.h"
#include "bypasses.h"
#include "call.h"
#include "counters.h"
#include "definitions.h"
#include "kernel.h"
#include "proof.h"
#include "report.h"

#define IORING_OP_MADVISE 25

static __always_inline int on_completion(u64 request, s32 result)
{
    bool refused = result == -EPERM;
    struct config *config;
    struct scratch *scratch;
    struct task_struct *task;
    u8 opcode = 0;
    u32 advice = 0;

    if (!request || !(refused || went_through(OP_MADVISE, result)))
        return 0;
    READ_KERNEL(opcode, request, io_kiocb__opcode);
    if (opcode != IORING_OP_MADVISE)
        return 0;
    READ_KERNEL(advice, request, io_madvise__advice);
    config = configuration();
    /* Where the functions of madvise are seen, they report what it has discarded. */
    if (!refused &&
        (!config || !is_evasive(advice) || config->function_operations >> OP_MADVISE & 1))
        return 0;
    scratch = scratch_of(SCRATCH_IO_URING);
    if (!scratch)
        return 0;
    scratch->call.arguments[0] = KERNEL_WORD(request, io_madvise__addr);
    scratch->call.arguments[1] = KERNEL_WORD(request, io_madvise__len);
    scratch->call.arguments[2] = advice;
    scratch->call.result = result;
    scratch->call.operation = OP_IO_URING_MADVISE;
    task = (struct task_struct *)bpf_get_current_task_btf();
    if (!refused)
        return report_change(scratch, task);
    return judge_and_report(scratch, task, saved_registers(task));
}

/*
 * Raw tracepoint io_uring_complete(ctx, req, user_data, res, cflags, extra1, extra2); newer kernels
 * have (ctx, req, cqe). Attaching the longer one fails where the arguments are fewer.
 */
int io_uring_complete(struct bpf_raw_tracepoint_args *ctx)
{
    return on_completion(ctx->args[1], ctx->args[3]);
}

int io_uring_complete_cqe(struct bpf_raw_tracepoint_args *ctx)
{
    s32 result = 0;

    READ_KERNEL(result, ctx->args[2], io_uring_cqe__res);
    return on_completion(ctx->args[1], result);
}

/* The kernel's function that does the request, at its return (fexit). */
int fexit_io_madvise(u64 *ctx)
{
    s32 result = 0;

    READ_KERNEL(result, ARGUMENT(ctx, io_madvise, req), io_kiocb__cqe_res);
    return on_completion(ARGUMENT(ctx, io_madvise, req), result);
}
