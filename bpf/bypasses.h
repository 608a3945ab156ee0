/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Ways around a seal, which protects the mapping and not the bytes: calls that succeed in changing
 * what sealed memory holds. Here is what becomes of one that was found, and how one by madvise is.
 */
#ifndef SEAL_MONITOR_BYPASSES_H
#define SEAL_MONITOR_BYPASSES_H

#include "abi.h"
#include "call.h"
#include "counters.h"
#include "definitions.h"
#include "describe.h"
#include "emit.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"
#include "task.h"

/*
 * Counts a change of the mapping in `search->vma` from `search->start` to `search->end` and, within
 * the limits, tells of it. `leader`: of the process whose memory it is.
 */
static __always_inline int tell_bypass(struct scratch *scratch, struct task_struct *task,
                                       struct config *config, u64 method, u64 leader)
{
    struct pt_regs *regs = saved_registers(task);
    struct search *search = &scratch->search;
    struct call *call = &scratch->call;
    struct bucket_key key = {};
    struct counters *count;
    struct record *record;
    bool canary;

    if (!is_watched(config))
        return 0;
    canary = is_canary(config, task);
    count = counters_of(canary ? BANK_CANARY : BANK_HOST);
    if (!count || method >= METHODS)
        return 0;
    COUNT(count->bypasses[method]);
    key.what = method;
    key.caller = caller_of(regs->ip, regs->sp, call->compat);
    record = reserve(count, config, task, KIND_BYPASS, &key, canary);
    if (!record)
        return 0;
    if (call->compat)
        record->flags |= RECORD_COMPAT;
    record->bypass.method = method;
    fill_owner(&record->bypass, config, leader);
    record->result = call->result;
    __builtin_memcpy(record->arguments, call->arguments, sizeof(record->arguments));
    record->instruction_pointer = regs->ip;
    record->stack_pointer = regs->sp;
    record->caller = key.caller;
    if (search->start < search->vma.start)
        search->start = search->vma.start;
    if (search->end > search->vma.end)
        search->end = search->vma.end;
    record->address = search->start;
    record->length = search->end - search->start;
    fill_mapping(&record->mapping, &search->vma);
    fill_stack(&record->stack, &scratch->unwinder, search, task, regs, key.caller);
    submit(record);
    return 0;
}

/* Whether madvise has gone through its range. It passes over holes, of which it tells at the end.
 */
static __always_inline bool went_through(u32 operation, s64 result)
{
    if (operation == OP_MADVISE)
        return result == 0 || result == -ENOMEM;
    return operation == OP_PROCESS_MADVISE && result > 0;
}

/* All that advice costs that discards nothing. */
static __always_inline bool may_discard(u32 operation, struct pt_regs *regs, bool compat)
{
    if (operation == OP_MADVISE)
        return is_discarding(regs->dx); /* the third argument of both kinds of callers */
    return is_discarding(compat ? regs->si : regs->r10);
}

#define NR_PTRACE 101
#define NR_PTRACE_32 26
#define PTRACE_POKETEXT 4
#define PTRACE_POKEDATA 5

static __always_inline bool is_poke(u32 request)
{
    return request == PTRACE_POKETEXT || request == PTRACE_POKEDATA;
}

/* Memory in which something was changed; `leader` of the process that has it, 0: not known. */
struct change {
    u64 method;
    u64 mm;
    u64 leader;
};

/* Tells of the change, if the ranges of the search hold a mapping of the kind that is wanted. */
static __always_inline int find_and_tell(struct scratch *scratch, struct task_struct *task,
                                         struct config *config, struct change *change)
{
    scratch->search.mask = config->sealed_mask;
    find_vma(change->mm, config, &scratch->search);
    if (scratch->search.outcome != LOOKUP_FOUND)
        return 0;
    return tell_bypass(scratch, task, config, change->method, change->leader);
}

/* The kernel takes discarding advice for the caller's own memory alone. */
static __always_inline void set_discard(struct scratch *scratch, struct task_struct *task,
                                        struct change *change)
{
    struct search *search = &scratch->search;
    struct call *call = &scratch->call;
    u64 *a = call->arguments;

    change->method = METHOD_MADVISE_DISCARD;
    change->mm = (u64)TASK_FIELD(void *, task, mm);
    change->leader = (u64)TASK_FIELD(void *, task, group_leader);
    search->wanted = WANTED_COPIES;
    if (call->operation == OP_PROCESS_MADVISE) {
        search->vector = a[1];
        search->vector_bytes = call->result;
        search->vector_compat = call->compat;
        return;
    }
    search->start = user_address(change->mm, a[0]);
    search->end = search->start + PAGE_ALIGN(a[1]);
}

/*
 * What the kernel wrote for somebody, past the permissions of the mapping. Where the mapping is
 * writable its seal does not stand against it.
 */
static __always_inline void set_written(struct search *search, u64 start, u64 bytes)
{
    search->start = start;
    search->end = start + bytes;
    search->wanted = WANTED_READ_ONLY;
}

/* The tracee is stopped, so its mappings stay as they are. */
static __always_inline void set_poke(struct scratch *scratch, struct task_struct *task,
                                     struct change *change)
{
    u64 *a = scratch->call.arguments, tracee = task_of(task, a[1]);

    change->method = METHOD_PTRACE_POKE;
    change->mm = KERNEL_WORD(tracee, task_struct__mm);
    change->leader = KERNEL_WORD(tracee, task_struct__group_leader);
    set_written(&scratch->search, a[2], scratch->call.compat ? sizeof(u32) : sizeof(u64));
}

/* A call that succeeded, and that may_discard() or is_poke() took for one to look at. */
static __always_inline int report_change(struct scratch *scratch, struct task_struct *task)
{
    struct config *config = configuration();
    struct change change;

    if (!config || !config->sealed_mask)
        return 0;
    if (scratch->call.operation < OPERATIONS)
        set_discard(scratch, task, &change);
    else
        set_poke(scratch, task, &change);
    return change.mm ? find_and_tell(scratch, task, config, &change) : 0;
}

#endif
