/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Room for others: between the limit of a caller and that of the host, so that nobody's flood hides
 * the first events of another process.
 *
 * Three quarters of the host's burst are for whoever comes. An event that finds no room there, or
 * no bucket of its own, may still be early: its process had few such events of this kind lately,
 * and so had the owner of that process, who answers for all the processes that it may fork. Early
 * events may use all of the burst, and of the ring buffer.
 */
#ifndef SEAL_MONITOR_SHARE_H
#define SEAL_MONITOR_SHARE_H

#include "abi.h"
#include "definitions.h"
#include "kernel.h"

#define SHARE_SECOND 1000000000ULL
/* 1 a second for a process, 5 at once. */
#define PROCESS_INTERVAL SHARE_SECOND
#define PROCESS_BURST (4 * PROCESS_INTERVAL)
/*
 * 20 a second for an owner, 20 at once: twelve owners who begin at the same moment still leave
 * room in the quarter of the host's default burst of 1,000.
 */
#define OWNER_INTERVAL (SHARE_SECOND / 20)
#define OWNER_BURST (19 * OWNER_INTERVAL)

/* Like `arrival` of a bucket, of all processes and owners whose hash is the same. */
BPF_F_TABLE("array", u32, u64, shares, KINDS *SHARES_OF_KIND, BPF_F_MMAPABLE);

/*
 * GCRA: one number, the time at which the next event would arrive at the steady rate; an event may
 * come as much earlier as the burst allows. Two CPUs that race for the same place: one moves the
 * number, the other looks again. No interval, no limit.
 */
static __always_inline bool conforms(u64 *place, u64 now, u64 interval, u64 burst)
{
    if (!interval)
        return true;
#pragma unroll
    for (int attempt = 0; attempt < 3; attempt++) {
        u64 arrival = *(volatile u64 *)place;
        u64 base = arrival > now ? arrival : now;

        if (base - now > burst)
            return false;
        if (__sync_val_compare_and_swap(place, arrival, base + interval) == arrival)
            return true;
    }
    return false;
}

/* The finalizer of splitmix64. Nobody can choose a collision without the seed. */
static __always_inline u64 mix(u64 seed, u64 value)
{
    value += seed;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ULL;
    value = (value ^ value >> 27) * 0x94d049bb133111ebULL;
    return value ^ value >> 31;
}

/* kernel/user_namespace.c, create_user_ns(): parents are nested no deeper than this. */
#define USER_NAMESPACE_LEVELS 33
/*
 * SUB_UID_MIN of login.defs(5): from here on a user may have 65,536 more, and use them outside of a
 * user namespace as well, by files with the setuid bit. In one cgroup subtree all of them are one
 * owner.
 */
#define FIRST_SUBORDINATE_UID 100000

/* Who answers for a task: its user; in a user namespace the one who made the outermost. */
static __always_inline u32 responsible_user(struct task_struct *task)
{
    u64 cred = (u64)TASK_FIELD(void *, task, cred), space = KERNEL_WORD(cred, cred__user_ns);
    u32 level = KERNEL_WORD(space, user_namespace__level), user;

    user = KERNEL_WORD(cred, cred__uid);
    if (level) {
        for (u32 each = 1; each < USER_NAMESPACE_LEVELS && level > 1; each++, level--)
            space = KERNEL_WORD(space, user_namespace__parent);
        user = KERNEL_WORD(space, user_namespace__owner);
    }
    return user < FIRST_SUBORDINATE_UID ? user : FIRST_SUBORDINATE_UID;
}

/*
 * The cgroup at depth 2, such as system.slice/cron.service or user.slice/user-1000.slice: what lies
 * deeper may be delegated, and its owner may make as many as they like.
 */
static __always_inline u64 cgroup_subtree(void)
{
    u64 id = bpf_get_current_ancestor_cgroup_id(2);

    return id ? id : bpf_get_current_cgroup_id();
}

static __always_inline u64 *share_of_process(struct config *config, struct bucket_key *key)
{
    u64 hash = mix(config->hash_seed ^ key->start_boot_ns, key->pid);
    u32 place = key->kind * SHARES_OF_KIND + hash % PROCESS_SHARES;

    return shares.lookup(&place);
}

static __always_inline u64 *share_of_owner(struct config *config, struct task_struct *task,
                                           u32 kind)
{
    u64 hash = mix(config->hash_seed ^ cgroup_subtree(), responsible_user(task));
    u32 place = kind * SHARES_OF_KIND + PROCESS_SHARES + hash % OWNER_SHARES;

    return shares.lookup(&place);
}

/*
 * Whether the event is early. The share of the owner is looked at first and taken last: when it is
 * used up, those that they fork take no share that others may have.
 */
static __always_inline bool is_early(struct config *config, struct task_struct *task,
                                     struct bucket_key *key, u64 now)
{
    u64 *owner = share_of_owner(config, task, key->kind), *process;

    if (!owner || (*owner > now && *owner - now > OWNER_BURST))
        return false;
    process = share_of_process(config, key);
    return process && conforms(process, now, PROCESS_INTERVAL, PROCESS_BURST) &&
           conforms(owner, now, OWNER_INTERVAL, OWNER_BURST);
}

#endif
