// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's own functions in which a seal refuses, seen at their return (fexit).
 *
 * Where one of them answers EPERM the proof is made: nothing but a seal makes it answer so, and
 * nothing before it has refused. They are seen whoever calls them: also in a call that returns no
 * error, in a 32-bit one, and in one that nobody knows to touch mappings. No other system call pays
 * anything. The call and its arguments come from the registers saved at its entry. All of these
 * functions run under mmap_lock (or the lock of the mapping), so what is looked up is what they
 * saw.
 */

#include "abi.h"
#include "arch.h"
#include "bypasses.h"
#include "call.h"
#include "counters.h"
#include "definitions.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "report.h"
#include "seals.h"
#include "task.h"

/* A refusal by one of these functions: who is in which call, and memory to work in. */
struct refusal {
    struct config *config;
    struct task_struct *task;
    struct pt_regs *regs;
    struct scratch *scratch;
};

/*
 * The call in which a function has refused. False where it is not to be looked at, or another hook
 * reports it. io_uring's workers have no call of their own: io_madvise() reports theirs.
 */
static __always_inline bool find_call(struct refusal *refusal, u32 owner)
{
    struct config *config = configuration();
    struct task_struct *task;
    struct pt_regs *regs;
    struct call *call;

    task = (struct task_struct *)bpf_get_current_task_btf();
    regs = saved_registers(task);
    if (!config || !config->sealed_mask || !TASK_FIELD(void *, task, mm) ||
        TASK_FIELD(u32, task, flags) & PF_IO_WORKER || !is_watched(config))
        return false;
    refusal->scratch = scratch_of(owner);
    if (!refusal->scratch)
        return false;
    refusal->config = config;
    refusal->task = task;
    refusal->regs = regs;
    call = &refusal->scratch->call;
    call->result = -EPERM;
    call->number = number_of(regs);
    call->compat = is_compat(task);
    call->operation = current_operation(task, regs);
    /* A process that ends may do so in any call, or in none. */
    if (call->operation >= OPERATIONS || TASK_FIELD(u32, task, flags) & PF_EXITING)
        call->operation = OP_OTHER;
    if (!(config->function_operations >> call->operation & 1))
        return false;
    read_arguments(call, regs);
    if (call->operation == OP_OTHER) {
        /* Its arguments may be anything; which call it was is what helps. */
        __builtin_memset(call->arguments, 0, sizeof(call->arguments));
        call->arguments[0] = call->number;
        /* Those that are known, such as io_destroy, close and exit, return no error. */
        call->result = 0;
    }
    return true;
}

/* These functions refuse nothing but seals: without one the cause is not known yet. */
static __always_inline void prove(struct refusal *refusal)
{
    struct judgement *judgement = &refusal->scratch->judgement;
    struct search *search = &refusal->scratch->search;

    judgement->verdict = VERDICT_SEALED;
    if (!(search->vma.flags & refusal->config->sealed_mask)) {
        judgement->verdict = VERDICT_NOT_SEALED;
        judgement->partial_start = judgement->partial_end = 0;
        search->vma.address = 0;
    }
}

static __always_inline int report_refusal(struct refusal *refusal)
{
    return report(refusal->scratch, refusal->task, refusal->regs, refusal->config);
}

/* What lies in front of the mapping that refused is changed: the function came by it first. */
static __always_inline void set_partial(struct scratch *scratch)
{
    if (scratch->search.start >= scratch->search.vma.start)
        return;
    scratch->judgement.partial_start = scratch->search.start;
    scratch->judgement.partial_end = scratch->search.vma.start;
}

/* Most calls begin with address and length; of any other the mapping is all that is known. */
static __always_inline void set_range(struct scratch *scratch, struct task_struct *task)
{
    struct search *search = &scratch->search;

    if (scratch->call.operation == OP_OTHER) {
        search->start = search->vma.start;
        search->end = search->vma.end;
        return;
    }
    search->start = user_address((u64)TASK_FIELD(void *, task, mm), scratch->call.arguments[0]);
    search->end = search->start + PAGE_ALIGN(scratch->call.arguments[1]);
}

/* The calls that unmap a range have different arguments: the range is the one to be unmapped. */
static __always_inline bool find_refusing_vma(struct refusal *refusal, u64 unmapping)
{
    struct scratch *scratch = refusal->scratch;
    u64 mm = (u64)TASK_FIELD(void *, refusal->task, mm);
    u64 start = KERNEL_WORD(unmapping, vma_munmap_struct__start);
    u64 end = KERNEL_WORD(unmapping, vma_munmap_struct__end);
    u64 iterator = KERNEL_WORD(unmapping, vma_munmap_struct__vmi);
    struct search *search = &scratch->search;
    u64 *a = scratch->call.arguments;

    /* The iterator stayed at the mapping that refused. shmdt unmaps mapping by mapping. */
    search->start = KERNEL_WORD(iterator, vma_iterator__mas_index);
    if (search->start < start || search->start >= end)
        search->start = start;
    if (scratch->call.operation == OP_SHMDT)
        search->start = a[0];
    search->end = end;
    search->mask = refusal->config->sealed_mask;
    find_vma(mm, refusal->config, search);
    search->start = start;
    switch (scratch->call.operation) {
    case OP_MREMAP:
        if ((a[3] & MREMAP_FIXED) && start - user_address(mm, a[4]) < PAGE_ALIGN(a[2])) {
            search->role = ROLE_DESTINATION;
            break;
        }
        search->role = ROLE_SOURCE;
        set_range(scratch, refusal->task);
        break;
    case OP_BRK:
        scratch->call.result = end;
        break;
    case OP_SHMDT:
        scratch->call.result = 0;
        /* An earlier part of the segment refused: this call is reported already. */
        if (search->vma.address && search->vma.start < start && is_segment(search->vma.address))
            return false;
        read_vma(&search->vma, KERNEL_WORD(unmapping, vma_munmap_struct__vma));
        search->outcome = LOOKUP_FOUND;
        break;
    }
    return true;
}

int fexit_vms_gather_munmap_vmas(u64 *ctx)
{
    struct refusal refusal;
    struct judgement *judgement;

    if ((s32)RESULT(ctx, vms_gather_munmap_vmas) != -EPERM ||
        !find_call(&refusal, SCRATCH_UNMAPPING) ||
        !find_refusing_vma(&refusal, ARGUMENT(ctx, vms_gather_munmap_vmas, vms)))
        return 0;
    judgement = &refusal.scratch->judgement;
    if (refusal.scratch->search.outcome == LOOKUP_FOUND) {
        prove(&refusal);
    } else {
        judgement->verdict = VERDICT_UNVERIFIED;
        judgement->reason = REASON_CHANGED_MEANWHILE;
    }
    return report_refusal(&refusal);
}

int fexit_mprotect_fixup(u64 *ctx)
{
    struct refusal refusal;

    if ((s32)RESULT(ctx, mprotect_fixup) != -EPERM || !find_call(&refusal, SCRATCH_PROTECTION))
        return 0;
    read_vma(&refusal.scratch->search.vma, ARGUMENT(ctx, mprotect_fixup, vma));
    set_range(refusal.scratch, refusal.task);
    /* It came here mapping by mapping, and stops at a hole: the range was mapped up to here. */
    if (refusal.config->partial_mprotect)
        set_partial(refusal.scratch);
    prove(&refusal);
    return report_refusal(&refusal);
}

int fexit_check_prep_vma(u64 *ctx)
{
    struct refusal refusal;
    struct search *search;

    if ((s32)RESULT(ctx, check_prep_vma) != -EPERM || !find_call(&refusal, SCRATCH_MREMAP_SOURCE))
        return 0;
    search = &refusal.scratch->search;
    read_vma(&search->vma, KERNEL_WORD(ARGUMENT(ctx, check_prep_vma, vrm), vma_remap_struct__vma));
    search->role = ROLE_SOURCE;
    set_range(refusal.scratch, refusal.task);
    /* A fixed move of several mappings: those before this one have moved. */
    if (changes_partially(&refusal.scratch->call, refusal.config, ROLE_SOURCE))
        set_partial(refusal.scratch);
    prove(&refusal);
    return report_refusal(&refusal);
}

/*
 * The range of the vector that the mapping lies in: process_madvise had come so far. The ranges
 * before it are done, and the call returns their bytes.
 */
static __always_inline void find_range_of(struct scratch *scratch, struct vma *vma)
{
    u64 vector = scratch->call.arguments[1], count = scratch->call.arguments[2], done = 0, loop = 0;
    struct judgement *judgement = &scratch->judgement;
    struct search *search = &scratch->search;
    u64 base, length;

    search->start = vma->start;
    search->end = vma->end;
    loop_begin(&loop, IOVEC_LIMIT);
    while (loop_next(&loop)) {
        if (!count || !read_range(&vector, scratch->call.compat, &base, &length))
            break;
        if (base < vma->end && base + length > vma->start) {
            search->start = base;
            search->end = base + PAGE_ALIGN(length);
            break;
        }
        judgement->partial_start = base;
        judgement->partial_end = base + PAGE_ALIGN(length);
        done += length;
        count--;
    }
    loop_end(&loop);
    if (done)
        scratch->call.result = done;
}

static __always_inline int advice_refused(u64 address, bool is_proof)
{
    struct refusal refusal;
    struct scratch *scratch;
    struct search *search;
    struct vma refusing;

    if (!find_call(&refusal, SCRATCH_ADVICE))
        return 0;
    scratch = refusal.scratch;
    search = &scratch->search;
    read_vma(&search->vma, address);
    /* Punching a hole into a file can fail here, too, and that is no seal's doing. */
    if (!is_proof && !refuses_advice(refusal.config, &search->vma))
        return 0;
    refusing = search->vma;
    if (scratch->call.operation == OP_PROCESS_MADVISE)
        find_range_of(scratch, &refusing);
    else
        set_range(scratch, refusal.task);
    if (refusal.config->partial_madvise && search->start < refusing.start) {
        u64 start = search->start, end = search->end;

        /* Unlike mprotect it passes over holes: something must have been there. */
        search->end = refusing.start;
        find_vma(KERNEL_WORD(address, vm_area_struct__vm_mm), refusal.config, search);
        if (search->outcome == LOOKUP_FOUND) {
            scratch->judgement.partial_start = start;
            scratch->judgement.partial_end = refusing.start;
        }
        search->start = start;
        search->end = end;
        search->vma = refusing;
    }
    prove(&refusal);
    return report_refusal(&refusal);
}

/* Whether the advice changes what a sealed mapping holds. */
static __always_inline bool goes_around(struct config *config, u32 advice, struct vma *vma)
{
    if (advice == MADV_GUARD_REMOVE)
        return may_hold_guards(config, vma);
    return advice == MADV_GUARD_INSTALL ? is_private_file(vma) : has_copies(vma);
}

/*
 * The function has let the advice pass on one mapping. Which part of it is known where the kernel
 * passes the part on; else it is the whole mapping, cut down to the range of the call.
 */
static __always_inline int advice_taken(u32 advice, u64 address, u64 start, u64 end)
{
    struct config *config = configuration();
    struct task_struct *task;
    struct scratch *scratch;
    struct search *search;
    struct vma vma;

    if (!config || !config->sealed_mask)
        return 0;
    read_vma(&vma, address);
    if (!(vma.flags & config->sealed_mask) || !goes_around(config, advice, &vma))
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    scratch = scratch_of(SCRATCH_ADVICE);
    if (!scratch)
        return 0;
    search = &scratch->search;
    scratch->call.compat = is_compat(task);
    if (!(TASK_FIELD(u32, task, flags) & PF_IO_WORKER)) {
        struct pt_regs *regs = saved_registers(task);

        scratch->call.operation = current_operation(task, regs);
        read_arguments(&scratch->call, regs);
    }
    search->vma = vma;
    search->start = start;
    search->end = end;
    if (!end) {
        search->end = vma.end;
        if (scratch->call.operation == OP_MADVISE)
            set_range(scratch, task);
        else if (scratch->call.operation == OP_PROCESS_MADVISE)
            find_range_of(scratch, &vma);
    }
    return report_bypass(scratch, task, config,
                         advice == MADV_GUARD_REMOVE ? METHOD_GUARD_REMOVE : METHOD_MADVISE_DISCARD,
                         (u64)task);
}

/* What can_modify_vma_madv() permits is done, except in mappings of these kinds. */
static __always_inline u64 kept_from(u32 advice)
{
    if (advice == MADV_DONTNEED_LOCKED)
        return VM_PFNMAP;
    if (advice == MADV_GUARD_REMOVE)
        return VM_PFNMAP | VM_HUGETLB;
    return VM_LOCKED | VM_PFNMAP | VM_HUGETLB;
}

int fexit_can_modify_vma_madv(u64 *ctx)
{
    u64 vma = ARGUMENT(ctx, can_modify_vma_madv, vma);
    u32 advice = ARGUMENT(ctx, can_modify_vma_madv, behavior);

    /* A bool: one byte, the rest of the register is anything. */
    if (!(u8)RESULT(ctx, can_modify_vma_madv))
        return advice_refused(vma, true);
    if (!is_evasive(advice) || KERNEL_WORD(vma, vm_area_struct__vm_flags) & kept_from(advice))
        return 0;
    if (advice == MADV_GUARD_INSTALL) {
        struct config *config = configuration();

        if (!config || !config->guard_files)
            return 0;
    }
    return advice_taken(advice, vma, 0, 0);
}

int fexit_madvise_vma_behavior(u64 *ctx)
{
    u64 behavior = ARGUMENT(ctx, madvise_vma_behavior, madv_behavior);
    u32 advice = KERNEL_WORD(behavior, madvise_behavior__behavior);
    s32 result = RESULT(ctx, madvise_vma_behavior);
    u64 start = 0, end = 0;

    if (result == -EPERM)
        return advice_refused(KERNEL_WORD(behavior, madvise_behavior__vma), false);
    if (result || !is_evasive(advice))
        return 0;
    if (HAS(madvise_behavior__range_start) && HAS(madvise_behavior__range_end)) {
        start = KERNEL_WORD(behavior, madvise_behavior__range_start);
        end = KERNEL_WORD(behavior, madvise_behavior__range_end);
    }
    return advice_taken(advice, KERNEL_WORD(behavior, madvise_behavior__vma), start, end);
}

static __always_inline int on_mseal(u32 scratch_owner, s64 result, bool compat)
{
    struct task_struct *task;

    if (result != 0 && result != -EINVAL)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    return sealed(scratch_owner, task, saved_registers(task), result, compat);
}

#define MSEAL_PROGRAM(function, scratch, compat)                                                   \
    int fexit_##function(u64 *ctx)                                                                 \
    {                                                                                              \
        return on_mseal(scratch, RESULT(ctx, function), compat);                                   \
    }
MSEAL_PROGRAMS
