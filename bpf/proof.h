/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The proof: from a refused call to the sealed mapping that explains it, or to why none can be
 * named. Verdict `sealed` means that a seal in the range is by itself sufficient for this refusal,
 * and that nothing known could have refused earlier.
 */
#ifndef SEAL_MONITOR_PROOF_H
#define SEAL_MONITOR_PROOF_H

#include "abi.h"
#include "arch.h"
#include "call.h"
#include "definitions.h"
#include "handled.h"
#include "kernel.h"
#include "memory.h"
#include "overflow.h"
#include "stack.h"
#include "task.h"

/* include/uapi/asm-generic/mman-common.h, linux/mman.h, linux/shm.h */
#define PROT_EXEC 4
#define PROT_WRITE 2
#define MAP_TYPE 0xf
#define MAP_SHARED 1
#define MAP_SHARED_VALIDATE 3
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_LOCKED 0x2000
#define MAP_FIXED_NOREPLACE 0x100000
#define MREMAP_FIXED 2
#define SHM_RND 020000
#define SHM_REMAP 040000
#define MADV_DONTNEED 4
#define MADV_FREE 8
#define MADV_REMOVE 9
#define MADV_DONTFORK 10
#define MADV_WIPEONFORK 18
#define MADV_DONTNEED_LOCKED 24
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103

#define MAP_HUGE_SHIFT 26
#define MAP_HUGE_MASK 0x3f
#define MAP_HUGETLB 0x40000

#define IOVEC_LIMIT 1024                         /* UIO_MAXIOV */
#define TRANSFER_MAX PAGE_ALIGN_DOWN(0x7fffffff) /* MAX_RW_COUNT: vectors are cut there */

struct judgement {
    u64 verdict;
    u64 reason;
    u64 partial_start;
    u64 partial_end;
};

/*
 * Working memory of one run, in a map: the BPF stack is small. Each program has its own per CPU:
 * where programs can be preempted the kernel does not run one again on a CPU that is inside it. The
 * target of two programs' tail calls it does not protect so: begin_alone() in report.h does.
 */
struct scratch {
    struct call call;
    struct judgement judgement;
    struct search search;
    struct overflow overflow; /* of a fault */
    struct handled handled;
    struct unwinder unwinder; /* cleared where it is used, as is the walk of the search */
};
enum scratch_owner {
    SCRATCH_DENIED,
    SCRATCH_RAW_DENIED,
    SCRATCH_IO_URING,
    SCRATCH_SEALED,
    SCRATCH_SEALED_32,
    SCRATCH_RAW_SEALED,
    SCRATCH_FAULT,
    SCRATCH_ENDED,
    SCRATCH_UNMAPPING,
    SCRATCH_PROTECTION,
    SCRATCH_MREMAP_SOURCE,
    SCRATCH_ADVICE,
    SCRATCH_CHANGED,
    SCRATCH_RAW_CHANGED,
    SCRATCH_REMOTE,
    SCRATCH_COPIED,
    SCRATCH_ZEROED,
    SCRATCH_MOVED,
    SCRATCH_CALLS, /* and two for each operation */
    SCRATCHES = SCRATCH_CALLS + 2 * OPERATIONS,
};
BPF_TABLE("percpu_array", u32, struct scratch, scratches, SCRATCHES);

/* The caller fills all of its `call`. */
static __always_inline struct scratch *scratch_for_call(u32 owner)
{
    struct scratch *scratch = scratches.lookup(&owner);

    if (scratch)
        __builtin_memset(&scratch->judgement, 0,
                         __builtin_offsetof(struct scratch, search.index) -
                             __builtin_offsetof(struct scratch, judgement));
    return scratch;
}

static __always_inline struct scratch *scratch_of(u32 owner)
{
    struct scratch *scratch = scratch_for_call(owner);

    if (scratch)
        __builtin_memset(&scratch->call, 0, sizeof(scratch->call));
    return scratch;
}

/* mm/madvise.c, is_madv_discard(): advice that a seal can refuse. */
static __always_inline bool is_destructive(u32 advice)
{
    return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE ||
           advice == MADV_DONTFORK || advice == MADV_WIPEONFORK || advice == MADV_DONTNEED_LOCKED ||
           advice == MADV_GUARD_INSTALL;
}

/* Advice that drops pages, and with them what was written to a private file mapping. */
static __always_inline bool is_discarding(u32 advice)
{
    return advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED ||
           advice == MADV_GUARD_INSTALL;
}

/* Advice that can go around a seal: no seal refuses to take guard regions away. */
static __always_inline bool is_evasive(u32 advice)
{
    return is_discarding(advice) || advice == MADV_GUARD_REMOVE;
}

/* Checks of mmap(2) that answer EPERM before the kernel looks at what is mapped. */
static __always_inline bool mmap_has_other_cause(struct task_struct *task, struct config *config,
                                                 u64 address, u64 prot, u64 flags, s32 descriptor)
{
    u64 file;

    if (address < config->mmap_min_addr)
        return true;
    if ((flags & MAP_LOCKED) && has_no_lock_limit(task))
        return true;
    if (flags & MAP_ANONYMOUS)
        return false;
    file = file_of(task, descriptor);
    if (!file)
        return true; /* closed since: nothing to prove it with */
    if ((prot & PROT_EXEC) && on_noexec_mount(file))
        return true;
    return (prot & PROT_WRITE) &&
           ((flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE) &&
           is_write_sealed(file);
}

/*
 * The range of the vector at which process_madvise stopped: the one that begins after the bytes it
 * reports as done; the range before it was changed. Returns false when the whole vector was done,
 * or can't be read, or when something other than a seal stopped it there.
 */
static __always_inline bool find_refused_range(struct call *call, struct search *search,
                                               struct judgement *judgement)
{
    u64 vector = call->arguments[1], count = call->arguments[2], before = 0, loop = 0;
    u64 done = call->result > 0 ? call->result : 0, base, length;
    bool found = false;

    if (done >= TRANSFER_MAX)
        return false;

    loop_begin(&loop, IOVEC_LIMIT);
    while (loop_next(&loop)) {
        if (!count || before > done || !read_range(&vector, call->compat, &base, &length))
            break;
        if (length && before == done) {
            search->start = base;
            search->end = base + PAGE_ALIGN(length);
            found = base == PAGE_ALIGN_DOWN(base); /* else EINVAL */
            break;
        }
        judgement->partial_start = base;
        judgement->partial_end = base + PAGE_ALIGN(length);
        before += length;
        count--;
    }
    loop_end(&loop);
    return found;
}

/* What mmap(2) rounds its length up to: pages, of huge ones where it maps those. */
static __always_inline u64 mapped_length(struct task_struct *task, u64 length, u64 flags,
                                         s32 descriptor)
{
    u64 size = 0, shift = flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK;

    if (!(flags & MAP_ANONYMOUS))
        size = huge_page_size(file_of(task, descriptor));
    else if (flags & MAP_HUGETLB)
        size = 1ULL << (shift ? shift : DEFAULT_HUGE_SHIFT);
    return size ? (length + size - 1) & -size : PAGE_ALIGN(length);
}

/*
 * What the call was about: its ranges. False: this call can't have met a seal. Every operation has
 * a case: its range is plain, as operations.py says, or it is one of those here.
 */
#pragma clang diagnostic push
#pragma clang diagnostic error "-Wswitch"
static __always_inline bool ranges_of(struct call *call, struct task_struct *task,
                                      struct config *config, u64 mm, struct search *search,
                                      struct judgement *judgement)
{
    u64 *a = call->arguments, address = user_address(mm, a[0]), start, length, brk = 0;

    search->start = address;
    search->mask = config->sealed_mask;
    switch ((enum operation)call->operation) {
    PLAIN_RANGES:
        search->end = address + PAGE_ALIGN(a[1]);
        return true;
    case OP_REMAP_FILE_PAGES:
        search->start = PAGE_ALIGN_DOWN(a[0]);
        search->end = search->start + PAGE_ALIGN_DOWN(a[1]);
        return true;
    case OP_MMAP:
        search->start = a[0];
        search->end = a[0] + mapped_length(task, a[1], a[3], a[4]);
        return (a[3] & MAP_FIXED) && !(a[3] & MAP_FIXED_NOREPLACE);
    case OP_MREMAP:
        /*
         * mm/mremap.c: the mapping at the old address is checked first, then what the new range
         * replaces, then the rest of the source: the tail that shrinking cuts off, or the further
         * mappings that a fixed move takes along.
         */
        start = user_address(mm, a[4]);
        search->end = address + PAGE_BYTES;
        search->role = ROLE_SOURCE;
        if (a[3] & MREMAP_FIXED) {
            search->next_start = start;
            search->next_end = start + PAGE_ALIGN(a[2]);
            search->next_role = ROLE_DESTINATION;
            search->third_start = address;
            search->third_end = address + PAGE_ALIGN(a[1]);
        } else {
            search->third_start = address + PAGE_ALIGN(a[2]);
            search->third_end = address + PAGE_ALIGN(a[1]);
        }
        search->third_role = ROLE_SOURCE;
        return true;
    case OP_MADVISE:
    case OP_IO_URING_MADVISE:
        search->wanted = WANTED_REFUSING;
        search->end = address + PAGE_ALIGN(a[1]);
        return is_destructive(a[2]);
    case OP_PROCESS_MADVISE:
        search->wanted = WANTED_REFUSING;
        if (!is_destructive(a[3]))
            return false;
        if (!is_own_pidfd(task, a[0])) {
            judgement->reason = REASON_OTHER_PROCESS;
            return call->result < 0;
        }
        if (!find_refused_range(call, search, judgement)) {
            judgement->reason = REASON_UNKNOWN_LENGTH;
            return call->result < 0;
        }
        return true;
    case OP_SHMAT:
        if (!(a[2] & SHM_REMAP))
            return false;
        search->start = a[1];
        if (a[2] & SHM_RND)
            search->start = PAGE_ALIGN_DOWN(search->start);
        length = segment_size(task, a[0]);
        if (!length)
            judgement->reason = REASON_UNKNOWN_LENGTH;
        search->end = search->start + PAGE_ALIGN(length);
        return true;
    case OP_SHMDT:
        search->end = address + PAGE_BYTES;
        return true;
    case OP_BRK:
        READ_KERNEL(brk, mm, mm_struct__start_brk);
        search->start = PAGE_ALIGN(a[0]);
        search->end = PAGE_ALIGN(call->result);
        return a[0] >= brk;
    case OP_OTHER: /* has no range: functions.c proves it by the mapping alone */
    case OPERATIONS:
        break;
    }
    return false;
}

#pragma clang diagnostic pop

/* A reason known to refuse this call with EPERM before the kernel comes to the seal. */
static __always_inline bool has_other_cause(struct call *call, struct task_struct *task,
                                            struct config *config, struct search *search)
{
    u64 *a = call->arguments, mm = (u64)TASK_FIELD(void *, task, mm);

    switch (call->operation) {
    case OP_MREMAP:
        /* A fixed move of several mappings: the first of them finds out about the address. */
        return (a[3] & MREMAP_FIXED) && a[4] < config->mmap_min_addr &&
               search->vma.start > user_address(mm, a[0]);
    case OP_BRK:
        return exceeds_data_limit(task, mm, a[0]);
    case OP_MMAP:
        return mmap_has_other_cause(task, config, a[0], a[2], a[3], a[4]);
    case OP_SHMAT:
        return search->start < config->mmap_min_addr;
    case OP_REMAP_FILE_PAGES:
        return ((search->vma.flags | search->earlier_flags) & VM_LOCKED) && has_no_lock_limit(task);
    case OP_MADVISE:
    case OP_IO_URING_MADVISE:
        /* Punching a hole can fail for the file's own reasons: a write-sealed memfd, immutable. */
        return (u32)a[2] == MADV_REMOVE && search->earlier_files;
    case OP_PROCESS_MADVISE:
        if ((u32)a[3] == MADV_REMOVE && search->earlier_flags)
            return true;
        /* Its result hides the error, which may be the EINVAL of an earlier mapping. */
        return call->result >= 0 &&
               (search->earlier_files ||
                (search->earlier_flags & (VM_SHARED | VM_LOCKED | VM_PFNMAP | VM_HUGETLB)));
    }
    return false;
}

/* Whether a refused call has changed what lies in front of the mapping that refused. */
static __always_inline bool changes_partially(struct call *call, struct config *config, u8 role)
{
    switch (call->operation) {
    PARTIAL_LIKE_MPROTECT:
        return config->partial_mprotect;
    PARTIAL_LIKE_MADVISE:
        return config->partial_madvise;
    PARTIAL_LIKE_MREMAP:
        /* What shrinks on its way is cut first, whole or not at all. */
        return role == ROLE_SOURCE && (call->arguments[3] & MREMAP_FIXED) &&
               PAGE_ALIGN(call->arguments[1]) == PAGE_ALIGN(call->arguments[2]) &&
               config->partial_mremap;
    }
    return false;
}

/* The verdict, and the sealed mapping it rests on (search.vma). */
static __always_inline void judge(struct scratch *scratch, struct task_struct *task,
                                  struct config *config)
{
    u64 mm = (u64)TASK_FIELD(void *, task, mm);
    struct judgement *judgement = &scratch->judgement;
    struct search *search = &scratch->search;
    struct call *call = &scratch->call;

    judgement->verdict = VERDICT_NOT_SEALED;
    if (!mm)
        return;
    if (!ranges_of(call, task, config, mm, search, judgement)) {
        judgement->reason = REASON_NONE;
        return;
    }
    if (judgement->reason != REASON_NONE) {
        judgement->verdict = VERDICT_UNVERIFIED;
        return;
    }
    find_vma(mm, config, search);
    if (search->outcome == LOOKUP_NONE)
        return;
    /* A success: shmdt passes over what is no part of a segment. */
    if (call->operation == OP_SHMDT && search->outcome == LOOKUP_FOUND &&
        !is_segment(search->vma.address))
        return;
    judgement->verdict = VERDICT_UNVERIFIED;
    if (search->outcome == LOOKUP_TOO_LONG)
        judgement->reason = REASON_RANGE_TOO_LONG;
    else if (search->outcome == LOOKUP_CHANGED)
        judgement->reason = REASON_CHANGED_MEANWHILE;
    else if (has_other_cause(call, task, config, search))
        judgement->reason = REASON_OTHER_CAUSE;
    else if (is_emulated(task))
        judgement->reason = REASON_TRACED;
    else if (call->operation != OP_IO_URING_MADVISE &&
             !seccomp_excluded(task, call->number, call->compat))
        judgement->reason = has_late_filter(task) ? REASON_LATE_SECCOMP : REASON_SECCOMP;
    else
        judgement->verdict = VERDICT_SEALED;
    if (search->earlier_flags && changes_partially(call, config, search->role)) {
        judgement->partial_start = search->start;
        judgement->partial_end = search->vma.start;
    }
    if (judgement->verdict != VERDICT_SEALED)
        judgement->partial_start = judgement->partial_end = 0;
    if (call->operation == OP_MREMAP && search->role == ROLE_SOURCE) {
        /* What was looked at is a part of it; what the call was about is the whole source. */
        search->start = user_address(mm, call->arguments[0]);
        search->end = search->start + PAGE_ALIGN(call->arguments[1]);
    }
}

#endif
