/* SPDX-License-Identifier: GPL-2.0-only */
/* mseal(2) itself: how much was sealed, and by whom when that is asked for. */
#ifndef SEAL_MONITOR_SEALS_H
#define SEAL_MONITOR_SEALS_H

#include "abi.h"
#include "arch.h"
#include "counters.h"
#include "definitions.h"
#include "describe.h"
#include "emit.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"
#include "task.h"

/* 200 a second, 100 at once: where every program seals itself, the ring is still for events. */
#define SEALERS_INTERVAL (5 * 1000 * 1000)
#define SEALERS_BURST (99 * SEALERS_INTERVAL)

/*
 * Sealing comes before violations: a program that seals is reported once, so that the daemon knows
 * a process that is gone when its violation is read. One that is held back by the limit or a full
 * ring is looked up at its violation, like any other.
 */
static __always_inline void report_sealer(struct config *config, struct task_struct *task)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32, key = SHARED_SEALERS;
    struct bucket *limit = shared_buckets.lookup(&key);
    struct sealer *sealer = sealers.lookup(&pid);
    u64 time = bpf_ktime_get_boot_ns();
    struct record *record;

    if (!sealer || sealer->is_reported)
        return;
    if (!limit || !conforms(&limit->arrival, time, SEALERS_INTERVAL, SEALERS_BURST))
        return;
    record = new_record(config, task, KIND_SEAL, time, RECORD_SEALER);
    if (!record)
        return;
    submit(record);
    sealer->is_reported = true;
}

static __always_inline int sealed(u32 scratch_owner, struct task_struct *task, struct pt_regs *regs,
                                  s64 result, bool compat)
{
    u64 start = argument_at(regs, 0, compat), length = argument_at(regs, 1, compat);
    struct config *config = configuration();
    u64 mm = (u64)TASK_FIELD(void *, task, mm), address;
    struct bucket_key key = {};
    struct counters *count;
    struct record *record;
    struct scratch *scratch;
    enum bank bank;

    if (!config || !mm || !is_watched(config))
        return 0;
    bank = bank_of(config, task);
    /* Calibration compares a mapping's flags before a seal, at an mseal that fails, and after. */
    if (result != 0 && bank != BANK_CANARY)
        return 0;
    count = counters_of(bank);
    if (!count)
        return 0;
    note_sealer(task);
    COUNT(count->seals);
    COUNT_MORE(count->sealed_bytes, PAGE_ALIGN(length));
    if (!wants_event(bank, config->emit_seals)) {
        COUNT(count->events[KIND_SEAL][OUTCOME_FILTERED]);
        if (bank == BANK_HOST)
            report_sealer(config, task);
        return 0;
    }
    key.caller = caller_of(task, regs, compat);
    record = reserve(count, config, task, KIND_SEAL, &key, bank);
    if (!record)
        return 0;
    fill_place(record, regs, key.caller, compat);
    record->result = result;
    record->arguments[0] = start;
    record->arguments[1] = length;
    record->arguments[2] = argument_at(regs, 2, compat);
    record->address = start;
    record->length = PAGE_ALIGN(length);
    address = user_address(mm, start);
    scratch = scratch_of(scratch_owner);
    if (scratch) {
        if (find_vma_from(mm, config, address, &scratch->search) &&
            covers(&scratch->search.vma, address))
            fill_mapping(&record->mapping, &scratch->search.vma);
        fill_stack(&record->stack, &scratch->unwinder, &scratch->search, task, regs, key.caller);
    }
    submit(record);
    return 0;
}

#endif
