/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All that is arm64's own, as arch/x86_64.h has it of x86-64. 32-bit callers are AArch32 programs,
 * which have registers, a table of calls and a personality of their own; no 64-bit program can make
 * their calls. The Python side is monitor/kernel/arch.py.
 */
#ifndef SEAL_MONITOR_ARCH_ARM64_H
#define SEAL_MONITOR_ARCH_ARM64_H

#include "abi.h"
#include "arch.h"
#include "definitions.h"
#include "kernel.h"

#define PAGE_SHIFT MARKED_VALUE(MARK_PAGE_SHIFT) /* a kernel is built for 4, 16 or 64 KiB */
#define PAGE_SHIFT_MAX 16
#define DEFAULT_HUGE_SHIFT (2 * (PAGE_SHIFT)-3) /* a page of entries, each 8 bytes */
#define TASK_SIZE_LIMIT (1ULL << 52)            /* above every user address, LVA included */
#define VM_PKEY_MASK (0x7ULL << 32)             /* VM_PKEY_BIT0..2, with permission overlays */
#define NS_PER_TICK 10000000                    /* USER_HZ is 100 */
#define TAG_BITS 8                              /* the processor ignores them in an address */

/* ---- Registers ------------------------------------------------------------------------------- */

/* arch/arm64/include/asm/ptrace.h. What follows these differs between kernels. */
struct pt_regs {
    u64 regs[31];
    u64 sp, pc, pstate;
    u64 orig_x0;
    s32 syscallno;
};

#define FRAME_REGISTER 29
#define LINK_REGISTER 30
#define PSTATE_MODE 0x1f /* 0: user code of 64 bits */

static __always_inline u64 instruction_pointer(struct pt_regs *regs)
{
    return regs->pc;
}

static __always_inline u64 stack_pointer(struct pt_regs *regs)
{
    return regs->sp;
}

static __always_inline u64 frame_pointer(struct pt_regs *regs)
{
    return regs->regs[FRAME_REGISTER];
}

/*
 * Where the C library keeps what is a thread's own. The kernel's copy is that of clone()
 * (arch/arm64/kernel/process.c, copy_thread()), and of the last switch to another thread.
 */
static __always_inline u64 thread_base(struct task_struct *task)
{
    return TASK_FIELD(u64, task, thread_uw_tp_value);
}

/* Registers of 64-bit user code, as far as its stack is walked by them. The link register is not
 * among them. */
static __always_inline void set_registers(struct pt_regs *regs, u64 ip, u64 sp, u64 frame)
{
    __builtin_memset(regs, 0, sizeof(*regs));
    regs->pc = ip;
    regs->sp = sp;
    regs->regs[FRAME_REGISTER] = frame;
}

/* Whether the code that was left can be walked: 64-bit user code. */
static __always_inline bool is_native_code(struct pt_regs *regs)
{
    return !(regs->pstate & PSTATE_MODE);
}

/* ---- System calls ---------------------------------------------------------------------------- */

/* arch/arm64/include/asm/thread_info.h */
#define TIF_SYSCALL_EMU (1 << 12)
#define TIF_32BIT (1 << 22)
/* include/linux/thread_info.h, enum syscall_work_bit: the same on kernels with the generic entry.
 */
#define SYSCALL_WORK_SYSCALL_EMU (1 << 3)

/* Whether the task is an AArch32 program. */
static __always_inline bool is_compat(struct task_struct *task)
{
    return TASK_FIELD(u32, task, thread_info_flags) & TIF_32BIT;
}

/* Whether what led into the kernel was an exception or an interrupt: the entry code puts -1 where a
 * system call has its number (arch/arm64/kernel/entry.S, NO_SYSCALL). */
static __always_inline bool is_exception(struct pt_regs *regs)
{
    return regs->syscallno == -1;
}

/* Whether a tracer answers the calls of the task in the kernel's place (PTRACE_SYSEMU). */
static __always_inline bool is_emulated(struct task_struct *task)
{
    if (HAS(task_struct__thread_info_syscall_work))
        return TASK_FIELD(u64, task, thread_info_syscall_work) & SYSCALL_WORK_SYSCALL_EMU;
    return TASK_FIELD(u32, task, thread_info_flags) & TIF_SYSCALL_EMU;
}

static __always_inline u32 number_of(struct pt_regs *regs)
{
    return regs->syscallno;
}

/* The same of registers that the verifier does not know. */
static __always_inline u32 number_at(u64 regs)
{
    return *kernel_words(regs + __builtin_offsetof(struct pt_regs, syscallno));
}

static __always_inline u32 native_number(u32 number)
{
    return number;
}

#define NR_RT_SIGQUEUEINFO 138
#define NR_RT_TGSIGQUEUEINFO 240
#define NR_PIDFD_SEND_SIGNAL 424 /* for both kinds of callers */
#define NR_RT_SIGQUEUEINFO_32 178
#define NR_RT_TGSIGQUEUEINFO_32 363

/* Whether the task is in a call that sends a signal with a siginfo of the caller's own. */
static __always_inline bool queues_signals(struct task_struct *task, struct pt_regs *regs)
{
    u32 number = number_of(regs);

    if (number == NR_PIDFD_SEND_SIGNAL)
        return true;
    if (is_compat(task))
        return number == NR_RT_SIGQUEUEINFO_32 || number == NR_RT_TGSIGQUEUEINFO_32;
    return number == NR_RT_SIGQUEUEINFO || number == NR_RT_TGSIGQUEUEINFO;
}

#define NR_EXIT_GROUP 94
#define NR_KILL 129
#define NR_TKILL 130
#define NR_TGKILL 131
#define NR_RT_SIGPROCMASK 135
#define NR_KILL_32 37
#define NR_RT_SIGPROCMASK_32 175
#define NR_TKILL_32 238
#define NR_EXIT_GROUP_32 248
#define NR_TGKILL_32 268

#define NUMBER_REGISTER 8
#define NUMBER_REGISTER_32 7
#define SIGNAL_SET_SIZE 8

/*
 * Whether the task is in a call by which a process ends itself. raise() of musl, and of glibc up to
 * 2.33, blocks all signals while it sends one, which comes when it takes that back.
 *
 * Before a signal ends the task, the kernel forgets that it is in a call (do_signal() in
 * arch/arm64/kernel/signal.c). The registers still have the call's number and arguments. A thread
 * that was interrupted could have a number from before, but not this signal with it.
 */
static __always_inline bool is_exit_or_signal(struct task_struct *task, struct pt_regs *regs,
                                              u32 signal)
{
    bool compat = is_compat(task);
    u32 number = number_of(regs);
    u64 second = regs->regs[1], third = regs->regs[2], fourth = regs->regs[3];

    if (!is_exception(regs))
        return number == (compat ? NR_EXIT_GROUP_32 : NR_EXIT_GROUP);
    number = compat ? regs->regs[NUMBER_REGISTER_32] : regs->regs[NUMBER_REGISTER];
    if (regs->regs[0]) /* its result */
        return false;
    if (number == (compat ? NR_TGKILL_32 : NR_TGKILL))
        return third == signal;
    if (number == (compat ? NR_TKILL_32 : NR_TKILL) || number == (compat ? NR_KILL_32 : NR_KILL))
        return second == signal;
    return number == (compat ? NR_RT_SIGPROCMASK_32 : NR_RT_SIGPROCMASK) &&
           fourth == SIGNAL_SET_SIZE;
}

/* The cache of seccomp's filters has a place for every call; what is none has no number. */
static __always_inline bool is_in_seccomp_cache(u32 number)
{
    return (s32)number >= 0;
}

static __always_inline u32 operation_of_compat(u32 number, u32 first_argument)
{
    return operation_of_32(number);
}

/* Whether the number of a 32-bit call does not say which call it is: the ABI that AArch32 programs
 * have (EABI) has no such call. */
static __always_inline bool is_multiplexed(u32 number)
{
    return false;
}

/*
 * What is in the register of the argument at this place, a constant from 0 to 2. The result of a
 * call takes the place of the first one.
 */
static __always_inline u64 argument_at(struct pt_regs *regs, u32 place, bool compat)
{
    u64 value = place ? regs->regs[place] : regs->orig_x0;

    return compat ? (u32)value : value;
}

static __always_inline u64 third_argument(struct pt_regs *regs)
{
    return regs->regs[2];
}

/* The low half of the fourth. */
static __always_inline u32 fourth_argument(struct pt_regs *regs, bool compat)
{
    return regs->regs[3];
}

static __always_inline void read_native_arguments(struct call *call, struct pt_regs *regs)
{
    call->arguments[0] = regs->orig_x0;
    call->arguments[1] = regs->regs[1];
    call->arguments[2] = regs->regs[2];
    call->arguments[3] = regs->regs[3];
    call->arguments[4] = regs->regs[4];
    call->arguments[5] = regs->regs[5];
}

static __always_inline void read_compat_arguments(struct call *call, struct pt_regs *regs)
{
    read_native_arguments(call, regs);
#pragma unroll
    for (int i = 0; i < 6; i++)
        call->arguments[i] = (u32)call->arguments[i];
}

/* The program of mseal's own function, which both kinds of callers share. */
#define MSEAL_PROGRAMS                                                                             \
    MSEAL_PROGRAM(__arm64_sys_mseal, SCRATCH_SEALED,                                               \
                  is_compat((struct task_struct *)bpf_get_current_task_btf()))

/* ---- Memory ---------------------------------------------------------------------------------- */

/* arch/arm64/include/asm/uaccess.h, untagged_addr(): an address of the kernel's stays one. */
static __always_inline u64 user_address(u64 mm, u64 address)
{
    return address & (u64)((s64)(address << TAG_BITS) >> TAG_BITS);
}

/* ---- Page faults ----------------------------------------------------------------------------- */

/* ESR_ELx, arch/arm64/include/asm/esr.h: the class of the exception, and of an abort its cause. */
#define ESR_CLASS(code) ((code) >> 26 & 0x3f)
#define ESR_INSTRUCTION_ABORT 0x20 /* of user code */
#define ESR_DATA_ABORT 0x24
#define ESR_WRITE (1 << 6)
#define ESR_CACHE_MAINTENANCE (1 << 8) /* it sets ESR_WRITE, and reads */
#define ESR_STATUS(code) ((code)&0x3f)
#define ESR_TAG_CHECK 0x11 /* of MTE: no fault of a page */
/* SEGV_MTEAERR: the processor did not wait for the check of a tag. The kernel finds what came of it
 * when it is next entered, by a call, too. */
#define SEGV_NOTICED_LATER 8

/* The address in the siginfo of a fault, as thread.fault_address has it: without its tag. */
static __always_inline u64 fault_address(u64 address)
{
    return user_address(0, address);
}

/* What the processor said of the last fault of the task: ESR. */
static __always_inline u64 fault_code(struct task_struct *task)
{
    return (u32)TASK_FIELD(u64, task, thread_fault_code);
}

static __always_inline u64 access_of(u64 fault_code)
{
    if (ESR_CLASS(fault_code) == ESR_INSTRUCTION_ABORT)
        return ACCESS_EXECUTE;
    if (ESR_CLASS(fault_code) == ESR_DATA_ABORT && fault_code & ESR_WRITE &&
        !(fault_code & ESR_CACHE_MAINTENANCE))
        return ACCESS_WRITE;
    return ACCESS_READ;
}

/* Whether the last fault of the task was a page fault at this address, by the processor's word. */
static __always_inline bool has_faulted_at(struct task_struct *task, u64 address)
{
    u64 code = fault_code(task), class = ESR_CLASS(code);

    if (TASK_FIELD(u64, task, thread_fault_address) != address)
        return false;
    return class == ESR_INSTRUCTION_ABORT ||
           (class == ESR_DATA_ABORT && ESR_STATUS(code) != ESR_TAG_CHECK);
}

/* The rights of a mapping of which one permits the access. */
static __always_inline u64 required_permission(u64 access)
{
    if (access == ACCESS_EXECUTE)
        return VM_EXEC;
    /* Writing comes with reading. So does executing, except where the processor has EPAN; there
     * the kernel refuses with SEGV_ACCERR, for which nobody asks here. */
    return access == ACCESS_WRITE ? VM_WRITE : VM_READ | VM_WRITE | VM_EXEC;
}

/* ---- Machine code ---------------------------------------------------------------------------- */

/*
 * The return address in a register or in a word of the stack: pointer authentication (PAC) keeps a
 * signature in the bits above those of addresses. How many bits those have, the kernel says: 39 to
 * 52, by mm->task_size.
 */
static __always_inline u64 return_address(struct task_struct *task, u64 word)
{
    return word & (KERNEL_WORD(TASK_FIELD(void *, task, mm), mm_struct__task_size) - 1);
}

/* Whether a return address follows a call instruction: bl, blr, or blr with authentication. */
static __always_inline bool follows_call(u64 address)
{
    u32 code = 0;

    if (address & 3 || read_user(&code, sizeof(code), (void *)(address - sizeof(code))))
        return false;
    return (code & 0xfc000000) == 0x94000000 || (code & 0xfefff000) == 0xd63f0000;
}

/*
 * The code that made the call. ip is in libc's wrapper for nearly every program; its wrappers call
 * nobody, so the link register is where they return to. Code that makes a call itself has in that
 * register where the last function that it called has returned to, in the same code.
 */
static __always_inline u64 caller_of(struct task_struct *task, struct pt_regs *regs, bool compat)
{
    u64 link = return_address(task, regs->regs[LINK_REGISTER]);

    return compat || !follows_call(link) ? regs->pc : link;
}

#endif
