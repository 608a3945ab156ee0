/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events are evidence, not counts: limited per process, operation and caller, and for the host by
 * their kind, with room for the first events of each process (share.h).
 * What is not delivered is itself counted.
 */
#ifndef SEAL_MONITOR_EMIT_H
#define SEAL_MONITOR_EMIT_H

#include "abi.h"
#include "counters.h"
#include "definitions.h"
#include "describe.h"
#include "share.h"

BPF_RINGBUF_OUTPUT(ring, 1);

/*
 * Preallocated, so that a storm allocates nothing, and never LRU, which would forget the storm
 * itself. When it is full all further keys of a kind share a bucket. The daemon removes buckets
 * that are idle.
 */
BPF_TABLE("hash", struct bucket_key, struct bucket, buckets, BUCKETS_MAX);
BPF_F_TABLE("array", u32, struct bucket, shared_buckets, SHARED_BUCKETS, BPF_F_MMAPABLE);

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
    shared = SHARED_OVERFLOW + key->kind;
    return shared_buckets.lookup(&shared);
}

static __always_inline bool within_limits(struct config *config, struct task_struct *task,
                                          struct bucket_key *key, u64 now)
{
    u32 host_key = SHARED_HOST + key->kind, overflow_key = SHARED_OVERFLOW + key->kind;
    struct bucket *bucket = bucket_of(key), *host = shared_buckets.lookup(&host_key);
    struct bucket *overflow = shared_buckets.lookup(&overflow_key);
    u64 interval = config->host_interval_ns, burst = config->host_burst_ns;
    bool allowed;

    if (!bucket || !host)
        return false;
    bucket->last_used_ns = now;
    allowed = conforms(&bucket->arrival, now, config->event_interval_ns, config->event_burst_ns);
    if (allowed && conforms(&host->arrival, now, interval, burst - (burst >> 2)))
        return true;
    /* What its own bucket holds back costs nothing more. A shared one says nothing of it. */
    if ((allowed || bucket == overflow) && is_early(config, task, key, now) &&
        conforms(&host->arrival, now, interval, burst))
        return true;
    if (!bucket->first_suppressed_ns)
        bucket->first_suppressed_ns = now;
    bucket->last_suppressed_ns = now;
    COUNT(bucket->suppressed);
    return false;
}

/* A record with its process filled in and the rest zeroed, but for the stack; NULL: no room. */
static __always_inline struct record *new_record(struct config *config, struct task_struct *task,
                                                 enum kind kind, u64 now, u32 flags)
{
    struct record *record = ring.ringbuf_reserve(sizeof(struct record));

    if (!record)
        return NULL;
    __builtin_memset(record, 0, __builtin_offsetof(struct record, stack));
    record->stack.depth = 0;
    record->time_boot_ns = now;
    record->kind = kind;
    record->flags = flags;
    fill_process(record, config, task);
    return record;
}

/*
 * A record for one violation, or NULL when the limits or the ring have no room for it; every
 * outcome is counted. The caller fills the rest and calls submit().
 */
static __always_inline struct record *reserve(struct counters *count, struct config *config,
                                              struct task_struct *task, enum kind kind,
                                              struct bucket_key *key, bool canary)
{
    u64 now = bpf_ktime_get_boot_ns();
    struct record *record;

    key->pid = process_pid(config, task);
    key->start_boot_ns = process_start(task);
    key->kind = kind;
    if (!canary && !within_limits(config, task, key, now)) {
        COUNT(count->events[kind][OUTCOME_SUPPRESSED]);
        return NULL;
    }
    record = new_record(config, task, kind, now, canary ? RECORD_CANARY : 0);
    if (record)
        COUNT(count->events[kind][OUTCOME_SUBMITTED]);
    else
        COUNT(count->events[kind][OUTCOME_DROPPED]);
    return record;
}

static __always_inline void submit(struct record *record)
{
    ring.ringbuf_submit(record, 0);
}

#endif
