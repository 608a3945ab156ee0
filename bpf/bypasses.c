// SPDX-License-Identifier: GPL-2.0-only
/* Ways around a seal other than madvise, which the programs of that call see, each with its hook.
 */

#ifdef WITH_EXITS
int exit_ptrace(struct sys_exit *ctx)
{
    struct task_struct *task;
    struct pt_regs *regs;

    if (ctx->result)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    regs = saved_registers(task);
    return is_poke(regs->di) ? report_poke(SCRATCH_POKED, task, regs, false) : 0;
}
#endif

#ifdef WITH_RAW_EXITS
int raw_poked(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();

    raw_tails.call(ctx, TAIL_NONE);
    begin_alone();
    report_poke(SCRATCH_RAW_POKED, task, saved_registers(task), is_compat(task));
    end_alone();
    return 0;
}
#endif

/* The process that has the memory, as far as the kernel keeps it (CONFIG_MEMCG), or 0. */
static __always_inline u64 owner_of(struct task_struct *task, u64 mm)
{
    u64 owner = 0;

    if (mm == (u64)TASK_FIELD(void *, task, mm))
        return (u64)TASK_FIELD(void *, task, group_leader);
#ifdef HAS_mm_struct__owner
    owner = KERNEL_WORD(mm, mm_struct__owner);
    if (owner)
        owner = KERNEL_WORD(owner, task_struct__group_leader);
#endif
    return owner;
}

#if defined(WITH_REMOTE) && defined(HAS_FUNCTION_access_remote_vm)
#define FOLL_WRITE 1 /* include/linux/mm_types.h */

/* What /proc/PID/mem and ptrace write by, whoever asks them, be it io_uring or sendfile. */
int fexit_access_remote_vm(u64 *ctx)
{
    u64 mm = ctx[ARG_access_remote_vm__mm], method = METHOD_PROC_MEM_WRITE;
    s32 written = ctx[RETURN_access_remote_vm];
    struct config *config;
    struct task_struct *task;
    struct scratch *scratch;
    struct pt_regs *regs;

    if (written <= 0 || !(ctx[ARG_access_remote_vm__gup_flags] & FOLL_WRITE))
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
            method = METHOD_PTRACE_POKE;
    }
    scratch->search.start = ctx[ARG_access_remote_vm__addr];
    scratch->search.end = scratch->search.start + written;
    return report_write(scratch, task, config, method, mm, owner_of(task, mm));
}
#endif

#ifdef HAS_userfaultfd_ctx__mm
/*
 * A userfaultfd has put pages where none were, in memory that need not be the caller's. `start` and
 * `end` are what it did, by the kernel's own count.
 */
static __always_inline int filled(u32 owner, u64 context, u64 start, s64 bytes)
{
    struct config *config = configuration();
    struct task_struct *task;
    struct scratch *scratch;
    u64 mm;

    if (bytes <= 0 || !config || !config->sealed_mask)
        return 0;
    scratch = scratch_of(owner);
    if (!scratch)
        return 0;
    task = (struct task_struct *)bpf_get_current_task_btf();
    mm = KERNEL_WORD(context, userfaultfd_ctx__mm);
    scratch->call.compat = is_compat(task);
    scratch->search.start = start;
    scratch->search.end = start + bytes;
    return report_write(scratch, task, config, METHOD_USERFAULTFD_COPY, mm, owner_of(task, mm));
}

#if defined(WITH_USERFAULTFD) && defined(HAS_FUNCTION_mfill_atomic_copy)
int fexit_mfill_atomic_copy(u64 *ctx)
{
    return filled(SCRATCH_COPIED, ctx[ARG_mfill_atomic_copy__ctx],
                  ctx[ARG_mfill_atomic_copy__dst_start], ctx[RETURN_mfill_atomic_copy]);
}
#endif

#if defined(WITH_USERFAULTFD) && defined(HAS_FUNCTION_mfill_atomic_zeropage)
int fexit_mfill_atomic_zeropage(u64 *ctx)
{
    return filled(SCRATCH_ZEROED, ctx[ARG_mfill_atomic_zeropage__ctx],
                  ctx[ARG_mfill_atomic_zeropage__start], ctx[RETURN_mfill_atomic_zeropage]);
}
#endif

/* Pages were moved out of a sealed mapping or into one: what mremap is refused. Both are writable.
 */
static __always_inline int moved(u64 context, u64 destination, u64 source, s64 bytes)
{
    struct config *config = configuration();
    struct task_struct *task;
    struct scratch *scratch;
    struct search *search;
    u64 mm;

    if (bytes <= 0 || !config || !config->sealed_mask)
        return 0;
    scratch = scratch_of(SCRATCH_MOVED);
    if (!scratch)
        return 0;
    search = &scratch->search;
    task = (struct task_struct *)bpf_get_current_task_btf();
    mm = KERNEL_WORD(context, userfaultfd_ctx__mm);
    scratch->call.compat = is_compat(task);
    search->start = source;
    search->end = source + bytes;
    search->next_start = destination;
    search->next_end = destination + bytes;
    search->mask = config->sealed_mask;
    find_vma(mm, config, search);
    if (search->outcome != LOOKUP_FOUND)
        return 0;
    return tell_bypass(scratch, task, config, METHOD_USERFAULTFD_MOVE, owner_of(task, mm));
}

#if defined(WITH_MOVE_PAGES) && defined(HAS_FUNCTION_move_pages)
int fexit_move_pages(u64 *ctx)
{
    return moved(ctx[ARG_move_pages__ctx], ctx[ARG_move_pages__dst_start],
                 ctx[ARG_move_pages__src_start], ctx[RETURN_move_pages]);
}
#endif

#if defined(WITH_USERFAULTFD_IOCTL) && defined(HAS_FUNCTION_userfaultfd_ioctl)
#define UFFDIO_MOVE 0xc028aa05

/* include/uapi/linux/userfaultfd.h */
struct uffdio_move {
    u64 dst, src, len, mode;
    s64 move; /* written by the kernel: the bytes that it has moved */
};

/* Where that function is none of its own: the arguments are those that the process shows. */
int fexit_userfaultfd_ioctl(u64 *ctx)
{
    struct uffdio_move asked;

    if ((u32)ctx[ARG_userfaultfd_ioctl__cmd] != UFFDIO_MOVE ||
        bpf_probe_read_user(&asked, sizeof(asked), (void *)ctx[ARG_userfaultfd_ioctl__arg]))
        return 0;
    return moved(KERNEL_WORD(ctx[ARG_userfaultfd_ioctl__file], file__private_data), asked.dst,
                 asked.src, asked.move);
}
#endif
#endif
