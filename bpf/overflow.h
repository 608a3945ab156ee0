/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a fault is the overflow of a stack: the address lies at the end of the stack that sp is
 * in, or between that stack and an sp that has left it.
 *
 * Nothing marks a stack. What is known is sp, what is mapped around it, and for the thread's own
 * stack one address in it: that of the main stack is the kernel's, and where a C library makes a
 * thread it places the thread's block, to which the thread's base register points, at the upper end
 * of its stack. So this stays an inference. Three rules keep other faults apart:
 *
 *   sp in memory that can be written to   the address is beyond the end of that mapping, with
 *                                         nothing but guards in between, and near sp; a null
 *                                         pointer or a wild one is far from there
 *   sp in no such memory                  the address is between sp and the stack above it: a
 *                                         frame has left the stack, however large it is
 *   sp in memory of others                the frame is so large that sp has come to memory below:
 *                                         the address is at the very end of the thread's own stack
 */
#ifndef SEAL_MONITOR_OVERFLOW_H
#define SEAL_MONITOR_OVERFLOW_H

#include "arch.h"
#include "definitions.h"
#include "describe.h"
#include "kernel.h"
#include "memory.h"

/*
 * As far below sp code touches its stack on purpose: Java's virtual machine does by 80 KiB before a
 * call.
 */
#define STACK_REACH (256ULL << 10)
/* No frame is larger; an sp further below the thread's own stack is a corrupted one. */
#define FRAME_LIMIT (4ULL << 30)
#define VM_ACCESS (VM_READ | VM_WRITE | VM_EXEC)

enum look { LOOK_STACK_POINTER, LOOK_THREAD, LOOK_MAIN, LOOKS };

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

/* Working memory, in a map: see find_vma(). */
struct overflow {
    struct fault fault;
    struct vma at; /* the first mapping at or above the address */
    u64 look;
    /* Where each look begins, what it asks of a mapping, the first such one and what it passed. */
    u64 from[LOOKS + 1];
    u64 mask[LOOKS + 1];
    struct vma found[LOOKS + 1];
    u64 passed[LOOKS + 1]; /* vm_flags of those before it, all together */
};

/*
 * Conditions are numbers below, put together without branches: the verifier would follow each of
 * them through all that comes after.
 */
static __always_inline u64 is_less(u64 a, u64 b)
{
    u64 less = (a - b) >> 63; /* user addresses are below 2^57 */

    OPAQUE(less);
    return less;
}

static __always_inline u64 is_same(u64 a, u64 b)
{
    u64 difference = a - b, same = ((difference | -difference) >> 63) ^ 1;

    OPAQUE(same);
    return same;
}

/* Whether the address lies below the part of the stack that can be used. */
static __always_inline u64 is_below(struct overflow *work, struct vma *stack)
{
    return is_less(work->fault.address, stack->start) |
           (is_same(work->fault.cause, CAUSE_GUARD_REGION) &
            is_same(work->at.address, stack->address));
}

/* Whether between the address and the stack there are only guards. */
static __always_inline u64 is_at_end(struct overflow *work, struct vma *stack)
{
    return is_same(work->at.address, stack->address) |
           (is_same(work->at.flags & VM_ACCESS, 0) & is_same(work->at.end, stack->start));
}

/* Whether the fault is the overflow of the stack that sp is in, or has just left. */
static __always_inline u64 has_left(struct overflow *work, u64 is_inside, u64 is_readable)
{
    u64 sp = work->fault.stack_pointer, address = work->fault.address;
    struct vma *stack = &work->found[LOOK_STACK_POINTER];
    u64 is_near = is_less(address, sp + STACK_REACH) & is_less(sp, address + STACK_REACH);
    u64 outside, inside;

    outside = is_same(work->passed[LOOK_STACK_POINTER] & VM_ACCESS, 0) &
              is_less(stack->start, sp + STACK_REACH);
    /* Above sp and yet in a guard region: sp is in there, too, or it is that of another stack. */
    inside = is_at_end(work, stack) & (is_less(address, sp) | (is_readable ^ 1));
    return (is_same(stack->address, 0) ^ 1) & is_below(work, stack) & is_near &
           ((is_inside & inside) | ((is_inside ^ 1) & outside));
}

/* The same of the thread's own stack, where sp is not in it any more. */
static __always_inline u64 has_left_own(struct overflow *work, u64 look, u64 is_inside)
{
    u64 sp = work->fault.stack_pointer, address = work->fault.address;
    struct vma *stack = &work->found[look];
    u64 others = is_at_end(work, stack) & (is_less(address, sp) ^ 1);

    return (is_same(stack->address, 0) ^ 1) & is_same(stack->flags & VM_WRITE, VM_WRITE) &
           (is_less(work->from[look], stack->start) ^ 1) & is_less(sp, stack->start) &
           is_less(stack->start, sp + FRAME_LIMIT) & is_below(work, stack) &
           (is_less(address + STACK_REACH, sp) ^ 1) & ((is_inside ^ 1) | others);
}

/*
 * Whether a fault is the overflow of a stack; `work` has the fault, and what is mapped
 * there. Makes searches of its own.
 */
static __always_inline bool is_overflow(struct overflow *work, struct task_struct *task, u64 mm,
                                        struct config *config, struct search *search)
{
    u64 sp = work->fault.stack_pointer, loop = 0, word = 0, is_inside, is_readable;

    if (sp >= TASK_SIZE_LIMIT || work->fault.address >= TASK_SIZE_LIMIT)
        return false;
    work->from[LOOK_STACK_POINTER] = sp;
    work->mask[LOOK_STACK_POINTER] = VM_WRITE;
    /* The first thread has the main stack, all others those of the C library; 0 is in no stack. */
    work->from[LOOK_THREAD] =
        thread_base(task) & ((u64)is_leader(task) - 1) & (TASK_SIZE_LIMIT - 1);
    work->from[LOOK_MAIN] = KERNEL_WORD(mm, mm_struct__start_stack) & -(u64)is_leader(task);
    work->look = 0;
    /* One search in a loop, so that the program has its code once. */
    loop_begin(&loop, LOOKS);
    while (loop_next(&loop)) {
        u64 look = work->look & LOOKS;

        search->mask = work->mask[look];
        search->earlier_flags = 0;
        find_vma_from(mm, config, work->from[look], search);
        work->found[look] = search->vma;
        work->passed[look] = search->earlier_flags;
        work->look++;
    }
    loop_end(&loop);
    search->mask = 0;
    is_inside = (is_same(work->found[LOOK_STACK_POINTER].address, 0) |
                 is_less(sp, work->found[LOOK_STACK_POINTER].start)) ^
                1;
    is_readable = is_same(read_user(&word, sizeof(word), (void *)sp), 0);
    return has_left(work, is_inside, is_readable) | has_left_own(work, LOOK_THREAD, is_inside) |
           has_left_own(work, LOOK_MAIN, is_inside);
}

#endif
