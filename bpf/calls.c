// SPDX-License-Identifier: GPL-2.0-only
/*
 * The functions of the system calls, seen at their return (fexit): where the function in which a
 * seal refuses cannot be attached to, they stand in for it, call by call. The proof is the one of
 * the exit tracepoints; other system calls pay nothing.
 */

static __always_inline int on_return(s64 result, u32 operation)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    struct pt_regs *regs = saved_registers(task);
    bool compat = is_compat(task);
    struct scratch *scratch;

    if (!may_be_refused(operation, result, regs, compat))
        return 0;
    scratch = scratch_of(SCRATCH_CALLS + 2 * operation + compat);
    if (!scratch)
        return 0;
    scratch->call.result = result;
    scratch->call.number = number_of(regs);
    scratch->call.operation = operation;
    scratch->call.compat = compat;
    read_arguments(&scratch->call, regs);
    return report(scratch, task, regs);
}

#define CALL_PROGRAM(function, operation)                                                          \
    int fexit_##function(u64 *ctx)                                                                 \
    {                                                                                              \
        return on_return(ctx[1], operation); /* after the registers */                             \
    }
#define CALL_PROGRAMS(name, operation)                                                             \
    CALL_PROGRAM(__x64_sys_##name, operation)                                                      \
    CALL_PROGRAM(__ia32_sys_##name, operation)

#ifdef CALL_mprotect
CALL_PROGRAMS(mprotect, OP_MPROTECT)
#endif
#ifdef CALL_pkey_mprotect
CALL_PROGRAMS(pkey_mprotect, OP_PKEY_MPROTECT)
#endif
#ifdef CALL_munmap
CALL_PROGRAMS(munmap, OP_MUNMAP)
#endif
#ifdef CALL_mremap
CALL_PROGRAMS(mremap, OP_MREMAP)
#endif
#ifdef CALL_mmap
CALL_PROGRAMS(mmap, OP_MMAP)
#endif
#ifdef CALL_madvise
CALL_PROGRAMS(madvise, OP_MADVISE)
#endif
#ifdef CALL_process_madvise
CALL_PROGRAMS(process_madvise, OP_PROCESS_MADVISE)
#endif
#ifdef CALL_shmat
CALL_PROGRAMS(shmat, OP_SHMAT)
#endif
#ifdef CALL_shmdt
CALL_PROGRAMS(shmdt, OP_SHMDT)
#endif
#ifdef CALL_brk
CALL_PROGRAMS(brk, OP_BRK)
#endif
#ifdef CALL_remap_file_pages
CALL_PROGRAMS(remap_file_pages, OP_REMAP_FILE_PAGES)
#endif
