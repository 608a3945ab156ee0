// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guard-page and protection faults, seen when their SIGSEGV is delivered: siginfo, error code,
 * mapping and handler are all there, and nothing is attached to the page-fault path.
 */

#include "abi.h"
#include "arch.h"
#include "call.h"
#include "counters.h"
#include "definitions.h"
#include "describe.h"
#include "emit.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "stack.h"

#define SIGSEGV 11
#define SI_KERNEL 0x80
#define SEGV_MAPERR 1
#define SEGV_ACCERR 2
#define SEGV_PKUERR 4
#define STACK_REACH (64 * 1024) /* an access this near to sp belongs to the stack */

struct fault {
    u64 address;
    u64 instruction_pointer;
    u64 stack_pointer;
    u64 error_code;
    u64 cause;
    u64 access;
    u64 disposition;
    u64 inferred;
    s32 code;
    u32 pkey;
};

/* The last fault of each thread that went to a handler: to know it again when the handler's frame
 * fails. */
struct handled {
    u64 address;
    u64 instruction_pointer;
    u64 stack_pointer;
    u64 error_code;
    u64 code;
    u64 cause;
    u64 access;
    u64 inferred;
};
BPF_TABLE("lru_hash", u64, struct handled, handled_faults, HANDLED_FAULTS_MAX);

/* No mapping at the address: below a stack and near its sp it is the stack's guard gap. */
static __always_inline bool is_stack_gap(struct fault *fault, struct vma *above)
{
    u64 distance = fault->address - fault->stack_pointer;

    return distance + STACK_REACH < 2 * STACK_REACH && above->address &&
           (above->flags & VM_GROWSDOWN);
}

/* include/uapi/asm-generic/siginfo.h and arch/x86/mm/fault.c: which check of the fault failed. */
static __always_inline u64 cause_of(struct config *config, struct fault *fault, struct vma *vma)
{
    bool mapped = covers(vma, fault->address);
    u64 flags = vma->flags;

    switch (fault->code) {
    case SEGV_PKUERR:
        return CAUSE_PKEY;
    case SEGV_ACCERR:
        if (!mapped)
            return CAUSE_OTHER;
        if (!(flags & (VM_READ | VM_WRITE | VM_EXEC))) /* a guard page, sealed or not */
            return CAUSE_PROT_NONE;
        return flags & config->sealed_mask ? CAUSE_SEALED : CAUSE_OTHER;
    case SEGV_MAPERR:
        if (!mapped) {
            fault->inferred = true;
            return is_stack_gap(fault, vma) ? CAUSE_STACK_GUARD : CAUSE_OTHER;
        }
        if (!(flags & required_permission(fault->access)))
            return CAUSE_OTHER;
        /*
         * A mapping covers the address and permits the access, and yet nothing was found there: a
         * guard region, unless another thread has mapped a hole since. Kernels that mark mappings
         * that may hold guard regions settle it.
         */
        fault->inferred = !(flags & config->maybe_guard_mask);
        return CAUSE_GUARD_REGION;
    }
    return CAUSE_OTHER;
}

/*
 * Second delivery of one fault: the frame of its handler did not fit on the stack, so the kernel
 * sent SIGSEGV again, with no address and the default action (kernel/signal.c, force_sigsegv()).
 * Nothing ran in between, so the registers are the same.
 */
static __always_inline bool is_failed_handler(struct fault *fault, u64 thread)
{
    struct handled *first = handled_faults.lookup(&thread);

    if (!first || fault->code != SI_KERNEL || fault->disposition != DISPOSITION_DEFAULT ||
        first->instruction_pointer != fault->instruction_pointer ||
        first->stack_pointer != fault->stack_pointer)
        return false;
    fault->address = first->address;
    fault->cause = first->cause;
    fault->access = first->access;
    fault->inferred = first->inferred;
    fault->error_code = first->error_code;
    fault->code = first->code;
    fault->disposition = DISPOSITION_HANDLER_FAILED;
    handled_faults.delete(&thread);
    return true;
}

static __always_inline void classify(struct fault *fault, struct task_struct *task,
                                     struct config *config, struct search *search, u64 thread)
{
    u64 mm = (u64)TASK_FIELD(void *, task, mm);
    bool failed = is_failed_handler(fault, thread), known;

    known = find_vma_from(mm, config, fault->address, search);
    if (failed)
        return;
    fault->error_code = fault_code(task);
    fault->access = access_of(fault->error_code);
    fault->cause = CAUSE_OTHER;
    /* The page fault must be this one: siginfo can be made up by the process itself, thread.* not.
     */
    if (known && has_faulted_at(task, fault->address))
        fault->cause = cause_of(config, fault, &search->vma);
    /* What came as SI_KERNEL looks the same as its second delivery. */
    if (fault->disposition == DISPOSITION_HANDLER && fault->code != SI_KERNEL) {
        struct handled first = {
            .address = fault->address,
            .instruction_pointer = fault->instruction_pointer,
            .stack_pointer = fault->stack_pointer,
            .error_code = fault->error_code,
            .code = fault->code,
            .cause = fault->cause,
            .access = fault->access,
            .inferred = fault->inferred,
        };

        handled_faults.update(&thread, &first);
    }
}

/* Raw tracepoint signal_deliver(int sig, struct kernel_siginfo *info, struct k_sigaction *ka). */
int signal_deliver(struct bpf_raw_tracepoint_args *ctx)
{
    struct config *config = configuration();
    struct bucket_key key = {};
    struct task_struct *task;
    struct counters *count;
    struct fault fault = {};
    struct scratch *scratch;
    struct pt_regs *regs;
    struct record *record;
    u64 handler = 0, thread, caller;
    bool canary;

    if ((int)ctx->args[0] != SIGSEGV || !config || !config->sealed_mask || !is_watched(config))
        return 0;
    READ_KERNEL(fault.code, ctx->args[1], kernel_siginfo__si_code);
    if (fault.code <= 0) /* kill, raise, sigqueue: no fault */
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    scratch = scratch_of(SCRATCH_FAULT);
    if (!scratch || !TASK_FIELD(void *, task, mm))
        return 0;
    regs = saved_registers(task);
    thread = bpf_get_current_pid_tgid();
    READ_KERNEL(fault.address, ctx->args[1], kernel_siginfo___sifields__sigfault__addr);
    READ_KERNEL(handler, ctx->args[2], k_sigaction__sa_sa_handler);
    if (fault.code == SEGV_PKUERR)
        READ_KERNEL(fault.pkey, ctx->args[1], kernel_siginfo___sifields__sigfault__addr_pkey__pkey);
    fault.instruction_pointer = instruction_pointer(regs);
    fault.stack_pointer = stack_pointer(regs);
    fault.disposition = handler ? DISPOSITION_HANDLER : DISPOSITION_DEFAULT;
    classify(&fault, task, config, &scratch->search, thread);

    canary = is_canary(config, task);
    count = counters_of(canary ? BANK_CANARY : BANK_HOST);
    if (!count || fault.cause >= CAUSES || fault.disposition >= DISPOSITIONS)
        return 0;
    COUNT(count->faults[fault.cause][fault.disposition]);
    if (!canary && !(config->emit_causes >> fault.cause & 1)) {
        COUNT(count->events[KIND_FAULT][OUTCOME_FILTERED]);
        return 0;
    }
    key.what = fault.cause;
    key.caller = fault.instruction_pointer;
    record = reserve(count, config, task, KIND_FAULT, &key, canary);
    if (!record)
        return 0;
    if (fault.inferred)
        record->flags |= RECORD_INFERRED;
    record->cause = fault.cause;
    record->access = fault.access;
    record->disposition = fault.disposition;
    record->error_code = fault.error_code;
    record->signal_code = fault.code;
    record->pkey = fault.pkey;
    record->address = fault.address;
    fill_place(record, regs, fault.instruction_pointer, false);
    if (covers(&scratch->search.vma, fault.address))
        fill_mapping(&record->mapping, &scratch->search.vma);
    /* Code that cannot be executed was called or jumped to: the word at sp may show from where. */
    caller = instruction_pointer(regs);
    if (fault.access == ACCESS_EXECUTE)
        caller = caller_of(instruction_pointer(regs), stack_pointer(regs), false);
    fill_stack(&record->stack, &scratch->unwinder, &scratch->search, task, regs, caller);
    submit(record);
    return 0;
}
