/* SPDX-License-Identifier: GPL-2.0-only */
/* Access to kernel structures, which differ from kernel to kernel. */
#ifndef SEAL_MONITOR_KERNEL_H
#define SEAL_MONITOR_KERNEL_H

#include "definitions.h"

#define EPERM 1
#define ENOMEM 12
#define EINVAL 22

/*
 * Marks. The programs are compiled once for every kernel, so what differs between kernels is not
 * known yet: in its place stands a mark, one instruction with a number of its own, and the loader
 * puts in the running kernel's value (monitor/kernel/object.py). They stand in inline assembly, so
 * that clang neither folds a mark nor calculates with it. MARK_<name> is the place of a name in the
 * table of monitor/kernel/layouts.py; the forms are those of monitor/kernel/object.py.
 */
#define FORM_VALUE 0x5EA00000 /* %0 = value */
#define FORM_ADD 0x5EB00000   /* %0 += value - FIRST_PIVOT */
#define FORM_HAS 0x5EC00000   /* %0 = 1 where this kernel has it, else 0 */
#define FORM_KFUNC 0x5ED00000 /* call value */
#define RING_MAP 0x5EE00000   /* the ring buffer's descriptor, where bcc writes none */
#define FORM_LOAD 0x7000      /* %0 = *(%1 + value): 16 bits, a verified load */

/* A number of the running kernel: an offset, a size, the id of a type. */
#define MARKED_VALUE(mark)                                                                         \
    ({                                                                                             \
        u64 _value;                                                                                \
        asm("%0 = %1" : "=r"(_value) : "i"(FORM_VALUE + (mark)));                                  \
        _value;                                                                                    \
    })
#define MARKED_LOAD(size, pointer, mark)                                                           \
    ({                                                                                             \
        u64 _loaded;                                                                               \
        asm("%0 = *(" size " *)(%1 + %2)"                                                          \
            : "=r"(_loaded)                                                                        \
            : "r"(pointer), "i"(FORM_LOAD + (mark)));                                              \
        _loaded;                                                                                   \
    })

/*
 * Whether the running kernel has a member. The verifier takes the branch for the constant that it
 * is and never looks at the other one.
 */
#define HAS(member)                                                                                \
    ({                                                                                             \
        u64 _has;                                                                                  \
        asm("%0 = %1" : "=r"(_has) : "i"(FORM_HAS + MARK_##member));                               \
        _has;                                                                                      \
    })

/* Which call a program is loaded for, where one is loaded for several: probes.py says for which. */
#define OPERATION ((u32)MARKED_VALUE(MARK_OPERATION))

/* Verified direct load: only for pointers that the verifier knows (the current task). */
#define TASK_FIELD(type, task, member)                                                             \
    ((type)(sizeof(type) == 4 ? MARKED_LOAD("u32", task, MARK_task_struct__##member)               \
                              : MARKED_LOAD("u64", task, MARK_task_struct__##member)))

/* What a fexit program is given: a parameter of the function, and what it returned. */
#define ARGUMENT(ctx, function, parameter)                                                         \
    MARKED_LOAD("u64", ctx, MARK_ARG_##function##__##parameter)
#define RESULT(ctx, function) MARKED_LOAD("u64", ctx, MARK_RETURN_##function)

/* struct maple_range_64: its pivots follow the parent. The loader refuses a kernel that differs. */
#define FIRST_PIVOT 8

#define VM_READ 1ULL
#define VM_WRITE 2ULL
#define VM_EXEC 4ULL
#define VM_SHARED 8ULL
#define VM_GROWSDOWN 0x100ULL
#define VM_LOCKED 0x2000ULL
#define VM_PFNMAP 0x400ULL
#define VM_HUGETLB 0x400000ULL

/*
 * bpf_iter_num: the kernel's own loop counter, which the verifier follows without unrolling. bcc's
 * clang cannot declare kfuncs; a call with src_reg 2 and the function's BTF id is what one compiles
 * to.
 */
#define CALL_KFUNC0(id)                                                                            \
    asm volatile(".byte 0x85, 0x20, 0, 0\n.long %0"                                                \
                 :                                                                                 \
                 : "i"(FORM_KFUNC + (id))                                                          \
                 : "r0", "r1", "r2", "r3", "r4", "r5", "memory")
#define CALL_KFUNC1(id, a1)                                                                        \
    ({                                                                                             \
        register u64 _r0 asm("r0");                                                                \
        register u64 _r1 asm("r1") = (u64)(a1);                                                    \
        asm volatile(".byte 0x85, 0x20, 0, 0\n.long %2"                                            \
                     : "=r"(_r0), "+r"(_r1)                                                        \
                     : "i"(FORM_KFUNC + (id))                                                      \
                     : "r2", "r3", "r4", "r5", "memory");                                          \
        _r0;                                                                                       \
    })
#define CALL_KFUNC2(id, a1, a2)                                                                    \
    ({                                                                                             \
        register u64 _r0 asm("r0");                                                                \
        register u64 _r1 asm("r1") = (u64)(a1);                                                    \
        register u64 _r2 asm("r2") = (u64)(a2);                                                    \
        asm volatile(".byte 0x85, 0x20, 0, 0\n.long %3"                                            \
                     : "=r"(_r0), "+r"(_r1), "+r"(_r2)                                             \
                     : "i"(FORM_KFUNC + (id))                                                      \
                     : "r3", "r4", "r5", "memory");                                                \
        _r0;                                                                                       \
    })
#define CALL_KFUNC3(id, a1, a2, a3)                                                                \
    ({                                                                                             \
        register u64 _r0 asm("r0");                                                                \
        register u64 _r1 asm("r1") = (u64)(a1);                                                    \
        register u64 _r2 asm("r2") = (u64)(a2);                                                    \
        register u64 _r3 asm("r3") = (u64)(a3);                                                    \
        asm volatile(".byte 0x85, 0x20, 0, 0\n.long %4"                                            \
                     : "=r"(_r0), "+r"(_r1), "+r"(_r2), "+r"(_r3)                                  \
                     : "i"(FORM_KFUNC + (id))                                                      \
                     : "r4", "r5", "memory");                                                      \
        _r0;                                                                                       \
    })

/*
 * Fifteen words from a kernel address, each of them one plain load that yields 0 where it would
 * fault. bpf_rdonly_cast() lends an address a type; the pivots of a maple node are the numbers we
 * need, wherever the address really points.
 */
static __always_inline u64 *kernel_words(u64 address)
{
    u64 typed = CALL_KFUNC2(KFUNC_bpf_rdonly_cast, address - FIRST_PIVOT, TYPE_maple_range_64);

    return (u64 *)(typed + FIRST_PIVOT);
}

/* One such word: a member of a structure. */
#define KERNEL_WORD(address, member)                                                               \
    ({                                                                                             \
        u64 _address = (u64)(address);                                                             \
        asm("%0 += %1" : "+r"(_address) : "i"(FORM_ADD + MARK_##member));                          \
        u64 _typed = CALL_KFUNC2(KFUNC_bpf_rdonly_cast, _address, TYPE_maple_range_64);            \
        *(u64 *)(_typed + FIRST_PIVOT);                                                            \
    })

/* The same into a variable of the member's own size. */
#define READ_KERNEL(destination, pointer, member)                                                  \
    ((destination) = (__typeof__(destination))KERNEL_WORD(pointer, member))

/*
 * bpf_probe_read_user() and bpf_probe_read_kernel_str(), by their numbers in
 * include/uapi/linux/bpf.h: bcc replaces their names by what it finds in /proc/kallsyms where it
 * compiles. The first is not 0 where nothing can be read; the second ends the text with a 0.
 */
static long (*const read_user)(void *destination, u32 size, const void *source) = (void *)112;
static long (*const read_kernel_string)(char *destination, u32 size,
                                        const void *source) = (void *)115;

/* Keeps clang from turning arithmetic back into branches, which the verifier would follow one by
 * one. */
#define OPAQUE(value) asm volatile("" : "+r"(value))

static __always_inline void loop_begin(u64 *loop, u32 count)
{
    CALL_KFUNC3(KFUNC_bpf_iter_num_new, loop, 0, count);
}

static __always_inline bool loop_next(u64 *loop)
{
    return CALL_KFUNC1(KFUNC_bpf_iter_num_next, loop) != 0;
}

/* Must run on every path out of the loop. */
static __always_inline void loop_end(u64 *loop)
{
    CALL_KFUNC1(KFUNC_bpf_iter_num_destroy, loop);
}

#endif
