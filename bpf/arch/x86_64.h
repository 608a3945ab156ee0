/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All that is x86-64's own: registers, kinds of system calls and their numbers, sizes, codes of
 * page faults, machine code. The Python side is monitor/kernel/arch.py.
 */
#ifndef SEAL_MONITOR_ARCH_X86_64_H
#define SEAL_MONITOR_ARCH_X86_64_H

#include "abi.h"
#include "arch.h"
#include "definitions.h"
#include "kernel.h"

#define PAGE_SHIFT 12
#define PAGE_SHIFT_MAX PAGE_SHIFT
#define DEFAULT_HUGE_SHIFT 21        /* of a huge page that nobody gave a size */
#define TASK_SIZE_LIMIT (1ULL << 56) /* above every user address, five-level paging included */
#define VM_PKEY_MASK (0xfULL << 32)  /* VM_HIGH_ARCH_0..3, with protection keys */
#define NS_PER_TICK 10000000         /* USER_HZ is 100 */

/* ---- Registers ------------------------------------------------------------------------------- */

/* arch/x86/include/asm/ptrace.h: the order is fixed by the entry code. */
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx;
    unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
    unsigned long orig_ax, ip, cs, flags, sp, ss;
};

#define USER_CS 0x33 /* 64-bit user code */

static __always_inline u64 instruction_pointer(struct pt_regs *regs)
{
    return regs->ip;
}

static __always_inline u64 stack_pointer(struct pt_regs *regs)
{
    return regs->sp;
}

static __always_inline u64 frame_pointer(struct pt_regs *regs)
{
    return regs->bp;
}

/*
 * Where the C library keeps what is a thread's own. The kernel's copy is current from the start of
 * a thread on (arch/x86/kernel/process_64.c, do_arch_prctl_64()), unless it changes the register
 * without a call.
 */
static __always_inline u64 thread_base(struct task_struct *task)
{
    return TASK_FIELD(u64, task, thread_fsbase);
}

/* Registers of 64-bit user code, as far as its stack is walked by them. */
static __always_inline void set_registers(struct pt_regs *regs, u64 ip, u64 sp, u64 frame)
{
    __builtin_memset(regs, 0, sizeof(*regs));
    regs->ip = ip;
    regs->sp = sp;
    regs->bp = frame;
    regs->cs = USER_CS;
}

/* Whether the code that was left can be walked: 64-bit user code. */
static __always_inline bool is_native_code(struct pt_regs *regs)
{
    return (regs->cs & 0xffff) == USER_CS;
}

/* ---- System calls ---------------------------------------------------------------------------- */

#define TS_COMPAT 0x0002
#define X32_SYSCALL_BIT 0x40000000

/*
 * i386 has two more ways to calls of the table (ipc/syscall.c, arch/x86/kernel/sys_ia32.c): one
 * number for all of System V IPC, where the first argument says which, and an mmap whose arguments
 * lie in memory.
 */
#define NR_OLD_MMAP_32 90
#define NR_IPC_32 117
#define IPC_SHMAT 21
#define IPC_SHMDT 22

/* Whether the task is in a 32-bit system call. */
static __always_inline bool is_compat(struct task_struct *task)
{
    return TASK_FIELD(u32, task, thread_info_status) & TS_COMPAT;
}

/*
 * Whether what led into the kernel was an exception or an interrupt: their entry code puts -1 where
 * a system call has its number (arch/x86/entry/entry_64.S, idtentry_body). The number of a 32-bit
 * call is never so long.
 */
static __always_inline bool is_exception(struct pt_regs *regs)
{
    return regs->orig_ax == -1UL;
}

/* include/linux/thread_info.h, enum syscall_work_bit: PTRACE_SYSEMU is under way. */
#define SYSCALL_WORK_SYSCALL_EMU (1 << 3)

/* Whether a tracer answers the calls of the task in the kernel's place. */
static __always_inline bool is_emulated(struct task_struct *task)
{
    return TASK_FIELD(u64, task, thread_info_syscall_work) & SYSCALL_WORK_SYSCALL_EMU;
}

/* The kernel takes the number from the low half of the register alone. */
static __always_inline u32 number_of(struct pt_regs *regs)
{
    return regs->orig_ax;
}

/* The same of registers that the verifier does not know. */
static __always_inline u32 number_at(u64 regs)
{
    return *kernel_words(regs + __builtin_offsetof(struct pt_regs, orig_ax));
}

/* The number in the table: x32 callers set a bit in it. */
static __always_inline u32 native_number(u32 number)
{
    return number & ~X32_SYSCALL_BIT;
}

#define NR_RT_SIGQUEUEINFO 129
#define NR_RT_TGSIGQUEUEINFO 297
#define NR_PIDFD_SEND_SIGNAL 424 /* for all kinds of callers */
#define NR_RT_SIGQUEUEINFO_32 178
#define NR_RT_TGSIGQUEUEINFO_32 335
#define NR_RT_SIGQUEUEINFO_X32 524
#define NR_RT_TGSIGQUEUEINFO_X32 536

/* Whether the task is in a call that sends a signal with a siginfo of the caller's own. */
static __always_inline bool queues_signals(struct task_struct *task, struct pt_regs *regs)
{
    u32 number = native_number(number_of(regs));

    if (number == NR_PIDFD_SEND_SIGNAL)
        return true;
    if (is_compat(task))
        return number == NR_RT_SIGQUEUEINFO_32 || number == NR_RT_TGSIGQUEUEINFO_32;
    return number == NR_RT_SIGQUEUEINFO || number == NR_RT_TGSIGQUEUEINFO ||
           number == NR_RT_SIGQUEUEINFO_X32 || number == NR_RT_TGSIGQUEUEINFO_X32;
}

#define NR_RT_SIGPROCMASK 14
#define NR_KILL 62
#define NR_TKILL 200
#define NR_EXIT_GROUP 231
#define NR_TGKILL 234
#define NR_KILL_32 37
#define NR_RT_SIGPROCMASK_32 175
#define NR_TKILL_32 238
#define NR_EXIT_GROUP_32 252
#define NR_TGKILL_32 270

/*
 * Whether the task is in a call by which a process ends itself. raise() of musl, and of glibc up to
 * 2.33, blocks all signals while it sends one, which comes when it takes that back.
 */
static __always_inline bool is_exit_or_signal(struct task_struct *task, struct pt_regs *regs,
                                              u32 signal)
{
    u32 number = native_number(number_of(regs));

    if (is_compat(task))
        return number == NR_EXIT_GROUP_32 || number == NR_TGKILL_32 || number == NR_TKILL_32 ||
               number == NR_KILL_32 || number == NR_RT_SIGPROCMASK_32;
    return number == NR_EXIT_GROUP || number == NR_TGKILL || number == NR_TKILL ||
           number == NR_KILL || number == NR_RT_SIGPROCMASK;
}

/* Filters of seccomp distinguish x32 callers; their cache has no place for them. */
static __always_inline bool is_in_seccomp_cache(u32 number)
{
    return number < X32_SYSCALL_BIT;
}

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

/* Whether the number of a 32-bit call does not say which call it is. */
static __always_inline bool is_multiplexed(u32 number)
{
    return number == NR_IPC_32;
}

/* What is in the register of the argument at this place, a constant from 0 to 2. */
static __always_inline u64 argument_at(struct pt_regs *regs, u32 place, bool compat)
{
    if (place == 0)
        return compat ? (u32)regs->bx : regs->di;
    if (place == 1)
        return compat ? (u32)regs->cx : regs->si;
    return compat ? (u32)regs->dx : regs->dx;
}

/* The third argument without a branch: the register is the same one for both. */
static __always_inline u64 third_argument(struct pt_regs *regs)
{
    return regs->dx;
}

/* The low half of the fourth. */
static __always_inline u32 fourth_argument(struct pt_regs *regs, bool compat)
{
    return compat ? regs->si : regs->r10;
}

static __always_inline void read_old_mmap(struct call *call)
{
    u32 words[6] = {};

    read_user(words, sizeof(words), (void *)call->arguments[0]);
#pragma unroll
    for (int i = 0; i < 6; i++)
        call->arguments[i] = words[i];
}

static __always_inline void read_compat_arguments(struct call *call, struct pt_regs *regs)
{
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
}

static __always_inline void read_native_arguments(struct call *call, struct pt_regs *regs)
{
    call->arguments[0] = regs->di;
    call->arguments[1] = regs->si;
    call->arguments[2] = regs->dx;
    call->arguments[3] = regs->r10;
    call->arguments[4] = regs->r8;
    call->arguments[5] = regs->r9;
}

/* The programs of mseal's own functions: MSEAL_PROGRAM(function, scratch, whether it is 32-bit). */
#define MSEAL_PROGRAMS                                                                             \
    MSEAL_PROGRAM(__x64_sys_mseal, SCRATCH_SEALED, false)                                          \
    MSEAL_PROGRAM(__ia32_sys_mseal, SCRATCH_SEALED_32, true)

/* ---- Memory ---------------------------------------------------------------------------------- */

/* With linear address masking the kernel drops the tag bits of a pointer. */
static __always_inline u64 user_address(u64 mm, u64 address)
{
    u64 mask = 0;

    if (HAS(mm_struct__context_untag_mask))
        READ_KERNEL(mask, mm, mm_struct__context_untag_mask);
    if (mask)
        address &= mask;
    return address;
}

/* ---- Page faults ----------------------------------------------------------------------------- */

#define X86_TRAP_PF 14
#define PF_WRITE 2
#define PF_INSTR 16
#define SEGV_NOTICED_LATER SI_KERNEL /* it notices nothing later */

/* The address in the siginfo of a fault, as thread.cr2 has it. */
static __always_inline u64 fault_address(u64 address)
{
    return address;
}

/* What the processor said of the last fault of the task: PF_*. */
static __always_inline u64 fault_code(struct task_struct *task)
{
    return TASK_FIELD(u64, task, thread_error_code);
}

static __always_inline u64 access_of(u64 fault_code)
{
    if (fault_code & PF_INSTR)
        return ACCESS_EXECUTE;
    return fault_code & PF_WRITE ? ACCESS_WRITE : ACCESS_READ;
}

/* Whether the last fault of the task was a page fault at this address, by the processor's word. */
static __always_inline bool has_faulted_at(struct task_struct *task, u64 address)
{
    return TASK_FIELD(u64, task, thread_trap_nr) == X86_TRAP_PF &&
           TASK_FIELD(u64, task, thread_cr2) == address;
}

/* The rights of a mapping of which one permits the access. */
static __always_inline u64 required_permission(u64 access)
{
    if (access == ACCESS_EXECUTE)
        return VM_EXEC;
    /* Reading alone can't be denied: whatever is mapped with any right can be read. */
    return access == ACCESS_WRITE ? VM_WRITE : VM_READ | VM_WRITE | VM_EXEC;
}

/* ---- Machine code ---------------------------------------------------------------------------- */

/* Whether a return address follows a call instruction: opcode e8, or ff with /2 in its ModRM byte.
 */
static __always_inline bool follows_call(u64 address)
{
    u8 code[7] = {}; /* the bytes before the address */

    if (read_user(code, sizeof(code), (void *)(address - sizeof(code))))
        return false;
    if (code[2] == 0xe8) /* call rel32 */
        return true;
    if (code[5] == 0xff && (code[6] & 0x38) == 0x10) /* call reg; call [reg] */
        return true;
    if (code[4] == 0xff && (code[5] & 0x38) == 0x10) /* call [reg + disp8] */
        return true;
    if (code[3] == 0xff && (code[4] & 0x38) == 0x10) /* call [rsp + disp8] */
        return true;
    if (code[1] == 0xff && (code[2] & 0x38) == 0x10) /* call [rip + disp32], [reg + disp32] */
        return true;
    return code[0] == 0xff && (code[1] & 0x38) == 0x10; /* call [rsp + disp32] */
}

/*
 * The code that made the call. ip is in libc's wrapper for nearly every program; its wrappers keep
 * no frame, so the word at sp is where they return to. Where ip is no wrapper that word is not a
 * return address, and ip is the caller itself.
 */
static __always_inline u64 caller_of(struct task_struct *task, struct pt_regs *regs, bool compat)
{
    u64 ip = regs->ip, sp = regs->sp, word = 0;

    if (compat || read_user(&word, sizeof(word), (void *)sp) || !follows_call(word))
        return ip;
    return word;
}

/* The return address in a word of the stack. */
static __always_inline u64 return_address(struct task_struct *task, u64 word)
{
    return word;
}

#endif
