/* SPDX-License-Identifier: GPL-2.0-only */
/* Facts about the calling task that bear on why a call was refused. */
#ifndef SEAL_MONITOR_TASK_H
#define SEAL_MONITOR_TASK_H

#include "arch.h"
#include "call.h"
#include "definitions.h"
#include "describe.h"
#include "kernel.h"

#define RLIMIT_DATA 2
#define RLIMIT_MEMLOCK 8
#define MNT_NOEXEC 0x04
#define SB_I_NOEXEC 0x00000002
#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6
#define F_SEAL_WRITE 0x0008
#define F_SEAL_FUTURE_WRITE 0x0010
#define PIDFD_SELF_THREAD (-10000)
#define PIDFD_SELF_THREAD_GROUP (-10001)
#define PIDTYPE_TGID 1
#define IPC_SHM_IDS 2
#define SECCOMP_MODE_DISABLED 0
#define PF_EXITING 0x4
#define PF_IO_WORKER 0x10

/* The struct file behind a descriptor of the current task, or 0. */
static __always_inline u64 file_of(struct task_struct *task, s32 descriptor)
{
    u64 files = (u64)TASK_FIELD(void *, task, files), table = 0, slots = 0, file = 0;
    u32 size = 0;

    READ_KERNEL(table, files, files_struct__fdt);
    READ_KERNEL(size, table, fdtable__max_fds);
    READ_KERNEL(slots, table, fdtable__fd);
    if (descriptor >= 0 && (u32)descriptor < size)
        file = *kernel_words(slots + (u64)descriptor * 8);
    return file;
}

static __always_inline bool on_noexec_mount(u64 file)
{
    u64 mount = 0, inode = 0, super_block = 0;
    u32 mount_flags = 0;
    u64 internal_flags = 0;

    READ_KERNEL(mount, file, file__f_path_mnt);
    READ_KERNEL(mount_flags, mount, vfsmount__mnt_flags);
    READ_KERNEL(inode, file, file__f_inode);
    READ_KERNEL(super_block, inode, inode__i_sb);
    READ_KERNEL(internal_flags, super_block, super_block__s_iflags);
    return (mount_flags & MNT_NOEXEC) || (internal_flags & SB_I_NOEXEC);
}

/* Bytes of a huge page where the file is on hugetlbfs, else 0. */
static __always_inline u64 huge_page_size(u64 file)
{
    u64 inode = KERNEL_WORD(file, file__f_inode);
    u64 super_block = KERNEL_WORD(inode, inode__i_sb);

    if (KERNEL_WORD(super_block, super_block__s_magic) != HUGETLBFS_MAGIC)
        return 0;
    return KERNEL_WORD(super_block, super_block__s_blocksize);
}

/* Whether a mapping is one of a System V segment: its file has that name on an internal mount. */
static __always_inline bool is_segment(u64 vma)
{
    u64 file = KERNEL_WORD(vma, vm_area_struct__vm_file);
    u64 dentry = KERNEL_WORD(file, file__f_path_dentry);
    u64 name = KERNEL_WORD(dentry, dentry__d_name_name);

    return (u32)*kernel_words(name) == 0x56535953; /* "SYSV" */
}

/* F_ADD_SEALS on a memfd, which lives on tmpfs or hugetlbfs. */
static __always_inline bool is_write_sealed(u64 file)
{
    u64 inode = 0, super_block = 0, magic = 0;
    u32 seals = 0;

    READ_KERNEL(inode, file, file__f_inode);
    READ_KERNEL(super_block, inode, inode__i_sb);
    READ_KERNEL(magic, super_block, super_block__s_magic);
    if (magic == TMPFS_MAGIC && HAS(shmem_inode_info__seals) && HAS(shmem_inode_info__vfs_inode))
        seals =
            *kernel_words(inode - OFF_shmem_inode_info__vfs_inode + OFF_shmem_inode_info__seals);
    if (magic == HUGETLBFS_MAGIC && HAS(hugetlbfs_inode_info__seals) &&
        HAS(hugetlbfs_inode_info__vfs_inode))
        seals = *kernel_words(inode - OFF_hugetlbfs_inode_info__vfs_inode +
                              OFF_hugetlbfs_inode_info__seals);
    return seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
}

static __always_inline u64 limit_of(struct task_struct *task, u32 resource)
{
    u64 signal = (u64)TASK_FIELD(void *, task, signal);

    return *kernel_words(signal + OFF_signal_struct__rlim + resource * SIZE_rlimit +
                         OFF_rlimit__rlim_cur);
}

static __always_inline bool has_no_lock_limit(struct task_struct *task)
{
    return limit_of(task, RLIMIT_MEMLOCK) == 0;
}

/* mm/mmap.c, brk(2): the limit is looked at before the seal, also when the heap would shrink. */
static __always_inline bool exceeds_data_limit(struct task_struct *task, u64 mm, u64 brk)
{
    u64 data = KERNEL_WORD(mm, mm_struct__end_data) - KERNEL_WORD(mm, mm_struct__start_data);

    return brk - KERNEL_WORD(mm, mm_struct__start_brk) + data > limit_of(task, RLIMIT_DATA);
}

/*
 * Whether seccomp cannot have refused this call. The filter's cache has a bit for each system call
 * that the whole chain of filters always allows (kernel/seccomp.c, seccomp_cache_prepare()).
 */
static __always_inline bool seccomp_excluded(struct task_struct *task, u32 number, bool compat)
{
    u64 filter = 0, bitmap, word = 0;
    u32 mode = 0;

    READ_KERNEL(mode, task, task_struct__seccomp_mode);
    if (mode == SECCOMP_MODE_DISABLED)
        return true;
    READ_KERNEL(filter, task, task_struct__seccomp_filter);
    if (!filter || !is_in_seccomp_cache(number))
        return false;
    if (!HAS(seccomp_filter__cache_allow_native))
        return false;
    bitmap = filter + OFF_seccomp_filter__cache_allow_native;
    if (compat) {
        if (!HAS(seccomp_filter__cache_allow_compat))
            return false;
        bitmap = filter + OFF_seccomp_filter__cache_allow_compat;
    }
    word = *kernel_words(bitmap + (number / 64) * 8);
    return word >> (number & 63) & 1;
}

static __always_inline u32 seccomp_filters(struct task_struct *task)
{
    if (!HAS(task_struct__seccomp_filter_count))
        return 0;
    return KERNEL_WORD(task, task_struct__seccomp_filter_count);
}

/* By pid, the program that has sealed, as it was then. */
struct sealer {
    u64 start_boot_ns;
    u64 mm;          /* another one after exec */
    u32 filters;     /* of seccomp, at its first seal */
    u32 is_reported; /* as one that seals */
};
BPF_TABLE("lru_hash", u32, struct sealer, sealers, SEALERS_MAX);

/* What is known of the current program as one that has sealed, or NULL. */
static __always_inline struct sealer *sealer_of(struct task_struct *task)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    struct sealer *sealer = sealers.lookup(&pid);

    if (!sealer || sealer->start_boot_ns != process_start(task) ||
        sealer->mm != (u64)TASK_FIELD(void *, task, mm))
        return NULL;
    return sealer;
}

/* Notes at its first seal how many filters the program has. */
static __always_inline void note_sealer(struct task_struct *task)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    struct sealer now = {
        .start_boot_ns = process_start(task),
        .mm = (u64)TASK_FIELD(void *, task, mm),
        .filters = seccomp_filters(task),
    };

    if (!sealer_of(task))
        sealers.update(&pid, &now);
}

/* Whether the program has put a filter before its calls since it sealed for the first time. */
static __always_inline bool has_late_filter(struct task_struct *task)
{
    struct sealer *sealer = sealer_of(task);

    return sealer && seccomp_filters(task) > sealer->filters;
}

/* lib/xarray.c, xa_load(): five levels of 64 slots hold every index an IPC id can have. */
static __always_inline u64 xarray_entry(u64 head, u32 index)
{
    u64 entry = head;
    u8 shift = 0;

    for (int level = 0; level < 5; level++) {
        if ((entry & 3) != 2)
            break;
        entry -= 2;
        READ_KERNEL(shift, entry, xa_node__shift);
        index &= 0xffffff;
        entry = *kernel_words(entry + OFF_xa_node__slots + ((index >> (shift & 31)) & 63) * 8);
    }
    return entry & 3 ? 0 : entry;
}

/*
 * The size of the System V segment with this id, or 0. ipc/util.h: an id is an index of 15 bits, or
 * of 24 with ipcmni_extend, below a sequence number; the entry that carries the whole id is the
 * right one.
 */
static __always_inline u64 segment_size(struct task_struct *task, s32 id)
{
    u64 proxy = (u64)TASK_FIELD(void *, task, nsproxy), namespace = 0, head = 0, segment, size = 0;
    s32 found = -1;

    if (!HAS(shmid_kernel__shm_perm_id) || !HAS(shmid_kernel__shm_segsz))
        return 0;
    READ_KERNEL(namespace, proxy, nsproxy__ipc_ns);
    head = *kernel_words(namespace + OFF_ipc_namespace__ids + IPC_SHM_IDS * SIZE_ipc_ids +
                         OFF_ipc_ids__ipcs_idr_idr_rt_xa_head);
    segment = xarray_entry(head, id & 0x7fff);
    READ_KERNEL(found, segment, shmid_kernel__shm_perm_id);
    if (found != id) {
        segment = xarray_entry(head, id & 0xffffff);
        READ_KERNEL(found, segment, shmid_kernel__shm_perm_id);
    }
    if (found == id)
        READ_KERNEL(size, segment, shmid_kernel__shm_segsz);
    return size;
}

/* The task with this number in the pid namespace of another one, or 0. */
static __always_inline u64 task_of(struct task_struct *task, u32 number)
{
    u64 own = (u64)TASK_FIELD(void *, task, thread_pid), namespace, pid, link;
    u64 level = (u32)KERNEL_WORD(own, pid__level);

    namespace = *kernel_words(own + OFF_pid__numbers + level * SIZE_upid + OFF_upid__ns);
    pid = xarray_entry(KERNEL_WORD(namespace, pid_namespace__idr_idr_rt_xa_head), number);
    link = KERNEL_WORD(pid, pid__tasks); /* the first of its kind, PIDTYPE_PID */
    return link ? link - OFF_task_struct__pid_links : 0;
}

/* Whether the pidfd stands for the caller's own process. */
static __always_inline bool is_own_pidfd(struct task_struct *task, s32 pidfd)
{
    u64 signal = (u64)TASK_FIELD(void *, task, signal), own = 0, pid = 0, private = 0, inode = 0,
        file;

    if (pidfd == PIDFD_SELF_THREAD || pidfd == PIDFD_SELF_THREAD_GROUP)
        return true;
    file = file_of(task, pidfd);
    if (!file)
        return false;
    /* A pidfd keeps its pid in the inode, on kernels before pidfs (6.9) in the file. */
    READ_KERNEL(inode, file, file__f_inode);
    READ_KERNEL(pid, inode, inode__i_private);
    READ_KERNEL(private, file, file__private_data);
    own = *kernel_words(signal + OFF_signal_struct__pids + PIDTYPE_TGID * 8);
    return own && (pid == own || private == own);
}

#endif
