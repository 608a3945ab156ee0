// SPDX-License-Identifier: GPL-2.0-only
/*
 * Processes that end in the handler of a fault: crash handlers, which print something and then end
 * the process by abort(), raise() or _exit(). Runtimes handle faults all day and make no event; one
 * that its process did not survive does, here, because at the fault nobody could know.
 */

#include "abi.h"
#include "arch.h"
#include "call.h"
#include "counters.h"
#include "definitions.h"
#include "describe.h"
#include "emit.h"
#include "handled.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"

#define SIGNAL_MASK 0x7f /* of an exit code: the signal that it was */

/*
 * Whether the exiting thread has ended the process itself, in the handler: by exit_group(), or by
 * a signal that it has sent. One that was blocked comes when the handler has returned to the fault.
 * Other threads that end with the process are in none of these calls.
 */
static __always_inline bool has_ended_in_handler(struct task_struct *task, struct handled *first,
                                                 struct pt_regs *regs)
{
    u64 group = (u64)TASK_FIELD(void *, task, signal);
    u32 code = KERNEL_WORD(group, signal_struct__group_exit_code);

    if (first->execs != (u32)TASK_FIELD(u64, task, self_exec_id))
        return false;
    if (is_back(first, regs))
        return (code & SIGNAL_MASK) == SIGSEGV;
    return is_exit_or_signal(task, regs, code & SIGNAL_MASK) && is_in_handler(task, first, regs);
}

/*
 * Raw tracepoint sched_process_exit(struct task_struct *task, ...), in the exiting thread. The
 * memory of the process is there still since "exit: move and extend sched_process_exit()
 * tracepoint", in 6.16. Before, its mapping, stack and executable are not known here.
 */
int sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
    struct config *config = configuration();
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    u64 thread = bpf_get_current_pid_tgid(), caller;
    struct handled *found = handled_faults.lookup(&thread), first;
    struct fault *fault = &first.fault;
    struct pt_regs *regs, at_fault;
    struct bucket_key key = {};
    struct counters *count;
    struct scratch *scratch;
    struct record *record;
    enum bank bank;

    if (!found || !config)
        return 0;
    first = *found;
    handled_faults.delete(&thread);
    regs = saved_registers(task);
    if (!is_watched(config) || !has_ended_in_handler(task, &first, regs))
        return 0;
    bank = bank_of(config, task);
    count = counters_of(bank);
    scratch = scratch_of(SCRATCH_ENDED);
    if (!count || !scratch || fault->cause >= CAUSES)
        return 0;
    COUNT(count->faults[fault->cause][DISPOSITION_HANDLER_ENDED]);
    if (bank != BANK_HOST || first.reported || !(config->emit_causes >> fault->cause & 1)) {
        COUNT(count->events[KIND_FAULT][OUTCOME_FILTERED]);
        return 0;
    }
    key.what = fault->cause;
    key.caller = fault->instruction_pointer;
    record = reserve(count, config, task, KIND_FAULT, &key, BANK_HOST);
    if (!record)
        return 0;
    if (fault->inferred)
        record->flags |= RECORD_INFERRED;
    record->cause = fault->cause;
    record->access = fault->access;
    record->disposition = DISPOSITION_HANDLER_ENDED;
    record->error_code = fault->error_code;
    record->signal_code = fault->code;
    record->pkey = fault->pkey;
    record->address = fault->address;
    set_registers(&at_fault, fault->instruction_pointer, fault->stack_pointer, first.frame_pointer);
    fill_place(record, &at_fault, fault->instruction_pointer, false);
    if (find_vma_from((u64)TASK_FIELD(void *, task, mm), config, fault->address,
                      &scratch->search) &&
        covers(&scratch->search.vma, fault->address))
        fill_mapping(&record->mapping, &scratch->search.vma);
    caller = fault->instruction_pointer;
    if (fault->access == ACCESS_EXECUTE)
        caller = caller_of(task, &at_fault, false);
    fill_stack(&record->stack, &scratch->unwinder, &scratch->search, task, &at_fault, caller);
    submit(record);
    return 0;
}
