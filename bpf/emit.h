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

/* `early` becomes true where the event is within the limits only because it is. */
static __always_inline bool within_limits(struct config *config, struct task_struct *task,
                                          struct bucket_key *key, u64 now, bool *early)
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
    if (allowed || bucket == overflow)
        *early = is_early(config, task, key, now);
    if (*early && conforms(&host->arrival, now, interval, burst))
        return true;
    if (!bucket->first_suppressed_ns)
        bucket->first_suppressed_ns = now;
    bucket->last_suppressed_ns = now;
    COUNT(bucket->suppressed);
    return false;
}

/*
 * bpf_ringbuf_query(), by its number in include/uapi/linux/bpf.h: bcc has no name for it. The map
 * is a load of 64 bits (BPF_PSEUDO_MAP_FD), into whose mark the loader puts the descriptor.
 */
#define RING_QUERY(flags)                                                                          \
    ({                                                                                             \
        register u64 _r0 asm("r0");                                                                \
        register u64 _r2 asm("r2") = (flags);                                                      \
        asm volatile(".byte 0x18, 0x11, 0, 0\n.long %2\n.long 0\n.long 0\n"                        \
                     ".byte 0x85, 0, 0, 0\n.long 134"                                              \
                     : "=r"(_r0), "+r"(_r2)                                                        \
                     : "i"(RING_MAP)                                                               \
                     : "r1", "r3", "r4", "r5", "memory");                                          \
        _r0;                                                                                       \
    })
#define BPF_RB_AVAIL_DATA 0

/* The last part of the ring is for early events: a busy machine may read it too slowly. */
static __always_inline bool has_room(struct config *config)
{
    return RING_QUERY(BPF_RB_AVAIL_DATA) <= config->ordinary_ring;
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

/* Whether a violation may have an event. `asked`: whether one of the host's may, in bit 0. */
static __always_inline bool wants_event(enum bank bank, u32 asked)
{
    if (bank != BANK_HOST) {
        OPAQUE(bank); /* otherwise clang prepares both answers, also for the host's */
        return bank == BANK_CANARY;
    }
    return asked & 1;
}

/*
 * A record for one violation, or NULL when the limits or the ring have no room for it; every
 * outcome is counted. The caller fills the rest and calls submit().
 */
static __always_inline struct record *reserve(struct counters *count, struct config *config,
                                              struct task_struct *task, enum kind kind,
                                              struct bucket_key *key, enum bank bank)
{
    bool canary = bank != BANK_HOST;
    u64 now = bpf_ktime_get_boot_ns();
    struct record *record = NULL;
    bool early = false;

    key->pid = process_pid(config, task);
    key->start_boot_ns = process_start(task);
    key->kind = kind;
    if (!canary && !within_limits(config, task, key, now, &early)) {
        COUNT(count->events[kind][OUTCOME_SUPPRESSED]);
        return NULL;
    }
    if (canary || early || has_room(config) || is_early(config, task, key, now))
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
