/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events are evidence, not counts: limited per process, operation and caller, and for the host.
 * What is not delivered is itself counted.
 */
#ifndef SEAL_MONITOR_EMIT_H
#define SEAL_MONITOR_EMIT_H

BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

/*
 * Preallocated, so that a storm allocates nothing, and never LRU, which would forget the storm
 * itself. When it is full all further keys share `overflow`. The daemon removes buckets that are
 * idle.
 */
BPF_TABLE("hash", struct bucket_key, struct bucket, buckets, BUCKETS_MAX);
BPF_F_TABLE("array", u32, struct bucket, shared_buckets, SHARED_BUCKETS, BPF_F_MMAPABLE);

/*
 * GCRA: one number per bucket, the time at which the next event would arrive at the steady rate; an
 * event may come as much earlier as the burst allows. Two CPUs that race for the same place: one
 * moves the number, the other looks again. No interval, no limit.
 */
static __always_inline bool conforms(struct bucket *bucket, u64 now, u64 interval, u64 burst)
{
    if (!interval)
        return true;
#pragma unroll
    for (int attempt = 0; attempt < 3; attempt++) {
        u64 arrival = *(volatile u64 *)&bucket->arrival;
        u64 base = arrival > now ? arrival : now;

        if (base - now > burst)
            return false;
        if (__sync_val_compare_and_swap(&bucket->arrival, arrival, base + interval) == arrival)
            return true;
    }
    return false;
}

static __always_inline struct bucket *bucket_of(struct bucket_key *key)
{
    struct bucket *bucket = buckets.lookup(key), *empty;
    u32 shared = SHARED_EMPTY;

    if (bucket)
        return bucket;
    empty = shared_buckets.lookup(&shared);
    if (!empty)
        return NULL;
    buckets.insert(key, empty);
    bucket = buckets.lookup(key);
    if (bucket) {
        bucket->cgroup_id = bpf_get_current_cgroup_id();
        bpf_get_current_comm(bucket->task_name, sizeof(bucket->task_name));
        return bucket;
    }
    shared = SHARED_OVERFLOW;
    return shared_buckets.lookup(&shared);
}

static __always_inline bool within_limits(struct config *config, struct bucket_key *key, u64 now)
{
    u32 host_key = SHARED_HOST;
    struct bucket *bucket = bucket_of(key), *host = shared_buckets.lookup(&host_key);

    if (!bucket || !host)
        return false;
    bucket->last_used_ns = now;
    if (conforms(bucket, now, config->event_interval_ns, config->event_burst_ns) &&
        conforms(host, now, config->host_interval_ns, config->host_burst_ns))
        return true;
    if (!bucket->first_suppressed_ns)
        bucket->first_suppressed_ns = now;
    bucket->last_suppressed_ns = now;
    COUNT(bucket->suppressed);
    return false;
}

static __always_inline u64 process_start(struct task_struct *task)
{
    struct task_struct *leader = TASK_FIELD(struct task_struct *, task, group_leader);

    return TASK_FIELD(u64, leader, start_boottime);
}

#define NS_PER_TICK 10000000 /* USER_HZ is 100 on x86 */

static __always_inline bool is_canary(struct config *config, struct task_struct *task)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;

    return config->canary_pid == pid &&
           config->canary_start_ticks == process_start(task) / NS_PER_TICK;
}

/* Whether a return address follows a call instruction: opcode e8, or ff with /2 in its ModRM byte.
 */
static __always_inline bool follows_call(u64 address)
{
    u8 code[7] = {}; /* the bytes before the address */

    if (bpf_probe_read_user(code, sizeof(code), (void *)(address - sizeof(code))))
        return false;
    if (code[2] == 0xe8) /* call rel32 */
        return true;
    if (code[5] == 0xff && (code[6] & 0x38) == 0x10) /* call reg; call [reg] */
        return true;
    if (code[4] == 0xff && (code[5] & 0x38) == 0x10) /* call [reg + disp8] */
        return true;
    return code[1] == 0xff && (code[2] & 0x38) == 0x10; /* call [rip + disp32], [reg + disp32] */
}

/*
 * The code that made the call. ip is in libc's wrapper for nearly every program; its wrappers keep
 * no frame, so the word at sp is where they return to. Where ip is no wrapper that word is not a
 * return address, and ip is the caller itself.
 */
static __always_inline u64 caller_of(u64 ip, u64 sp, bool compat)
{
    u64 word = 0;

    if (compat || bpf_probe_read_user(&word, sizeof(word), (void *)sp) || !follows_call(word))
        return ip;
    return word;
}

/* The base name of a struct file. */
static __always_inline void read_file_name(char *name, u64 file)
{
    u64 dentry = 0, text = 0;

    READ_KERNEL(dentry, file, file__f_path_dentry);
    READ_KERNEL(text, dentry, dentry__d_name_name);
    bpf_probe_read_kernel_str(name, FILE_NAME_SIZE, (void *)text);
}

static __always_inline void fill_mapping(struct mapping *mapping, struct vma *vma)
{
    u64 file = 0, inode = 0, super_block = 0;

    READ_KERNEL(mapping->page_offset, vma->address, vm_area_struct__vm_pgoff);
    READ_KERNEL(file, vma->address, vm_area_struct__vm_file);
    if (file) {
        READ_KERNEL(inode, file, file__f_inode);
        READ_KERNEL(mapping->inode, inode, inode__i_ino);
        READ_KERNEL(super_block, inode, inode__i_sb);
        READ_KERNEL(mapping->device, super_block, super_block__s_dev);
        read_file_name(mapping->file, file);
    }
#ifdef HAS_vm_area_struct__anon_name
    u64 name = 0;

    READ_KERNEL(name, vma->address, vm_area_struct__anon_name);
    if (name)
        bpf_probe_read_kernel_str(mapping->name, sizeof(mapping->name),
                                  (void *)(name + OFF_anon_vma_name__name));
#endif
    if (!is_still(vma)) /* what was read may be another's */
        __builtin_memset(mapping, 0, sizeof(*mapping));
    mapping->start = vma->start;
    mapping->end = vma->end;
    mapping->flags = vma->flags;
}

/* The pid of the thread group as seen inside the innermost pid namespace. */
static __always_inline u32 pid_in_namespace(struct task_struct *task)
{
    u64 leader = (u64)TASK_FIELD(void *, task, group_leader), pid = 0;
    u32 level = 0, number = 0;

    READ_KERNEL(pid, leader, task_struct__thread_pid);
    READ_KERNEL(level, pid, pid__level);
    number = *kernel_words(pid + OFF_pid__numbers + (u64)level * SIZE_upid + OFF_upid__nr);
    return number;
}

static __always_inline void fill_process(struct record *record, struct task_struct *task)
{
    u64 ids = bpf_get_current_pid_tgid(), owner = bpf_get_current_uid_gid();
    u64 parent = (u64)TASK_FIELD(void *, task, real_parent), file = 0;
    u64 mm = (u64)TASK_FIELD(void *, task, mm);

    record->pid = ids >> 32;
    record->tid = ids;
    record->uid = owner;
    record->gid = owner >> 32;
    record->start_boot_ns = process_start(task);
    record->cgroup_id = bpf_get_current_cgroup_id();
    READ_KERNEL(record->parent_pid, parent, task_struct__tgid);
    record->vpid = pid_in_namespace(task);
    bpf_get_current_comm(record->task_name, sizeof(record->task_name));
    READ_KERNEL(file, mm, mm_struct__exe_file);
    if (file)
        read_file_name(record->executable, file);
}

/*
 * A zeroed record for one violation, its process filled in, or NULL when the limits or the ring
 * have no room for it; every outcome is counted. The caller fills the rest and calls submit().
 */
static __always_inline struct record *reserve(struct counters *count, struct config *config,
                                              struct task_struct *task, enum kind kind,
                                              struct bucket_key *key, bool canary)
{
    u64 now = bpf_ktime_get_boot_ns();
    struct record *record;

    key->pid = bpf_get_current_pid_tgid() >> 32;
    key->start_boot_ns = process_start(task);
    key->kind = kind;
    if (!canary && !within_limits(config, key, now)) {
        COUNT(count->events[kind][OUTCOME_SUPPRESSED]);
        return NULL;
    }
    record = ring.ringbuf_reserve(sizeof(struct record));
    if (!record) {
        COUNT(count->events[kind][OUTCOME_DROPPED]);
        return NULL;
    }
    COUNT(count->events[kind][OUTCOME_SUBMITTED]);
    __builtin_memset(record, 0, __builtin_offsetof(struct record, stack));
    record->time_boot_ns = now;
    record->kind = kind;
    record->flags = canary ? RECORD_CANARY : 0;
    fill_process(record, task);
    return record;
}

static __always_inline void submit(struct record *record)
{
    ring.ringbuf_submit(record, 0);
}

#endif
