/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Ways around a seal, which protects the mapping and not the bytes: calls that succeed in changing
 * what sealed memory holds. This file finds those by madvise and ptrace, and reports all of them.
 */
#ifndef SEAL_MONITOR_BYPASSES_H
#define SEAL_MONITOR_BYPASSES_H

#include "abi.h"
#include "arch.h"
#include "call.h"
#include "call_record.h"
#include "counters.h"
#include "definitions.h"
#include "describe.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"
#include "task.h"

/*
 * Counts a change of the mapping in `search->vma` from `search->start` to `search->end` and, within
 * the limits, reports it. `owner`: a thread that has that memory.
 */
static __always_inline int report_bypass(struct scratch *scratch, struct task_struct *task,
                                         struct config *config, u64 method, u64 owner)
{
    struct search *search = &scratch->search;
    struct counters *count;
    struct record *record;
    enum bank bank;

    if (!is_watched(config))
        return 0;
    bank = bank_of(config, task);
    count = counters_of(bank);
    if (!count || method >= METHODS)
        return 0;
    COUNT(count->bypasses[method]);
    if (!wants_event(bank, 1)) {
        COUNT(count->events[KIND_BYPASS][OUTCOME_FILTERED]);
        return 0;
    }
    if (search->start < search->vma.start)
        search->start = search->vma.start;
    if (search->end > search->vma.end)
        search->end = search->vma.end;
    record =
        call_record(scratch, task, saved_registers(task), config, count, KIND_BYPASS, method, bank);
    if (!record)
        return 0;
    record->bypass.method = method;
    fill_owner(&record->bypass, config, owner);
    submit(record);
    return 0;
}

/* Whether madvise has gone through its range. It passes over holes, and answers ENOMEM at the end.
 */
static __always_inline bool went_through(u32 operation, s64 result)
{
    if (operation == OP_MADVISE)
        return result == 0 || result == -ENOMEM;
    return operation == OP_PROCESS_MADVISE && result > 0;
}

/*
 * Discarding advice is common, and one that goes around a seal is rare. A mapping that was looked
 * up for it is kept, with the others of its process, if no discard in it goes around a seal.
 *
 * What is kept holds until somebody takes the process's mmap_lock for writing, as every change of
 * its mappings does: also an mseal by another thread, by a 32-bit call, or in a run that the kernel
 * skipped. The kernel counts that in mm_lock_seq when the lock is released, from 6.14 on also when
 * it is taken. The count is read before the look-up and compared after each later discard: one that
 * came after a seal finds another count. As the count has 32 bits, what is kept lasts no longer
 * than UNSEALED_JIFFIES, in which it cannot come round.
 */
#define UNSEALED_RANGES 4
#define UNSEALED_JIFFIES 1000

struct unsealed {
    u64 stored; /* how often something was put here */
    struct identity process;
    u64 changes; /* of its mappings */
    u64 since;   /* jiffies */
    u64 next;    /* where the next range goes */
    struct {
        u64 start, end;
    } ranges[UNSEALED_RANGES];
};
BPF_TABLE("percpu_array", u32, struct unsealed, unsealed_ranges, 1);

static __always_inline struct unsealed *unsealed_of_cpu(void)
{
    u32 key = 0;

    return unsealed_ranges.lookup(&key);
}

static __always_inline u32 mapping_changes(u64 mm)
{
    return KERNEL_WORD(mm, mm_struct__mm_lock_seq);
}

/* Keeps clang from moving reads past it. */
#define COMPILER_BARRIER() asm volatile("" : : : "memory")

/* Whether what is kept is of this process, and of its mappings as they are. */
static __always_inline bool still_holds(struct unsealed *kept, struct identity *process,
                                        u64 changes)
{
    return !((kept->changes ^ changes) | (kept->process.start ^ process->start) |
             (kept->process.number ^ process->number)) &&
           bpf_jiffies64() - kept->since < UNSEALED_JIFFIES;
}

/*
 * Whether it is known, without a look-up, that no discard in this range goes around a seal. Where
 * programs can be preempted, another one may store something here while this one reads, on the same
 * CPU: what was read may then be of two kinds, but `stored` has changed. A tagged address is in no
 * range, and is looked up.
 */
static __always_inline bool is_known_unsealed(struct task_struct *task, u64 start, u64 bytes)
{
    struct unsealed *kept = unsealed_of_cpu();
    struct identity process = identity_of(task);
    u64 end = start + bytes, stored;
    bool is_inside = false;

    if (!kept)
        return false;
    stored = *(volatile u64 *)&kept->stored;
    COMPILER_BARRIER();
    if (!still_holds(kept, &process, mapping_changes((u64)TASK_FIELD(void *, task, mm))))
        return false;
#pragma unroll
    for (int i = 0; i < UNSEALED_RANGES; i++) {
        is_inside = start >= kept->ranges[i].start && end <= kept->ranges[i].end;
        if (is_inside)
            break;
    }
    COMPILER_BARRIER();
    return is_inside && end >= start && stored == *(volatile u64 *)&kept->stored;
}

/*
 * Keeps the mapping that the search for a discard has passed, if it was a single one and no discard
 * can go around a seal in it, whatever is written to it. Runs alone: see begin_alone().
 */
static __always_inline void keep_unsealed(struct task_struct *task, struct config *config,
                                          struct search *search, u64 changes)
{
    bool is_sealed = search->earlier_flags & config->sealed_mask;
    bool may_have_copies =
        search->earlier_files && !(search->earlier_flags & (VM_WRITE | VM_SHARED));
    struct unsealed *kept = unsealed_of_cpu();
    struct identity process = identity_of(task);
    u64 place;

    if (!kept || search->outcome != LOOKUP_NONE || search->walked != 1 ||
        (is_sealed && may_have_copies))
        return;
    kept->stored++;
    if (!still_holds(kept, &process, changes)) {
        kept->process = process;
        kept->changes = changes;
        kept->since = bpf_jiffies64();
        kept->next = 0;
        __builtin_memset(kept->ranges, 0, sizeof(kept->ranges));
    }
    place = kept->next++ % UNSEALED_RANGES;
    kept->ranges[place].start = search->passed_start;
    kept->ranges[place].end = search->passed_end;
}

/*
 * All that advice costs which discards nothing, or discards where no seal is. Of guard regions
 * nothing is kept: to take them away is rare.
 */
static __always_inline bool may_discard(struct task_struct *task, u32 operation,
                                        struct pt_regs *regs, bool compat)
{
    u32 advice = operation == OP_MADVISE ? third_argument(regs) : fourth_argument(regs, compat);

    if (!is_evasive(advice))
        return false;
    return advice == MADV_GUARD_REMOVE || !HAS(mm_struct__mm_lock_seq) || operation != OP_MADVISE ||
           compat ||
           !is_known_unsealed(task, argument_at(regs, 0, false), argument_at(regs, 1, false));
}

#define PTRACE_POKETEXT 4
#define PTRACE_POKEDATA 5

static __always_inline bool is_poke(u32 request)
{
    return request == PTRACE_POKETEXT || request == PTRACE_POKEDATA;
}

/* Memory in which something was changed; `owner`: a thread that has it, 0: not known. */
struct change {
    u64 method;
    u64 mm;
    u64 owner;
};

/* Reports the change, if the ranges of the search hold a mapping of the kind that is wanted. */
static __always_inline int find_and_report(struct scratch *scratch, struct task_struct *task,
                                           struct config *config, struct change *change)
{
    scratch->search.mask = config->sealed_mask;
    find_vma(change->mm, config, &scratch->search);
    if (scratch->search.outcome != LOOKUP_FOUND)
        return 0;
    return report_bypass(scratch, task, config, change->method, change->owner);
}

/* The kernel takes discarding advice for the caller's own memory alone. */
static __always_inline void set_discard(struct scratch *scratch, struct task_struct *task,
                                        struct change *change)
{
    struct search *search = &scratch->search;
    struct call *call = &scratch->call;
    u64 *a = call->arguments;

    u32 advice = call->operation == OP_PROCESS_MADVISE ? a[3] : a[2];

    change->method = METHOD_MADVISE_DISCARD;
    change->mm = (u64)TASK_FIELD(void *, task, mm);
    change->owner = (u64)task;
    search->wanted = WANTED_COPIES;
    if (advice == MADV_GUARD_REMOVE) {
        change->method = METHOD_GUARD_REMOVE;
        search->wanted = WANTED_GUARDED;
    }
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
 * What the kernel wrote for somebody, past the permissions of the mapping. In a writable mapping
 * such a write goes around no seal.
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
    change->owner = tracee;
    set_written(&scratch->search, a[2], scratch->call.compat ? sizeof(u32) : sizeof(u64));
}

/* Looks at a call that succeeded and that may_discard() or is_poke() has picked. */
static __always_inline int report_change(struct scratch *scratch, struct task_struct *task)
{
    struct config *config = configuration();
    struct change change;
    u64 changes = 0;

    if (!config || !config->sealed_mask)
        return 0;
    if (scratch->call.operation < OPERATIONS)
        set_discard(scratch, task, &change);
    else
        set_poke(scratch, task, &change);
    if (!change.mm)
        return 0;
    if (HAS(mm_struct__mm_lock_seq))
        changes = mapping_changes(change.mm);
    find_and_report(scratch, task, config, &change);
    if (HAS(mm_struct__mm_lock_seq) && scratch->call.operation == OP_MADVISE)
        keep_unsealed(task, config, &scratch->search, changes);
    return 0;
}

#endif
