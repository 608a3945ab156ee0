/* SPDX-License-Identifier: GPL-2.0-only */
/* The record of a violation by a call: what refusals and bypasses have in common. */
#ifndef SEAL_MONITOR_CALL_RECORD_H
#define SEAL_MONITOR_CALL_RECORD_H

#include "abi.h"
#include "arch.h"
#include "describe.h"
#include "emit.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"

/*
 * The record of the call and of the search in `scratch`, or NULL when it is held back. `what` is
 * the operation or the method. The caller adds its own facts and calls submit().
 */
static __always_inline struct record *call_record(struct scratch *scratch, struct task_struct *task,
                                                  struct pt_regs *regs, struct config *config,
                                                  struct counters *count, enum kind kind, u64 what,
                                                  enum bank bank)
{
    struct search *search = &scratch->search;
    struct call *call = &scratch->call;
    struct bucket_key key = {};
    struct record *record;

    key.what = what;
    key.caller = caller_of(task, regs, call->compat);
    record = reserve(count, config, task, kind, &key, bank);
    if (!record)
        return NULL;
    fill_place(record, regs, key.caller, call->compat);
    record->result = call->result;
    __builtin_memcpy(record->arguments, call->arguments, sizeof(record->arguments));
    record->address = search->start;
    record->length = search->end - search->start;
    if (search->vma.address)
        fill_mapping(&record->mapping, &search->vma);
    fill_stack(&record->stack, &scratch->unwinder, search, task, regs, key.caller);
    return record;
}

#endif
