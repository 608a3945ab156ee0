// SPDX-License-Identifier: GPL-2.0-only
/*
 * System calls that a seal can refuse, seen at their exit.
 *
 * A program per call does one comparison and, for a refusal, tail-calls `denied`: that one holds
 * the proof, is verified once, and costs a call that succeeds nothing. The arguments come from the
 * registers saved at entry, so no entry hook and no state between the two is needed.
 */

enum tail { TAIL_DENIED, TAILS };

BPF_PROG_ARRAY(tracepoint_tails, TAILS);
BPF_PROG_ARRAY(raw_tails, TAILS);

/* Counts one refused call and, within the limits, tells of it. */
static __always_inline int report(struct scratch *scratch, struct task_struct *task,
                                  struct pt_regs *regs)
{
    struct judgement *judgement = &scratch->judgement;
    struct config *config = configuration();
    struct search *search = &scratch->search;
    struct call *call = &scratch->call;
    struct bucket_key key = {};
    struct counters *count;
    struct record *record;
    u64 operation, verdict;
    bool canary;

    if (!config || !config->sealed_mask)
        return 0;
    judge(scratch, task, config);
    operation = call->operation;
    verdict = judgement->verdict;
    if (call->result != -EPERM && verdict == VERDICT_NOT_SEALED)
        return 0; /* a success that only looked like a hidden refusal */
    canary = is_canary(config, task);
    count = counters_of(canary ? BANK_CANARY : BANK_HOST);
    if (!count || operation >= OPERATIONS || verdict >= VERDICTS)
        return 0;
    /* The workload first: whoever sees the total has seen its parts. */
    if (!canary)
        count_workload(count, verdict);
    COUNT(count->denials[operation][verdict]);
    if (judgement->partial_end > judgement->partial_start)
        COUNT(count->partial_updates[operation]);
    if (!canary && !(config->emit_verdicts >> verdict & 1)) {
        COUNT(count->events[KIND_DENIAL][OUTCOME_FILTERED]);
        return 0;
    }
    key.what = operation;
    key.caller = caller_of(regs->ip, regs->sp, call->compat);
    record = reserve(count, config, task, KIND_DENIAL, &key, canary);
    if (!record)
        return 0;
    if (call->compat)
        record->flags |= RECORD_COMPAT;
    if (call->result != -EPERM)
        record->flags |= RECORD_HIDDEN;
    record->operation = operation;
    record->verdict = verdict;
    record->reason = judgement->reason;
    record->role = search->role;
    record->result = call->result;
    __builtin_memcpy(record->arguments, call->arguments, sizeof(record->arguments));
    record->instruction_pointer = regs->ip;
    record->stack_pointer = regs->sp;
    record->caller = key.caller;
    record->address = search->start;
    record->length = search->end - search->start;
    record->partial_start = judgement->partial_start;
    record->partial_end = judgement->partial_end;
    if (search->vma.address)
        fill_mapping(&record->mapping, &search->vma);
    submit(record);
    return 0;
}

/*
 * brk returns the old break, shmdt 0, process_madvise the bytes done: three calls do not tell their
 * caller of a refusal, so a success of theirs is looked at.
 */
static __always_inline bool hides_refusal(u32 operation)
{
    return operation == OP_BRK || operation == OP_SHMDT || operation == OP_PROCESS_MADVISE;
}

/* All that a call costs that is not refused. */
static __always_inline bool may_be_refused(u32 operation, s64 result, struct pt_regs *regs,
                                           bool compat)
{
    u64 asked;

    if (result == -EPERM)
        return true;
    if (result < 0)
        return false;
    switch (operation) {
    case OP_BRK:
        asked = compat ? (u32)regs->bx : regs->di;
        return asked && asked < result && result < TASK_SIZE_LIMIT;
    case OP_SHMDT:
        return true;
    case OP_PROCESS_MADVISE:
        return regs->dx > 1 && is_destructive(compat ? regs->si : regs->r10);
    }
    return false;
}

static __always_inline struct pt_regs *saved_registers(struct task_struct *task)
{
    return (struct pt_regs *)bpf_task_pt_regs(task);
}

static __always_inline void read_arguments(struct call *call, struct pt_regs *regs)
{
    if (call->compat) {
        call->arguments[0] = (u32)regs->bx;
        call->arguments[1] = (u32)regs->cx;
        call->arguments[2] = (u32)regs->dx;
        call->arguments[3] = (u32)regs->si;
        call->arguments[4] = (u32)regs->di;
        call->arguments[5] = (u32)regs->bp;
        return;
    }
    call->arguments[0] = regs->di;
    call->arguments[1] = regs->si;
    call->arguments[2] = regs->dx;
    call->arguments[3] = regs->r10;
    call->arguments[4] = regs->r8;
    call->arguments[5] = regs->r9;
}

/* Format of the tracepoints syscalls:sys_exit_*: the number is an int. */
struct sys_exit {
    u64 common;
    s32 number;
    u32 padding;
    s64 result;
};

int denied(struct sys_exit *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct scratch *scratch = scratch_of(SCRATCH_DENIED);
    struct pt_regs *regs = saved_registers(task);

    if (!scratch)
        return 0;
    scratch->call.result = ctx->result;
    scratch->call.number = ctx->number;
    scratch->call.operation = operation_of(ctx->number);
    read_arguments(&scratch->call, regs);
    return report(scratch, task, regs);
}

/* The operation is a constant here, so only brk, process_madvise and shmdt keep more than a
 * comparison. */
static __always_inline int on_exit(struct sys_exit *ctx, u32 operation)
{
    struct pt_regs *regs = NULL;

    if (hides_refusal(operation))
        regs = saved_registers((struct task_struct *)bpf_get_current_task_btf());
    if (may_be_refused(operation, ctx->result, regs, false))
        tracepoint_tails.call(ctx, TAIL_DENIED);
    return 0;
}

#define EXIT_PROGRAM(name, operation)                                                              \
    int exit_##name(struct sys_exit *ctx)                                                          \
    {                                                                                              \
        return on_exit(ctx, operation);                                                            \
    }
EXIT_PROGRAM(mprotect, OP_MPROTECT)
EXIT_PROGRAM(pkey_mprotect, OP_PKEY_MPROTECT)
EXIT_PROGRAM(munmap, OP_MUNMAP)
EXIT_PROGRAM(mremap, OP_MREMAP)
EXIT_PROGRAM(mmap, OP_MMAP)
EXIT_PROGRAM(madvise, OP_MADVISE)
EXIT_PROGRAM(process_madvise, OP_PROCESS_MADVISE)
EXIT_PROGRAM(shmat, OP_SHMAT)
EXIT_PROGRAM(shmdt, OP_SHMDT)
EXIT_PROGRAM(brk, OP_BRK)
EXIT_PROGRAM(remap_file_pages, OP_REMAP_FILE_PAGES)
