// SPDX-License-Identifier: GPL-2.0-only
/* mseal(2) itself: how much was sealed, and by whom when that is asked for. */

static __always_inline int sealed(u32 scratch_owner, struct task_struct *task, struct pt_regs *regs,
                                  s64 result)
{
    struct config *config = configuration();
    u64 mm = (u64)TASK_FIELD(void *, task, mm), address;
    struct bucket_key key = {};
    struct counters *count;
    struct record *record;
    struct scratch *scratch;
    bool canary;

    if (!config || !mm)
        return 0;
    canary = is_canary(config, task);
    /* Calibration compares a mapping's flags before a seal, at an mseal that fails, and after. */
    if (result != 0 && !canary)
        return 0;
    count = counters_of(canary ? BANK_CANARY : BANK_HOST);
    if (!count)
        return 0;
    COUNT(count->seals);
    COUNT_MORE(count->sealed_bytes, PAGE_ALIGN(regs->si));
    if (!canary && !config->emit_seals) {
        COUNT(count->events[KIND_SEAL][OUTCOME_FILTERED]);
        return 0;
    }
    key.caller = caller_of(regs->ip, regs->sp, false);
    record = reserve(count, config, task, KIND_SEAL, &key, canary);
    if (!record)
        return 0;
    record->result = result;
    record->arguments[0] = regs->di;
    record->arguments[1] = regs->si;
    record->arguments[2] = regs->dx;
    record->instruction_pointer = regs->ip;
    record->stack_pointer = regs->sp;
    record->caller = key.caller;
    record->address = regs->di;
    record->length = PAGE_ALIGN(regs->si);
    address = user_address(mm, regs->di);
    scratch = scratch_of(scratch_owner);
    if (scratch && find_vma_from(mm, config, address, &scratch->search) &&
        covers(&scratch->search.vma, address))
        fill_mapping(&record->mapping, &scratch->search.vma);
    submit(record);
    return 0;
}
