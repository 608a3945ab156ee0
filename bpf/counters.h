/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Exact counts. One `struct counters` per CPU and bank in an array that the daemon maps: it reads
 * them without a system call, and without bpf(2), under which the kernel skips runs of tracepoint
 * programs.
 */
#ifndef SEAL_MONITOR_COUNTERS_H
#define SEAL_MONITOR_COUNTERS_H

#include "abi.h"
#include "definitions.h"
#include "share.h"

BPF_F_TABLE("array", u32, struct counters, counters, BANKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct config, config, 1, BPF_F_MMAPABLE);
/*
 * As large as can be configured, so that another number of them needs no other table. It takes
 * memory for those that are there; where the kernel has none at that moment, one finds no place.
 */
BPF_F_TABLE("hash", u64, struct workload, workloads, WORKLOADS_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("array", u32, struct workload_quota, workload_quotas, WORKLOAD_QUOTAS, BPF_F_MMAPABLE);

/* Atomic: on kernels whose tracepoints can be preempted a plain addition could lose a count. */
#define COUNT_MORE(counter, n) __sync_fetch_and_add(&(counter), n)
#define COUNT(counter) COUNT_MORE(counter, 1)

static __always_inline struct counters *counters_of(enum bank bank)
{
    u32 key = bpf_get_smp_processor_id() * BANKS + bank;

    return counters.lookup(&key);
}

static __always_inline struct config *configuration(void)
{
    u32 key = 0;

    return config.lookup(&key);
}

BPF_CGROUP_ARRAY(watched_cgroup, 1);

/* Whether violations of the current task are counted and reported. */
static __always_inline bool is_watched(struct config *config)
{
    return !config->one_cgroup || watched_cgroup.check_current_task(0) == 1;
}

/* A service's first workloads, which have a place while others find none. */
#define SERVICE_WORKLOADS 4

/*
 * Whether the current cgroup may have a place. Whoever owns a delegated cgroup makes as many below
 * it as they like: all of a subtree have a quota together, and the last places are for the first
 * workloads of each service in system.slice. Two CPUs may look at the same time: a place too many.
 */
static __always_inline bool has_workload_quota(struct config *config, struct workload_quota *own,
                                               struct workload_quota *all)
{
    u64 held = own->taken - own->given_back, of_all = all->taken - all->given_back;

    if (held >= config->subtree_workloads || of_all >= config->workloads_max)
        return false;
    if (of_all < config->ordinary_workloads)
        return true;
    return held < SERVICE_WORKLOADS && config->system_slice &&
           bpf_get_current_ancestor_cgroup_id(1) == config->system_slice;
}

static __always_inline struct workload *new_workload(u64 cgroup_id)
{
    struct config *config = configuration();
    struct workload none = {};
    struct workload_quota *own, *all;
    u32 place = 0;

    if (!config)
        return NULL;
    none.quota = 1 + mix(config->hash_seed, cgroup_subtree()) % (WORKLOAD_QUOTAS - 1);
    all = workload_quotas.lookup(&place);
    place = none.quota;
    own = workload_quotas.lookup(&place);
    if (!own || !all || !has_workload_quota(config, own, all))
        return NULL;
    if (!workloads.insert(&cgroup_id, &none)) {
        COUNT(own->taken);
        COUNT(all->taken);
    }
    return workloads.lookup(&cgroup_id);
}

/* Denials by cgroup. One that finds no place is counted under "other", never lost. */
static __always_inline void count_workload(struct counters *count, u32 verdict)
{
    u64 cgroup_id = bpf_get_current_cgroup_id();
    struct workload *workload = workloads.lookup(&cgroup_id);

    if (!workload)
        workload = new_workload(cgroup_id);
    if (workload)
        COUNT(workload->denials[verdict]);
    else
        COUNT(count->other_workloads[verdict]);
}

#endif
