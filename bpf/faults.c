// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guard-page and protection faults, seen when the kernel raises their SIGSEGV: siginfo, error code,
 * mapping and handler are all there, and nothing is attached to the page-fault path. Only there is
 * an exception distinguished from a signal that somebody has queued with a copied siginfo, and
 * seen although a tracer keeps its signal back.
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
#include "overflow.h"
#include "proof.h"
#include "stack.h"

#define SEGV_MAPERR 1
#define SEGV_ACCERR 2
#define SEGV_PKUERR 4
#define TRACE_SIGNAL_IGNORED 1 /* include/trace/events/signal.h */

/* include/uapi/asm-generic/siginfo.h and the processor's mm/fault.c: which check of the fault
 * failed.
 */
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
        if (flags & config->sealed_mask)
            return CAUSE_SEALED;
        return flags & VM_ACCESS ? CAUSE_OTHER : CAUSE_PROT_NONE;
    case SEGV_MAPERR:
        if (!mapped) {
            fault->inferred = true;
            return CAUSE_OTHER;
        }
        if (!(flags & required_permission(fault->access)))
            return CAUSE_OTHER;
        /*
         * A mapping covers the address and permits the access, and yet nothing was found there: a
         * guard region, or another thread has mapped a hole since. Kernels that mark mappings that
         * may hold guard regions settle it.
         */
        if (!may_hold_guards(config, vma))
            return CAUSE_OTHER;
        fault->inferred = !config->maybe_guard_mask;
        return CAUSE_GUARD_REGION;
    }
    return CAUSE_OTHER;
}

/* Whether what was hit may be what ends a stack. Nobody overflows one by a jump. */
static __always_inline bool may_end_stack(struct fault *fault, struct vma *at)
{
    if (fault->access == ACCESS_EXECUTE)
        return false;
    return fault->cause == CAUSE_PROT_NONE || fault->cause == CAUSE_GUARD_REGION ||
           (fault->code == SEGV_MAPERR && !covers(at, fault->address));
}

/*
 * Second signal of one fault: the frame of its handler did not fit on the stack, so the kernel
 * sent SIGSEGV again, with no address and the default action (kernel/signal.c, force_sigsegv()).
 * Nothing ran in between, so the registers are the same.
 */
static __always_inline bool is_failed_handler(struct fault *fault, u64 thread)
{
    struct handled *handled = handled_faults.lookup(&thread);
    struct fault *first = &handled->fault;

    if (!handled || fault->code != SI_KERNEL || fault->disposition != DISPOSITION_DEFAULT ||
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

/* Whether the configuration asks for an event of the fault. */
static __always_inline bool makes_event(struct config *config, u64 cause, u64 disposition)
{
    u64 is_handled = is_same(disposition, DISPOSITION_HANDLER);

    return (config->emit_causes * !is_handled | config->emit_handled * is_handled) >> cause & 1;
}

/* Keeps a fault that goes to a handler. One that does not is by itself how its thread ends. */
static __always_inline void note_handled(struct scratch *scratch, struct task_struct *task,
                                         struct pt_regs *regs, struct config *config, u64 thread)
{
    struct fault *fault = &scratch->overflow.fault;
    struct handled *handled = &scratch->handled;

    if (fault->disposition != DISPOSITION_HANDLER) {
        handled_faults.delete(&thread);
        return;
    }
    if (fault->code == SI_KERNEL) /* it looks the same as its second signal */
        return;
    handled->fault = *fault;
    handled->frame_pointer = frame_pointer(regs);
    handled->blocked = TASK_FIELD(u64, task, blocked);
    handled->execs = (u32)TASK_FIELD(u64, task, self_exec_id);
    handled->reported = makes_event(config, fault->cause, fault->disposition);
    handled_faults.update(&thread, handled);
}

static __always_inline void classify(struct fault *fault, struct task_struct *task,
                                     struct pt_regs *regs, struct config *config,
                                     struct scratch *scratch, u64 thread)
{
    struct search *search = &scratch->search;
    struct vma *at = &scratch->overflow.at;
    u64 mm = (u64)TASK_FIELD(void *, task, mm);
    bool failed = is_failed_handler(fault, thread), known;

    known = find_vma_from(mm, config, fault->address, search);
    *at = search->vma;
    if (failed)
        return;
    fault->error_code = fault_code(task);
    fault->access = access_of(fault->error_code);
    fault->cause = CAUSE_OTHER;
    /* Not every exception that raises SIGSEGV is a page fault. */
    known = known && has_faulted_at(task, fault->address);
    if (known)
        fault->cause = cause_of(config, fault, at);
    if (known && may_end_stack(fault, at) &&
        is_overflow(&scratch->overflow, task, mm, config, search)) {
        fault->cause = CAUSE_STACK_GUARD;
        fault->inferred = true;
    }
    note_handled(scratch, task, regs, config, thread);
}

/*
 * Whether the kernel raised the signal for what its own task did. All that a process can send to
 * itself it sends in a system call, with any siginfo it likes; an exception comes outside of calls.
 * In any other call the kernel alone gives SI_KERNEL: where the frame of some other signal's
 * handler does not fit, or sigreturn finds none. So it is with what a processor notices later.
 */
static __always_inline bool is_raised(struct task_struct *task, struct pt_regs *regs, u64 target,
                                      s32 code)
{
    if (code <= 0 || (u64)task != target) /* kill, raise, sigqueue; or somebody else's */
        return false;
    return is_exception(regs) ||
           ((code == SI_KERNEL || code == SEGV_NOTICED_LATER) && !queues_signals(task, regs));
}

/* The handler that the signal will find, 0: the default action. */
static __always_inline u64 handler_of(struct task_struct *task)
{
    u64 actions = (u64)TASK_FIELD(void *, task, sighand) + OFF_sighand_struct__action;

    return *kernel_words(actions + (SIGSEGV - 1) * SIZE_k_sigaction +
                         OFF_k_sigaction__sa_sa_handler);
}

/*
 * Raw tracepoint signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task,
 * int group, int result). It runs under siglock, as signal_deliver does. A signal that is pending
 * already swallows this one, but the fault is there. Only in a process that is ending already the
 * kernel ignores a signal that it has raised itself: there frames do not fit because of that.
 */
int signal_generate(struct bpf_raw_tracepoint_args *ctx)
{
    struct config *config = configuration();
    struct bucket_key key = {};
    struct task_struct *task;
    struct counters *count;
    struct scratch *scratch;
    u64 info = ctx->args[1], code, cause, disposition;
    struct pt_regs *regs;
    struct fault *fault;
    struct record *record;
    u64 thread, caller;
    enum bank bank;

    if ((int)ctx->args[0] != SIGSEGV || (int)ctx->args[4] == TRACE_SIGNAL_IGNORED || !config ||
        !config->sealed_mask || !is_watched(config))
        return 0;
    code = KERNEL_WORD(info, kernel_siginfo__si_code);
    task = (struct task_struct *)bpf_get_current_task_btf();
    regs = saved_registers(task);
    if (!is_raised(task, regs, ctx->args[2], code))
        return 0;
    scratch = scratch_of(SCRATCH_FAULT);
    if (!scratch || !TASK_FIELD(void *, task, mm))
        return 0;
    thread = bpf_get_current_pid_tgid();
    fault = &scratch->overflow.fault;
    *fault = (struct fault){};
    fault->code = code;
    fault->address = fault_address(KERNEL_WORD(info, kernel_siginfo___sifields__sigfault__addr));
    if (fault->code == SEGV_PKUERR)
        READ_KERNEL(fault->pkey, info, kernel_siginfo___sifields__sigfault__addr_pkey__pkey);
    fault->instruction_pointer = instruction_pointer(regs);
    fault->stack_pointer = stack_pointer(regs);
    fault->disposition = handler_of(task) ? DISPOSITION_HANDLER : DISPOSITION_DEFAULT;
    classify(fault, task, regs, config, scratch, thread);

    bank = bank_of(config, task);
    count = counters_of(bank);
    cause = fault->cause;
    disposition = fault->disposition;
    if (!count || cause >= CAUSES || disposition >= DISPOSITIONS)
        return 0;
    COUNT(count->faults[cause][disposition]);
    if (!wants_event(bank, makes_event(config, cause, disposition))) {
        COUNT(count->events[KIND_FAULT][OUTCOME_FILTERED]);
        return 0;
    }
    key.what = cause;
    key.caller = fault->instruction_pointer;
    record = reserve(count, config, task, KIND_FAULT, &key, bank);
    if (!record)
        return 0;
    if (fault->inferred)
        record->flags |= RECORD_INFERRED;
    record->cause = cause;
    record->access = fault->access;
    record->disposition = disposition;
    record->error_code = fault->error_code;
    record->signal_code = fault->code;
    record->pkey = fault->pkey;
    record->address = fault->address;
    fill_place(record, regs, fault->instruction_pointer, false);
    if (covers(&scratch->overflow.at, fault->address))
        fill_mapping(&record->mapping, &scratch->overflow.at);
    /* Code that cannot be executed was called or jumped to: its return address may show from where.
     */
    caller = instruction_pointer(regs);
    if (fault->access == ACCESS_EXECUTE)
        caller = caller_of(task, regs, false);
    fill_stack(&record->stack, &scratch->unwinder, &scratch->search, task, regs, caller);
    submit(record);
    return 0;
}
