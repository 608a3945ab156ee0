/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Access to kernel structures. Offsets come as OFF_<struct>__<member> from the running kernel's BTF
 * (monitor/layouts.py); HAS_<struct>__<member> is defined for members that not every kernel has.
 */
#ifndef SEAL_MONITOR_KERNEL_H
#define SEAL_MONITOR_KERNEL_H

#define EPERM 1
#define ENOMEM 12
#define EINVAL 22
#define PAGE_SHIFT 12
#define PAGE_ALIGN_DOWN(x) ((u64)(x) & ~(u64)(PAGE_SIZE - 1))
#define PAGE_ALIGN(x) PAGE_ALIGN_DOWN((u64)(x) + PAGE_SIZE - 1)

/* Verified direct load: only for pointers that the verifier knows (the current task). */
#define TASK_FIELD(type, task, member) (*(type *)((char *)(task) + OFF_task_struct__##member))

#define TASK_SIZE_LIMIT (1ULL << 56) /* above every user address, five-level paging included */

#define VM_READ 1ULL
#define VM_WRITE 2ULL
#define VM_EXEC 4ULL
#define VM_SHARED 8ULL
#define VM_GROWSDOWN 0x100ULL
#define VM_LOCKED 0x2000ULL
#define VM_PFNMAP 0x400ULL
#define VM_HUGETLB 0x400000ULL
#define VM_PKEY_MASK (0xfULL << 32) /* VM_HIGH_ARCH_0..3 on x86-64 with protection keys */

/*
 * bpf_iter_num: the kernel's own loop counter, which the verifier follows without unrolling. bcc's
 * clang cannot declare kfuncs; a call with src_reg 2 and the function's BTF id is what one compiles
 * to.
 */
#define CALL_KFUNC0(id)                                                                            \
    asm volatile(".byte 0x85, 0x20, 0, 0\n.long %0"                                                \
                 :                                                                                 \
                 : "i"(id)                                                                         \
                 : "r0", "r1", "r2", "r3", "r4", "r5", "memory")
#define CALL_KFUNC1(id, a1)                                                                        \
    ({                                                                                             \
        register u64 _r0 asm("r0");                                                                \
        register u64 _r1 asm("r1") = (u64)(a1);                                                    \
        asm volatile(".byte 0x85, 0x20, 0, 0\n.long %2"                                            \
                     : "=r"(_r0), "+r"(_r1)                                                        \
                     : "i"(id)                                                                     \
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
                     : "i"(id)                                                                     \
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
                     : "i"(id)                                                                     \
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
    u64 typed = CALL_KFUNC2(KFUNC_bpf_rdonly_cast, address - OFF_maple_range_64__pivot,
                            TYPE_maple_range_64);

    return (u64 *)(typed + OFF_maple_range_64__pivot);
}

#define KERNEL_WORD(address, member) (*kernel_words((u64)(address) + OFF_##member))

/* The same into a variable of the member's own size. */
#define READ_KERNEL(destination, pointer, member)                                                  \
    ((destination) = (__typeof__(destination))KERNEL_WORD(pointer, member))

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
