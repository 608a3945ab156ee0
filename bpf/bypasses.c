// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ways around a seal that show in the kernel's own functions alone, seen at their return (fexit).
 * Those by madvise are seen where that call is, and so are those by ptrace where fexit programs are
 * refused.
 */

#include "abi.h"
#include "arch.h"
#include "bypasses.h"
#include "call.h"
#include "counters.h"
#include "kernel.h"
#include "memory.h"
#include "proof.h"
#include "task.h"

/* A thread that has the memory, as far as the kernel keeps it (CONFIG_MEMCG), or 0. */
static __always_inline u64 owner_of(struct task_struct *task, u64 mm)
{
    u64 owner = 0;

    if (mm == (u64)TASK_FIELD(void *, task, mm))
        return (u64)task;
    if (HAS(mm_struct__owner))
        owner = KERNEL_WORD(mm, mm_struct__owner);
    return owner;
}

#define FOLL_WRITE 1 /* include/linux/mm_types.h */

/* /proc/PID/mem and ptrace write by this function, also where io_uring or sendfile asks them to. */
int fexit_access_remote_vm(u64 *ctx)
{
    struct change change = {METHOD_PROC_MEM_WRITE, ARGUMENT(ctx, access_remote_vm, mm)};
    s32 written = RESULT(ctx, access_remote_vm);
    struct config *config;
    struct task_struct *task;
    struct scratch *scratch;
    struct pt_regs *regs;

    if (written <= 0 || !(ARGUMENT(ctx, access_remote_vm, gup_flags) & FOLL_WRITE))
        return 0;
    config = configuration();
    if (!config || !config->sealed_mask)
        return 0;
    scratch = scratch_of(SCRATCH_REMOTE);
    if (!scratch)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    regs = saved_registers(task);
    if (!(TASK_FIELD(u32, task, flags) & PF_IO_WORKER)) {
        scratch->call.compat = is_compat(task);
        if (number_of(regs) == (scratch->call.compat ? NR_PTRACE_32 : NR_PTRACE))
            change.method = METHOD_PTRACE_POKE;
    }
    change.owner = owner_of(task, change.mm);
    set_written(&scratch->search, ARGUMENT(ctx, access_remote_vm, addr), written);
    return find_and_report(scratch, task, config, &change);
}

/*
 * A userfaultfd has put pages where none were, in memory that need not be the caller's. `start` and
 * `end` are what it did, by the kernel's own count.
 */
static __always_inline int filled(u32 owner, u64 context, u64 start, s64 bytes)
{
    struct config *config = configuration();
    struct change change = {METHOD_USERFAULTFD_COPY};
    struct task_struct *task;
    struct scratch *scratch;

    if (bytes <= 0 || !config || !config->sealed_mask)
        return 0;
    scratch = scratch_of(owner);
    if (!scratch)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    scratch->call.compat = is_compat(task);
    change.mm = KERNEL_WORD(context, userfaultfd_ctx__mm);
    change.owner = owner_of(task, change.mm);
    set_written(&scratch->search, start, bytes);
    return find_and_report(scratch, task, config, &change);
}

int fexit_mfill_atomic_copy(u64 *ctx)
{
    return filled(SCRATCH_COPIED, ARGUMENT(ctx, mfill_atomic_copy, ctx),
                  ARGUMENT(ctx, mfill_atomic_copy, dst_start), RESULT(ctx, mfill_atomic_copy));
}

int fexit_mfill_atomic_zeropage(u64 *ctx)
{
    return filled(SCRATCH_ZEROED, ARGUMENT(ctx, mfill_atomic_zeropage, ctx),
                  ARGUMENT(ctx, mfill_atomic_zeropage, start), RESULT(ctx, mfill_atomic_zeropage));
}

/* Pages were moved out of a sealed mapping or into one: what mremap is refused. Both are writable.
 */
static __always_inline int moved(u64 context, u64 destination, u64 source, s64 bytes)
{
    struct config *config = configuration();
    struct change change = {METHOD_USERFAULTFD_MOVE};
    struct task_struct *task;
    struct scratch *scratch;
    struct search *search;

    if (bytes <= 0 || !config || !config->sealed_mask)
        return 0;
    scratch = scratch_of(SCRATCH_MOVED);
    if (!scratch)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    scratch->call.compat = is_compat(task);
    change.mm = KERNEL_WORD(context, userfaultfd_ctx__mm);
    change.owner = owner_of(task, change.mm);
    search = &scratch->search;
    search->start = source;
    search->end = source + bytes;
    search->next_start = destination;
    search->next_end = destination + bytes;
    return find_and_report(scratch, task, config, &change);
}

int fexit_move_pages(u64 *ctx)
{
    return moved(ARGUMENT(ctx, move_pages, ctx), ARGUMENT(ctx, move_pages, dst_start),
                 ARGUMENT(ctx, move_pages, src_start), RESULT(ctx, move_pages));
}

#define UFFDIO_MOVE 0xc028aa05

/* include/uapi/linux/userfaultfd.h */
struct uffdio_move {
    u64 dst, src, len, mode;
    s64 move; /* written by the kernel: the bytes that it has moved */
};

/*
 * Where the compiler has inlined move_pages(): the ioctl that calls it. The process can change its
 * arguments meanwhile.
 */
int fexit_userfaultfd_ioctl(u64 *ctx)
{
    struct uffdio_move asked;

    if ((u32)ARGUMENT(ctx, userfaultfd_ioctl, cmd) != UFFDIO_MOVE ||
        read_user(&asked, sizeof(asked), (void *)ARGUMENT(ctx, userfaultfd_ioctl, arg)))
        return 0;
    return moved(KERNEL_WORD(ARGUMENT(ctx, userfaultfd_ioctl, file), file__private_data), asked.dst,
                 asked.src, asked.move);
}
