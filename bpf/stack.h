/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The user code that led to a violation, gathered while its process is there to be asked.
 *
 * bpf_get_stack() would not do: it does not say why a walk ended, and it finds build ids only
 * where it may take mmap_lock, which the functions that fexit programs are attached to hold
 * (kernel/bpf/stackmap.c, stack_map_get_build_id_offset()). Frames and build ids are read in the
 * process's own memory: they are what the process shows. The file of a module is the kernel's word.
 *
 * Reading a build id from the headers and notes of its file takes most of the time of an event, so
 * it is kept: for the process that it was read in, and for no other, as nobody may choose what is
 * shown of somebody else's file. The file is known by its inode and the time of its last change
 * (ctime), which the kernel sets and no user can: one that was replaced or written to is read
 * again. Two writes within one tick of the clock have the same time, and a write through a mapping
 * has one only when it is the first to its page: hence BUILD_ID_JIFFIES, after which it is read
 * again, too.
 */
#ifndef SEAL_MONITOR_STACK_H
#define SEAL_MONITOR_STACK_H

#include "abi.h"
#include "arch.h"
#include "describe.h"
#include "kernel.h"
#include "memory.h"

#define ELF_MAGIC 0x464c457f
#define ELF_CLASS_64 2
#define PT_NOTE 4
#define NT_GNU_BUILD_ID 3
#define NAME_GNU 0x00554e47 /* "GNU" */
#define ELF_HEADER_WORDS 8
#define PROGRAM_HEADER_WORDS 7
#define PROGRAM_HEADERS_MAX 16
#define NOTE_WORDS 32       /* of 32 bits: the notes before the build id's are few and short */
#define NOTE_HEADER_WORDS 4 /* sizes of name and content, type, the name "GNU" */

/* Mappings of one file that are looked at below a frame's own for the one with the ELF header. */
#define HEADER_STEPS 3
/* The tree is up to eight levels deep. */
#define MODULE_TURNS (8 * (STACK_FRAMES + STACK_MODULES * HEADER_STEPS))

#define BUILD_IDS_MAX 1024
#define BUILD_ID_JIFFIES 1024 /* 1 to 10 s */
#define CHANGE_NS_BITS 30
#define CHANGE_NS_MASK ((1U << CHANGE_NS_BITS) - 1) /* without I_CTIME_QUERIED */

/* A file that a process has mapped. */
struct build_id_key {
    struct identity process;
    u64 base;
    u64 inode;
    u64 changed; /* the file, seconds << CHANGE_NS_BITS | nanoseconds */
    u32 device;
    u32 period; /* of BUILD_ID_JIFFIES */
};
struct build_id {
    u8 size;
    u8 id[BUILD_ID_SIZE];
};
BPF_TABLE("lru_hash", struct build_id_key, struct build_id, build_ids, BUILD_IDS_MAX);

struct mapped {
    u64 start, size; /* the mapping with the code */
    u64 header;      /* where the ELF header is mapped, 0: nowhere, or it need not be read */
    u64 changed;     /* the file; 0: what is read is not to be kept */
};

/* Working memory, in a map: see find_vma(). */
struct unwinder {
    u64 frame;       /* frame pointer */
    u64 lowest;      /* no caller's frame is below */
    u64 index;       /* of the frame whose module is looked for */
    u64 address;     /* whose mapping is looked up */
    u64 header_file; /* not 0: the mapping of this file's ELF header is looked for */
    u64 steps;
    u64 module;
    u64 program_header; /* 0: the ELF header comes first */
    u64 headers;        /* their number */
    u64 table;          /* the address of the next one */
    u64 words[ELF_HEADER_WORDS];
    u32 notes[NOTE_WORDS];
    struct build_id_key key;
    struct mapped modules[STACK_MODULES];
};

/*
 * Below, what is known to be in bounds is masked all the same, for the verifier: a comparison would
 * be one more branch for it to follow, and each turn of a loop that leaves by another branch is one
 * that older kernels take for new. For the same reason sums stand where comparisons would do.
 */
#define FRAME(index) ((index) & (STACK_FRAMES - 1))
#define MODULE(index) ((index) & (STACK_MODULES - 1))

/*
 * The frames: ip, the word at sp where it is a return address, then the chain of frame pointers, as
 * far as it holds return addresses. It is complete when it comes to the outermost frame, which the
 * ABI marks by a frame pointer of 0. Functions compiled without frame pointers are not in it.
 */
static __always_inline void walk_frames(struct stack *stack, struct unwinder *unwinder,
                                        struct task_struct *task, struct pt_regs *regs, u64 caller)
{
    u64 words[2], loop = 0;
    u32 depth;

    stack->depth = 1;
    stack->addresses[0] = instruction_pointer(regs);
    if (caller != instruction_pointer(regs)) {
        stack->depth = 2;
        stack->addresses[1] = caller;
    }
    unwinder->frame = frame_pointer(regs);
    unwinder->lowest = stack_pointer(regs);
    loop_begin(&loop, STACK_FRAMES + 1);
    while (loop_next(&loop)) {
        if (!unwinder->frame) {
            stack->complete = unwinder->lowest != stack_pointer(regs);
            break;
        }
        depth = stack->depth;
        if (unwinder->frame < unwinder->lowest || unwinder->frame & 7 ||
            read_user(words, sizeof(words), (void *)unwinder->frame))
            break;
        words[1] = return_address(task, words[1]);
        if (!follows_call(words[1]))
            break;
        /* A wrapper that does keep a frame: its return address is there already. */
        if (unwinder->lowest != stack_pointer(regs) || words[1] != caller) {
            if (depth >= STACK_FRAMES)
                break;
            stack->addresses[FRAME(depth)] = words[1];
            stack->depth = depth + 1;
        }
        unwinder->frame = words[0];
        unwinder->lowest += 16;
        if (unwinder->lowest < unwinder->frame)
            unwinder->lowest = unwinder->frame;
    }
    loop_end(&loop);
}

/* The module that the address lies in, of those found already, or NO_MODULE. */
static __always_inline u8 known_module(struct unwinder *unwinder)
{
    u64 found = 0, distance, inside;

#pragma unroll
    for (u32 i = 0; i < STACK_MODULES; i++) {
        distance = unwinder->address - unwinder->modules[i].start;
        inside = ((distance - unwinder->modules[i].size) & ~distance) >> 63;
        OPAQUE(inside);
        /* One of them: mappings that change meanwhile may have overlapped. */
        found += (i + 1 - found) * inside;
    }
    return found - 1; /* NO_MODULE is -1 */
}

/* Goes to the next address whose mapping must be looked up, past those that need not. */
static __always_inline bool next_lookup(struct stack *stack, struct unwinder *unwinder)
{
    u64 index = FRAME(unwinder->index);
    u8 module;

    /* A return address may be the first after its function's end. */
    unwinder->address = stack->addresses[index] - (unwinder->index > 0);
    module = known_module(unwinder);
    stack->modules[index] = module;
    return module == NO_MODULE && stack->module_count < STACK_MODULES;
}

/* When the file was last changed; 0 on kernels before 6.11, where build ids are not kept. */
static __always_inline u64 last_change(u64 file)
{
    u64 inode;

    if (!HAS(inode__i_ctime_sec) || !HAS(inode__i_ctime_nsec))
        return 0;
    inode = KERNEL_WORD(file, file__f_inode);
    return KERNEL_WORD(inode, inode__i_ctime_sec) << CHANGE_NS_BITS |
           (KERNEL_WORD(inode, inode__i_ctime_nsec) & CHANGE_NS_MASK);
}

static __always_inline struct build_id_key *key_of(struct unwinder *unwinder, struct module *module,
                                                   struct mapped *mapped)
{
    unwinder->key.base = module->base;
    unwinder->key.inode = module->inode;
    unwinder->key.changed = mapped->changed;
    unwinder->key.device = module->device;
    return &unwinder->key;
}

/* Whether the build id was read before. */
static __always_inline bool is_kept(struct unwinder *unwinder, struct module *module,
                                    struct mapped *mapped)
{
    struct build_id *kept = build_ids.lookup(key_of(unwinder, module, mapped));

    if (!kept)
        return false;
    __builtin_memcpy(module->build_id, kept->id, BUILD_ID_SIZE);
    module->build_id_size = kept->size;
    return true;
}

/* What lies between the two in the record is the same as in the map. */
_Static_assert(__builtin_offsetof(struct module, build_id) ==
                   __builtin_offsetof(struct module, build_id_size) +
                       __builtin_offsetof(struct build_id, id),
               "a build id follows its size");

static __always_inline void keep(struct unwinder *unwinder, struct module *module,
                                 struct mapped *mapped)
{
    if (mapped->changed)
        build_ids.update(key_of(unwinder, module, mapped),
                         (struct build_id *)&module->build_id_size);
}

static __always_inline void add_module(struct stack *stack, struct unwinder *unwinder,
                                       struct vma *vma, u64 file, u64 page_offset)
{
    u64 number = MODULE(stack->module_count), inode = KERNEL_WORD(file, file__f_inode);
    struct module *module = &stack->module[number];
    u32 owner = 0;

    stack->modules[FRAME(unwinder->index)] = number;
    stack->module_count++;
    unwinder->module = number;
    unwinder->steps = 0;
    unwinder->modules[number].start = vma->start;
    unwinder->modules[number].size = vma->end - vma->start;
    module->base = vma->start - (page_offset << PAGE_SHIFT);
    read_file_identity(&module->inode, &module->device, file);
    READ_KERNEL(owner, inode, inode__i_uid_val);
    module->is_roots = !owner;
    read_file_name(module->file, sizeof(module->file), file);
}

/*
 * Looks at the mapping of the address; true when another one must be looked up for the same
 * frame. The ELF header lies in the same mapping as the code, or some mappings below.
 */
static __always_inline bool look_at_mapping(struct stack *stack, struct unwinder *unwinder,
                                            struct vma *vma)
{
    u64 file = KERNEL_WORD(vma->address, vm_area_struct__vm_file);
    u64 page_offset = KERNEL_WORD(vma->address, vm_area_struct__vm_pgoff);
    struct mapped *mapped;

    if (!unwinder->header_file) {
        if (!file)
            return false;
        add_module(stack, unwinder, vma, file, page_offset);
        mapped = &unwinder->modules[MODULE(unwinder->module)];
        mapped->changed = last_change(file);
        if (mapped->changed && is_kept(unwinder, &stack->module[MODULE(unwinder->module)], mapped))
            return false;
        unwinder->header_file = file;
    }
    if (unwinder->header_file != file)
        return false;
    if (page_offset) {
        unwinder->address = vma->start - 1;
        return unwinder->steps++ < HEADER_STEPS;
    }
    mapped = &unwinder->modules[MODULE(unwinder->module)];
    mapped->header = vma->start;
    /* The process may write there, or has: its own bytes change without the file. */
    if (vma->flags & VM_WRITE || KERNEL_WORD(vma->address, vm_area_struct__anon_vma))
        mapped->changed = 0;
    return false;
}

/*
 * Of each frame the module, and of each module the file and where its offset 0 would be mapped.
 * Each turn descends one level of the tree: see find_vma().
 */
static __always_inline void find_modules(struct stack *stack, struct unwinder *unwinder, u64 mm,
                                         struct search *search)
{
    struct vma *vma = &search->vma;
    u64 loop = 0;

    search->next = 0;
    loop_begin(&loop, MODULE_TURNS);
    while (loop_next(&loop)) {
        if (!search->next) {
            if (unwinder->index >= stack->depth)
                break;
            if (!unwinder->header_file && !next_lookup(stack, unwinder)) {
                unwinder->index++;
                continue;
            }
            search->index = unwinder->address;
            search->before_last = INDEX_MAX;
            search->next = KERNEL_WORD(mm, mm_struct__mm_mt_ma_root);
        }
        if (descend(search) != STEP_ENTRY)
            continue;
        vma->address = search->next;
        search->next = 0;
        if (vma->address) {
            read_vma(vma, vma->address);
            if (KERNEL_WORD(vma->address, vm_area_struct__vm_mm) != mm ||
                search->index < vma->start || search->index >= vma->end)
                continue; /* it has changed: once more */
            if (look_at_mapping(stack, unwinder, vma))
                continue;
        }
        unwinder->header_file = 0;
        unwinder->index++;
    }
    loop_end(&loop);
}

/* Where the GNU build id stands among the notes that were read, 0: nowhere. */
static __always_inline u64 find_build_id(u32 *word)
{
    u64 found = 0, difference, match;

#pragma unroll
    for (u32 i = 0; i + NOTE_HEADER_WORDS < NOTE_WORDS; i++) {
        difference = (word[i] ^ 4) | (word[i + 2] ^ NT_GNU_BUILD_ID) | (word[i + 3] ^ NAME_GNU);
        match = (difference - 1) >> 63;
        OPAQUE(match);
        found += match * (i + NOTE_HEADER_WORDS);
    }
    return found;
}

/* One of the headers of the module whose turn it is; true when that was the last to be read. */
static __always_inline bool read_header(struct module *module, struct unwinder *unwinder,
                                        struct mapped *mapped)
{
    u64 *words = unwinder->words, notes, found;

    if (!mapped->header)
        return true;
    if (!unwinder->program_header) {
        if (read_user(words, ELF_HEADER_WORDS * sizeof(u64), (void *)mapped->header) ||
            (u32)words[0] != ELF_MAGIC || (words[0] >> 32 & 0xff) != ELF_CLASS_64)
            return true;
        unwinder->table = mapped->header + words[4];
        unwinder->headers = words[7] & 0xffff;
        if (unwinder->headers > PROGRAM_HEADERS_MAX)
            unwinder->headers = PROGRAM_HEADERS_MAX;
        unwinder->program_header = 1;
        return false;
    }
    if (unwinder->program_header > unwinder->headers ||
        read_user(words, PROGRAM_HEADER_WORDS * sizeof(u64), (void *)unwinder->table))
        return true;
    unwinder->table += PROGRAM_HEADER_WORDS * sizeof(u64);
    unwinder->program_header++;
    if ((u32)words[0] != PT_NOTE)
        return false;
    notes = mapped->header + words[1];
    if (read_user(unwinder->notes, sizeof(unwinder->notes), (void *)notes))
        return false;
    found = find_build_id(unwinder->notes);
    if (!found)
        return false;
    module->build_id_size = unwinder->notes[(found - NOTE_HEADER_WORDS + 1) & (NOTE_WORDS - 1)];
    if (read_user(module->build_id, sizeof(module->build_id),
                  (void *)(notes + found * sizeof(u32))) ||
        module->build_id_size > sizeof(module->build_id))
        module->build_id_size = 0;
    else
        keep(unwinder, module, mapped);
    return true;
}

/* include/uapi/linux/elf.h: of each module the build id. */
static __always_inline void read_build_ids(struct stack *stack, struct unwinder *unwinder)
{
    u64 number, loop = 0;

    unwinder->module = 0;
    loop_begin(&loop, STACK_MODULES * (PROGRAM_HEADERS_MAX + 2));
    while (loop_next(&loop)) {
        if (unwinder->module >= stack->module_count)
            break;
        number = MODULE(unwinder->module);
        if (read_header(&stack->module[number], unwinder, &unwinder->modules[number])) {
            unwinder->module++;
            unwinder->program_header = 0;
        }
    }
    loop_end(&loop);
}

/* `caller` as caller_of() gives it, or the instruction pointer. A 32-bit caller's stack is not
 * walked. */
static __always_inline void fill_stack(struct stack *stack, struct unwinder *unwinder,
                                       struct search *search, struct task_struct *task,
                                       struct pt_regs *regs, u64 caller)
{
    __builtin_memset(stack, 0, sizeof(*stack));
    __builtin_memset(unwinder, 0, sizeof(*unwinder));
    if (!instruction_pointer(regs) || !is_native_code(regs)) /* io_uring's threads have none */
        return;
    unwinder->key.process = identity_of(task);
    unwinder->key.period = bpf_jiffies64() / BUILD_ID_JIFFIES;
    walk_frames(stack, unwinder, task, regs, caller);
    find_modules(stack, unwinder, (u64)TASK_FIELD(void *, task, mm), search);
    read_build_ids(stack, unwinder);
}

#endif
