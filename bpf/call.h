/* SPDX-License-Identifier: GPL-2.0-only */
/* The system call that a task is in: which one, with which arguments. */
#ifndef SEAL_MONITOR_CALL_H
#define SEAL_MONITOR_CALL_H

#include "definitions.h"
#include "kernel.h"

#define TS_COMPAT 0x0002
#define X32_SYSCALL_BIT 0x40000000

struct call {
    u64 arguments[6];
    s64 result;
    u64 operation;
    u64 number;
    u64 compat; /* not 0: a 32-bit system call */
};

static __always_inline struct pt_regs *saved_registers(struct task_struct *task)
{
    return (struct pt_regs *)bpf_task_pt_regs(task);
}

static __always_inline bool is_compat(struct task_struct *task)
{
    return TASK_FIELD(u32, task, thread_info_status) & TS_COMPAT;
}

/* The kernel takes the number from the low half of the register alone. */
static __always_inline u32 number_of(struct pt_regs *regs)
{
    return regs->orig_ax;
}

/*
 * i386 has two more ways to calls of the table (ipc/syscall.c, arch/x86/kernel/sys_ia32.c): one
 * number for all of System V IPC, told apart by the first argument, and an mmap whose arguments lie
 * in memory.
 */
#define NR_OLD_MMAP_32 90
#define NR_IPC_32 117
#define IPC_SHMAT 21
#define IPC_SHMDT 22

static __always_inline u32 operation_of_compat(u32 number, u32 first_argument)
{
    if (number == NR_OLD_MMAP_32)
        return OP_MMAP;
    if (number == NR_IPC_32 && (first_argument & 0xffff) == IPC_SHMAT)
        return OP_SHMAT;
    if (number == NR_IPC_32 && (first_argument & 0xffff) == IPC_SHMDT)
        return OP_SHMDT;
    return operation_of_32(number);
}

/* OPERATIONS where the call is none that is watched. */
static __always_inline u32 current_operation(struct task_struct *task, struct pt_regs *regs)
{
    if (is_compat(task))
        return operation_of_compat(number_of(regs), regs->bx);
    return operation_of(number_of(regs) & ~X32_SYSCALL_BIT);
}

static __always_inline void read_old_mmap(struct call *call)
{
    u32 words[6] = {};

    read_user(words, sizeof(words), (void *)call->arguments[0]);
#pragma unroll
    for (int i = 0; i < 6; i++)
        call->arguments[i] = words[i];
}

static __always_inline void read_arguments(struct call *call, struct pt_regs *regs)
{
    if (call->compat) {
        call->arguments[0] = (u32)regs->bx;
        call->arguments[1] = (u32)regs->cx;
        call->arguments[2] = (u32)regs->dx;
        call->arguments[3] = (u32)regs->si;
        call->arguments[4] = (u32)regs->di;
        call->arguments[5] = (u32)regs->bp;
        if (call->number == NR_OLD_MMAP_32)
            read_old_mmap(call);
        if (call->number == NR_IPC_32) {
            call->arguments[0] = call->operation == OP_SHMDT ? (u32)regs->di : (u32)regs->cx;
            call->arguments[1] = call->operation == OP_SHMDT ? 0 : (u32)regs->di;
            call->arguments[2] = call->operation == OP_SHMDT ? 0 : (u32)regs->dx;
        }
        return;
    }
    call->arguments[0] = regs->di;
    call->arguments[1] = regs->si;
    call->arguments[2] = regs->dx;
    call->arguments[3] = regs->r10;
    call->arguments[4] = regs->r8;
    call->arguments[5] = regs->r9;
}

#endif
