/* SPDX-License-Identifier: GPL-2.0-only */
/* What a record says of its process, of where it was, and of a mapping. */
#ifndef SEAL_MONITOR_DESCRIBE_H
#define SEAL_MONITOR_DESCRIBE_H

#include "abi.h"
#include "arch.h"
#include "definitions.h"
#include "kernel.h"
#include "memory.h"

static __always_inline u64 process_start(struct task_struct *task)
{
    struct task_struct *leader = TASK_FIELD(struct task_struct *, task, group_leader);

    return TASK_FIELD(u64, leader, start_boottime);
}

/*
 * A process from one exec to the next, whose memory is one and the same: no other has this at any
 * time. Processes may have begun in the same nanosecond, but then both are there, with pids of
 * their own; and an exec counts one up.
 */
struct identity {
    u64 start;
    u64 number; /* pid << 32 | execs */
};

static __always_inline struct identity identity_of(struct task_struct *task)
{
    u64 pid = TASK_FIELD(u32, task, tgid);
    struct identity identity = {
        .start = process_start(task),
        .number = pid << 32 | (u32)TASK_FIELD(u64, task, self_exec_id),
    };

    return identity;
}

/* include/linux/proc_ns.h, PROC_PID_INIT_INO: the inode number of the initial pid namespace. */
#define INITIAL_PID_NAMESPACE 0xeffffffc
/* Pid namespaces below which the monitor is found: a container in a container is at 2. */
#define MONITOR_LEVELS 8

/*
 * A task has a pid in each pid namespace from the initial one, level 0, down to its own. This is
 * the level of the monitor's, whose /proc shows the pids of that level; 0 for a task that is not
 * visible there.
 */
static __always_inline u32 monitor_level(struct config *config, u64 task)
{
    u64 pid = KERNEL_WORD(task, task_struct__thread_pid), namespace, difference, is_level;
    u64 last = (u32)KERNEL_WORD(pid, pid__level), found = 0;

    if (config->pid_namespace == INITIAL_PID_NAMESPACE)
        return 0;
        /* Sums, where the verifier would follow branches. */
#pragma unroll
    for (u64 level = 1; level < MONITOR_LEVELS; level++) {
        namespace = *kernel_words(pid + OFF_pid__numbers + level * SIZE_upid + OFF_upid__ns);
        difference = (u32)KERNEL_WORD(namespace, pid_namespace__ns_inum) ^ config->pid_namespace;
        is_level = ((difference - 1) & (level - last - 1)) >> 63;
        OPAQUE(is_level);
        found += is_level * level;
    }
    return found;
}

/* The pid of a task at a level; 0 where it has none, like the parent of a namespace's first. */
static __always_inline u32 pid_at(u64 task, u32 level)
{
    u64 pid = KERNEL_WORD(task, task_struct__thread_pid);
    u32 last = KERNEL_WORD(pid, pid__level), number;

    if (level > last)
        return 0;
    number = *kernel_words(pid + OFF_pid__numbers + (u64)level * SIZE_upid + OFF_upid__nr);
    return number;
}

/* Whether the task is its process's first thread. */
static __always_inline bool is_leader(struct task_struct *task)
{
    return (u64)TASK_FIELD(void *, task, group_leader) == (u64)task;
}

/* The pid of the process as the monitor sees it. */
static __always_inline u32 process_pid(struct config *config, struct task_struct *task)
{
    return pid_at((u64)TASK_FIELD(void *, task, group_leader), monitor_level(config, (u64)task));
}

BPF_CGROUP_ARRAY(announced_cgroups, ANNOUNCED_CGROUPS);

/* Whether the process of this thread group leader was announced. */
static __always_inline bool is_announced_process(struct config *config, u64 leader, u32 level)
{
    u64 start = KERNEL_WORD(leader, task_struct__start_boottime) / NS_PER_TICK, found = 0;
    u64 pid = pid_at(leader, level), difference;

    /* Sums, where the verifier would follow branches. */
#pragma unroll
    for (u32 i = 0; i < ANNOUNCED_PROCESSES; i++) {
        difference = (config->announced_processes[i].start_ticks ^ start) |
                     (config->announced_processes[i].pid ^ pid);
        found += (difference - 1 & ~difference) >> 63;
        OPAQUE(found);
    }
    return pid && found;
}

/* Whether the current process, its parent or a cgroup that it is in was announced. */
static __always_inline bool is_announced(struct config *config, struct task_struct *task)
{
    u64 leader = (u64)TASK_FIELD(void *, task, group_leader);
    u64 parent = (u64)TASK_FIELD(void *, task, real_parent);
    u32 level = monitor_level(config, (u64)task);

    READ_KERNEL(parent, parent, task_struct__group_leader);
    if (is_announced_process(config, leader, level) || is_announced_process(config, parent, level))
        return true;
#pragma unroll
    for (u32 i = 0; i < ANNOUNCED_CGROUPS; i++) {
        if (config->announced >> ANNOUNCED_PROCESSES >> i & 1 &&
            announced_cgroups.check_current_task(i) == 1)
            return true;
    }
    return false;
}

/* Where a violation of the current process is counted. */
static __always_inline enum bank bank_of(struct config *config, struct task_struct *task)
{
    /* Both words at once: this is all that it costs while nothing of our own is tried. */
    if (!*(u64 *)&config->canary_pid)
        return BANK_HOST;
    if (config->canary_pid && config->canary_start_ticks == process_start(task) / NS_PER_TICK &&
        config->canary_pid == process_pid(config, task))
        return BANK_CANARY;
    if (config->announced && is_announced(config, task))
        return BANK_ANNOUNCED;
    return BANK_HOST;
}

/* The base name of a struct file. */
static __always_inline void read_file_name(char *name, u32 size, u64 file)
{
    u64 dentry = 0, text = 0;

    READ_KERNEL(dentry, file, file__f_path_dentry);
    READ_KERNEL(text, dentry, dentry__d_name_name);
    read_kernel_string(name, size, (void *)text);
}

static __always_inline void read_file_identity(u64 *inode_number, u32 *device, u64 file)
{
    u64 inode = 0, super_block = 0;

    READ_KERNEL(inode, file, file__f_inode);
    READ_KERNEL(*inode_number, inode, inode__i_ino);
    READ_KERNEL(super_block, inode, inode__i_sb);
    READ_KERNEL(*device, super_block, super_block__s_dev);
}

/*
 * The kernel's own name of a mapping that it has made itself, such as "[vdso]": those have
 * operations and no file, and what they point to is theirs (mm/mmap.c, special_mapping_name()).
 * prctl(2) takes no brackets in a name that a process chooses.
 */
static __always_inline u64 special_name(struct vma *vma)
{
    u64 operations = KERNEL_WORD(vma->address, vm_area_struct__vm_ops), special, name;

    if (!operations || !KERNEL_WORD(operations, vm_operations_struct__name))
        return 0;
    special = KERNEL_WORD(vma->address, vm_area_struct__vm_private_data);
    name = KERNEL_WORD(special, vm_special_mapping__name);
    return name;
}

static __always_inline void fill_mapping(struct mapping *mapping, struct vma *vma)
{
    u64 file = 0, name = 0;

    READ_KERNEL(mapping->page_offset, vma->address, vm_area_struct__vm_pgoff);
    READ_KERNEL(file, vma->address, vm_area_struct__vm_file);
    if (file) {
        read_file_identity(&mapping->inode, &mapping->device, file);
        read_file_name(mapping->file, sizeof(mapping->file), file);
    } else {
        name = special_name(vma);
        if (name)
            read_kernel_string(mapping->name, sizeof(mapping->name), (void *)name);
        name = 0;
    }
    if (HAS(vm_area_struct__anon_name) && HAS(anon_vma_name__name))
        READ_KERNEL(name, vma->address, vm_area_struct__anon_name);
    if (name)
        read_kernel_string(mapping->name, sizeof(mapping->name),
                           (void *)(name + OFF_anon_vma_name__name));
    if (!is_still(vma)) /* what was read may be another's */
        __builtin_memset(mapping, 0, sizeof(*mapping));
    mapping->start = vma->start;
    mapping->end = vma->end;
    mapping->flags = vma->flags;
}

/* The program of the process that has this memory; `file` is that of its executable. */
static __always_inline void fill_image(struct image *image, u64 mm, u64 file)
{
    u64 inode = 0, mount = 0;

    READ_KERNEL(image->start_code, mm, mm_struct__start_code);
    READ_KERNEL(image->start_stack, mm, mm_struct__start_stack);
    READ_KERNEL(inode, file, file__f_inode);
    READ_KERNEL(image->inode, inode, inode__i_ino);
    if (HAS(mount__mnt) && HAS(mount__mnt_id_unique)) {
        READ_KERNEL(mount, file, file__f_path_mnt);
        image->mount = *kernel_words(mount - OFF_mount__mnt + OFF_mount__mnt_id_unique);
    }
}

/* Where the task is in its program; `caller`: the user code that made the call. */
static __always_inline void fill_place(struct record *record, struct pt_regs *regs, u64 caller,
                                       bool compat)
{
    if (compat)
        record->flags |= RECORD_COMPAT;
    record->instruction_pointer = instruction_pointer(regs);
    record->stack_pointer = stack_pointer(regs);
    record->caller = caller;
}

static __always_inline void fill_process(struct record *record, struct config *config,
                                         struct task_struct *task)
{
    u64 leader = (u64)TASK_FIELD(void *, task, group_leader), owner = bpf_get_current_uid_gid();
    u64 parent = (u64)TASK_FIELD(void *, task, real_parent), mm, file = 0, pid = 0;
    u32 level = monitor_level(config, (u64)task), own_level = 0;

    mm = (u64)TASK_FIELD(void *, task, mm);
    READ_KERNEL(parent, parent, task_struct__group_leader);
    READ_KERNEL(pid, leader, task_struct__thread_pid);
    READ_KERNEL(own_level, pid, pid__level);
    record->pid = pid_at(leader, level);
    record->tid = pid_at((u64)task, level);
    record->parent_pid = pid_at(parent, level);
    record->vpid = pid_at(leader, own_level);
    record->uid = owner;
    record->gid = owner >> 32;
    record->start_boot_ns = process_start(task);
    record->cgroup_id = bpf_get_current_cgroup_id();
    bpf_get_current_comm(record->task_name, sizeof(record->task_name));
    READ_KERNEL(file, mm, mm_struct__exe_file);
    if (file) {
        read_file_name(record->executable, sizeof(record->executable), file);
        fill_image(&record->image, mm, file);
    }
}

/*
 * Whose memory it was; `owner` is a thread that has it, 0 where that is not known. The first thread
 * of a process may have ended, and then has no memory.
 */
static __always_inline void fill_owner(struct bypass *bypass, struct config *config, u64 owner)
{
    u64 leader, mm, file;

    if (!owner)
        return;
    leader = KERNEL_WORD(owner, task_struct__group_leader);
    bypass->pid = pid_at(leader, monitor_level(config, leader));
    bypass->start_boot_ns = KERNEL_WORD(leader, task_struct__start_boottime);
    read_kernel_string(bypass->task_name, sizeof(bypass->task_name),
                       (void *)(leader + OFF_task_struct__comm));
    mm = KERNEL_WORD(owner, task_struct__mm);
    file = KERNEL_WORD(mm, mm_struct__exe_file);
    if (file) {
        read_file_name(bypass->executable, sizeof(bypass->executable), file);
        fill_image(&bypass->image, mm, file);
    }
}

#endif
