/* SPDX-License-Identifier: GPL-2.0-only */
/* What becomes of a refused call: it is judged, counted and, within the limits, reported. */
#ifndef SEAL_MONITOR_REPORT_H
#define SEAL_MONITOR_REPORT_H

#include "abi.h"
#include "arch.h"
#include "call.h"
#include "call_record.h"
#include "counters.h"
#include "definitions.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"

/* TAIL_NONE has no program: see begin_alone(). */
enum tail { TAIL_DENIED, TAIL_CHANGED, TAIL_NONE, TAILS };

/*
 * A program that several others tail-call runs alone on its CPU between these two. Kernels that let
 * the programs of system calls be preempted keep the same program from running twice on a CPU, but
 * not the target that two programs share: neither its scratch, nor its stack where the kernel gives
 * it one per CPU instead of the task's. A program with a tail call in it gets none: hence the call
 * of TAIL_NONE in programs that have no other.
 */
static __always_inline void begin_alone(void)
{
    CALL_KFUNC0(KFUNC_bpf_preempt_disable);
}

static __always_inline void end_alone(void)
{
    CALL_KFUNC0(KFUNC_bpf_preempt_enable);
}

/* Counts one judged refusal and, within the limits, reports it. */
static __always_inline int report(struct scratch *scratch, struct task_struct *task,
                                  struct pt_regs *regs, struct config *config)
{
    struct judgement *judgement = &scratch->judgement;
    struct call *call = &scratch->call;
    u64 operation = call->operation, verdict = judgement->verdict;
    struct counters *count;
    struct record *record;
    enum bank bank = bank_of(config, task);

    count = counters_of(bank);
    if (!count || operation >= OPERATIONS || verdict >= VERDICTS)
        return 0;
    /* The workload first: a reader that sees the total then sees its parts, too. */
    if (bank == BANK_HOST)
        count_workload(count, verdict);
    COUNT(count->denials[operation][verdict]);
    if (judgement->partial_end)
        COUNT(count->partial_updates[operation]);
    if (verdict == VERDICT_UNVERIFIED && judgement->reason < REASONS)
        COUNT(count->unverified[judgement->reason]);
    if (!wants_event(bank, config->emit_verdicts >> verdict)) {
        COUNT(count->events[KIND_DENIAL][OUTCOME_FILTERED]);
        return 0;
    }
    record = call_record(scratch, task, regs, config, count, KIND_DENIAL, operation, bank);
    if (!record)
        return 0;
    if (call->result != -EPERM)
        record->flags |= RECORD_HIDDEN;
    record->operation = operation;
    record->verdict = verdict;
    record->reason = judgement->reason;
    record->role = scratch->search.role;
    record->partial_start = judgement->partial_start;
    record->partial_end = judgement->partial_end;
    submit(record);
    return 0;
}

/* Judges a call that was refused or may have been, and reports a refusal. */
static __always_inline int judge_and_report(struct scratch *scratch, struct task_struct *task,
                                            struct pt_regs *regs)
{
    struct config *config = configuration();

    if (!config || !config->sealed_mask || !is_watched(config))
        return 0;
    judge(scratch, task, config);
    if (scratch->call.result != -EPERM && scratch->judgement.verdict == VERDICT_NOT_SEALED)
        return 0; /* a success that only looked like a hidden refusal */
    return report(scratch, task, regs, config);
}

/* Whether the call can be refused and succeed all the same: operations.py says which. */
static __always_inline bool hides_refusal(u32 operation)
{
    return HIDES_REFUSAL(operation);
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
        asked = argument_at(regs, 0, compat);
        return asked && asked < result && result < TASK_SIZE_LIMIT;
    case OP_SHMDT:
        return true;
    case OP_PROCESS_MADVISE:
        return third_argument(regs) > 1 && is_destructive(fourth_argument(regs, compat));
    }
    return false;
}

#endif
