/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Lockless look-ups in the caller's address space.
 *
 * The VMAs of an mm are kept in a maple tree (mm->mm_mt) whose nodes are freed by RCU, and BPF
 * programs run under RCU, so the tree can be read without mmap_lock, in any hook and on every
 * kernel. VMAs may be reused while we look: each one is checked to belong to this mm and to cover
 * the index that led to it.
 */
#ifndef SEAL_MONITOR_MEMORY_H
#define SEAL_MONITOR_MEMORY_H

#include "abi.h"
#include "arch.h"
#include "definitions.h"
#include "kernel.h"

/*
 * VMAs that one look-up reads at most, about 80 ns each: as many as a process may have
 * (vm.max_map_count, 65,530 unless somebody has raised it). With fewer a process could put mappings
 * before its seal until the look-up does not come to it.
 */
#define LOOKUP_LIMIT 65536
/* How often it begins again because the tree has changed under it: others may change it for ever.
 */
#define LOOKUP_RETRIES 1024
/*
 * Levels of the tree that it descends: a hole goes with each mapping, and both lie up to eight deep
 * (five with twenty thousand mappings).
 */
#define LOOKUP_STEPS (2 * 8 * LOOKUP_LIMIT)

/* lib/maple_tree.c: enum maple_type, and how a parent's slot points to a node. */
#define MAPLE_LEAF_64 1
#define MAPLE_ARANGE_64 3
#define MAPLE_NODE_MASK 0xffULL
#define MAPLE_PIVOTS 15 /* of a range node; an arange node has fewer */

enum lookup { LOOKUP_NONE, LOOKUP_FOUND, LOOKUP_TOO_LONG, LOOKUP_CHANGED };

struct vma {
    u64 address; /* of the vm_area_struct; 0: no mapping there */
    u64 start;
    u64 end;
    u64 flags;
};

/* A vm_area_struct may be given to another mapping, of this process or not, while it is read. */
static __always_inline bool is_still(struct vma *vma)
{
    return KERNEL_WORD(vma->address, vm_area_struct__vm_start) == vma->start &&
           KERNEL_WORD(vma->address, vm_area_struct__vm_end) == vma->end &&
           KERNEL_WORD(vma->address, vm_area_struct__vm_flags) == vma->flags;
}

static __always_inline void read_vma(struct vma *vma, u64 address)
{
    vma->address = address;
    vma->start = KERNEL_WORD(address, vm_area_struct__vm_start);
    vma->end = KERNEL_WORD(address, vm_area_struct__vm_end);
    vma->flags = KERNEL_WORD(address, vm_area_struct__vm_flags);
}

/* Above every index of a user mapping, below every kernel address less its two top bits. */
#define INDEX_MAX ((1ULL << 62) - 1)

/* What a mapping must be besides its flags. */
enum wanted {
    WANTED_ANY,
    WANTED_REFUSING, /* it refuses destructive advice */
    WANTED_COPIES,   /* it has private copies that such advice drops */
    WANTED_READ_ONLY,
    WANTED_GUARDED, /* it may hold guard regions */
};

/* Up to three ranges, in the order in which the kernel would come to their mappings. */
struct search {
    u64 start, end, next_start, next_end, third_start, third_end;
    u64 role, next_role, third_role; /* enum role */
    u64 mask;                        /* vm_flags that the mapping must have */
    u64 wanted;                      /* enum wanted */
    /* And, after those, as many ranges of an iovec as have these bytes. */
    u64 vector, vector_bytes, vector_compat;
    /* What came of it. */
    struct vma vma;
    u64 outcome;       /* enum lookup */
    u64 earlier_flags; /* vm_flags of the mappings passed on the way, all together */
    u64 earlier_files; /* not 0: one of them is a file's */
    /* The walk, from here on, which nobody need clear: the index that it looks for, the node or
     * entry that it came to, and the last index of that one less 1. */
    u64 index, next, before_last;
    /* The leaf to the right of whose `slot` the walk goes on, 0: it begins at the root again. */
    u64 leaf, slot, leaf_last;
    u64 walked; /* mappings passed */
    u64 retries;
    u64 passed_start, passed_end; /* the last one of them */
};

/* mm/mseal.c, can_modify_vma_madv(): whether a sealed mapping refuses destructive advice. */
static __always_inline bool refuses_advice(struct config *config, struct vma *vma)
{
    u64 value;

    if (config->anonymous_by_ops)
        value = KERNEL_WORD(vma->address, vm_area_struct__vm_ops);
    else
        value = (vma->flags & VM_SHARED) | KERNEL_WORD(vma->address, vm_area_struct__vm_file);
    if (value)
        return false;
    /* Writable, but the caller's PKRU may deny it: with a key of its own only that explains EPERM.
     */
    return !(vma->flags & VM_WRITE) || (vma->flags & VM_PKEY_MASK);
}

static __always_inline bool is_private_file(struct vma *vma)
{
    return !(vma->flags & (VM_WRITE | VM_SHARED)) &&
           KERNEL_WORD(vma->address, vm_area_struct__vm_file);
}

/*
 * A private file mapping that is not writable and yet may have copies of its own, such as RELRO:
 * discarding them brings the file's bytes back. One without copies, such as a program's code, loses
 * nothing; a guard region makes its page tables like one with copies.
 */
static __always_inline bool has_copies(struct vma *vma)
{
    return is_private_file(vma) && KERNEL_WORD(vma->address, vm_area_struct__anon_vma);
}

/*
 * Whether a mapping may hold guard regions. Kernels that have a mark for it set it for good
 * ("mm: introduce VM_MAYBE_GUARD", in 6.19); those before it prepare the mapping for
 * private pages instead.
 */
static __always_inline bool may_hold_guards(struct config *config, struct vma *vma)
{
    if (config->maybe_guard_mask)
        return vma->flags & config->maybe_guard_mask;
    return KERNEL_WORD(vma->address, vm_area_struct__anon_vma) != 0;
}

static __always_inline bool is_wanted(struct config *config, struct search *search, struct vma *vma)
{
    if ((vma->flags & search->mask) != search->mask)
        return false;
    if (search->wanted == WANTED_REFUSING)
        return refuses_advice(config, vma);
    if (search->wanted == WANTED_COPIES)
        return has_copies(vma);
    if (search->wanted == WANTED_GUARDED)
        return may_hold_guards(config, vma);
    return search->wanted == WANTED_ANY || !(vma->flags & VM_WRITE);
}

/* The next range of an iovec. False: it cannot be read. */
static __always_inline bool read_range(u64 *vector, bool compat, u64 *base, u64 *length)
{
    u64 range[2];
    u32 range_32[2];

    if (compat) {
        if (read_user(range_32, sizeof(range_32), (void *)*vector))
            return false;
        *base = range_32[0];
        *length = range_32[1];
        *vector += sizeof(range_32);
        return true;
    }
    if (read_user(range, sizeof(range), (void *)*vector))
        return false;
    *base = range[0];
    *length = range[1];
    *vector += sizeof(range);
    return true;
}

/* Goes on to the next range of the search. False: there is no other. */
static __always_inline bool next_range(struct search *search)
{
    u64 base, length;

    if (search->next_start < search->next_end || search->third_start < search->third_end) {
        search->index = search->start = search->next_start;
        search->end = search->next_end;
        search->role = search->next_role;
        search->next_start = search->third_start;
        search->next_end = search->third_end;
        search->next_role = search->third_role;
        search->third_start = search->third_end = 0;
        return true;
    }
    if (!search->vector_bytes ||
        !read_range(&search->vector, search->vector_compat, &base, &length))
        return false;
    if (length > search->vector_bytes)
        length = search->vector_bytes;
    search->vector_bytes -= length;
    search->index = search->start = base;
    search->end = base + PAGE_ALIGN(length);
    return true;
}

enum step { STEP_CHANGED, STEP_DEEPER, STEP_ENTRY };

/*
 * Takes what a node has in a slot, and the slot's last index: its pivot, if it has one, or `last`,
 * that of the slot above the node. From a leaf that has more the walk may go on to the right.
 * Returns what it came to. No branches: the verifier would follow each of them.
 */
static __always_inline u64 take_slot(struct search *search, u64 node, u64 slots, u64 is_leaf,
                                     u64 last)
{
    u64 slot = search->slot, difference, is_before, is_alive;

    difference = *kernel_words(node + FIRST_PIVOT + slot * 8) - 1;
    difference = (difference & INDEX_MAX) - last;
    is_before = difference >> 63;
    OPAQUE(is_before);
    search->before_last = last + (difference & -is_before);
    search->leaf_last = last;
    search->next = *kernel_words(node + slots + slot * 8);
    /*
     * A dead node is its own parent. It is asked after the node was read, as the head by which
     * RCU frees the node is written over its first pivots.
     */
    difference = (*kernel_words(node) & ~MAPLE_NODE_MASK) ^ node;
    is_alive = (difference | -difference) >> 63;
    OPAQUE(is_alive);
    search->next &= -is_alive;
    search->leaf = node & -(is_before & is_leaf & is_alive);
    return is_alive * (STEP_DEEPER + is_leaf);
}

/* One level down the tree, towards search->index: to a node, or to the entry of a leaf. */
static __always_inline u64 descend(struct search *search)
{
    u64 node, type, slot, difference, is_leaf, is_arange, slots, page;

    node = search->next & ~MAPLE_NODE_MASK;
    type = (search->next >> 3) & 0xf;
    if (type - MAPLE_LEAF_64 > MAPLE_ARANGE_64 - MAPLE_LEAF_64) {
        search->next = 0;
        return STEP_CHANGED;
    }
    /*
     * The slot is the number of pivots below the index. Pivots ascend, so four looks find it
     * among fifteen. Mappings are whole pages, so pages are compared. An unused pivot is 0 and,
     * less 1, sorts last; so do the slot pointers that follow the fewer pivots of an arange node.
     */
    page = search->index >> PAGE_SHIFT;
    slot = 0;
#pragma unroll
    for (u64 step = (MAPLE_PIVOTS + 1) / 2; step; step /= 2) {
        difference = *kernel_words(node + FIRST_PIVOT + (slot + step - 1) * 8) - 1;
        difference = (difference >> PAGE_SHIFT) - page;
        OPAQUE(difference);
        slot += (difference >> 63) * step;
    }
    search->slot = slot;
    is_leaf = ~type >> 1 & 1;
    is_arange = type & type >> 1 & 1;
    slots = OFF_maple_range_64__slot +
            is_arange * (OFF_maple_arange_64__slot - OFF_maple_range_64__slot);
    return take_slot(search, node, slots, is_leaf, search->before_last);
}

/*
 * To the next entry of the same leaf. A leaf that readers may be in is written to in place only
 * where the places of its entries stay the same; else another takes its place, and it is dead.
 */
static __always_inline u64 step_right(struct search *search)
{
    search->slot++;
    return take_slot(search, search->leaf, OFF_maple_range_64__slot, 1, search->leaf_last);
}

/*
 * The first mapping in the ranges that the search asks for.
 *
 * Each turn of the loop descends one level of the tree, so that the verifier has one small body to
 * follow, and all that lives from turn to turn is in *search, which is memory of a map: the
 * verifier takes what it reads there for any number and does not compare it at the loop's head. On
 * the stack this loop took a million steps to verify.
 */
static __always_inline void find_vma(u64 mm, struct config *config, struct search *search)
{
    struct vma *vma = &search->vma;
    u64 step, loop = 0;

    search->index = search->start;
    search->next = search->leaf = 0;
    search->walked = search->retries = 0;
    search->outcome = LOOKUP_CHANGED;
    loop_begin(&loop, LOOKUP_STEPS);
    while (loop_next(&loop)) {
        if (!search->next) {
            if (search->index >= search->end) {
                if (!next_range(search)) {
                    search->outcome = LOOKUP_NONE;
                    break;
                }
                search->leaf = 0;
                continue;
            }
            if (!search->leaf) {
                search->next = KERNEL_WORD(mm, mm_struct__mm_mt_ma_root);
                search->before_last = INDEX_MAX;
            }
        }
        step = search->leaf ? step_right(search) : descend(search);
        if (step == STEP_DEEPER)
            continue;

        vma->address = search->next;
        search->next = 0;
        if (step == STEP_ENTRY && vma->address) {
            read_vma(vma, vma->address);
            if (KERNEL_WORD(vma->address, vm_area_struct__vm_mm) != mm || !is_still(vma) ||
                search->index < vma->start || search->index >= vma->end)
                step = STEP_CHANGED;
        }
        if (step == STEP_CHANGED) {
            search->outcome = LOOKUP_CHANGED;
            search->leaf = 0;
            if (++search->retries >= LOOKUP_RETRIES)
                break;
            continue;
        }
        if (vma->address) {
            if (is_wanted(config, search, vma)) {
                search->outcome = LOOKUP_FOUND;
                break;
            }
            search->outcome = LOOKUP_TOO_LONG;
            if (++search->walked >= LOOKUP_LIMIT)
                break;
            search->passed_start = vma->start;
            search->passed_end = vma->end;
            search->earlier_flags |= vma->flags;
            search->earlier_files |= KERNEL_WORD(vma->address, vm_area_struct__vm_file);
        }
        search->index = search->before_last + 2;
    }
    loop_end(&loop);
    if (search->outcome != LOOKUP_FOUND)
        vma->address = 0;
}

/* The first mapping at or above an address. False: the mappings kept changing under the look-up. */
static __always_inline bool find_vma_from(u64 mm, struct config *config, u64 address,
                                          struct search *search)
{
    search->start = address;
    search->end = TASK_SIZE_LIMIT;
    find_vma(mm, config, search);
    return search->outcome == LOOKUP_FOUND || search->outcome == LOOKUP_NONE;
}

static __always_inline bool covers(struct vma *vma, u64 address)
{
    return vma->address && vma->start <= address;
}

#endif
