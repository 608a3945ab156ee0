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

BPF_F_TABLE("array", u32, struct counters, counters, BANKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct config, config, 1, BPF_F_MMAPABLE);
BPF_TABLE("hash", u64, struct workload, workloads, WORKLOADS_MAX);

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

/* Denials by cgroup. One that finds no place is counted under "other", never lost. */
static __always_inline void count_workload(struct counters *count, u32 verdict)
{
    u64 cgroup_id = bpf_get_current_cgroup_id();
    struct workload *workload = workloads.lookup(&cgroup_id);

    if (!workload) {
        struct workload none = {};

        workloads.insert(&cgroup_id, &none);
        workload = workloads.lookup(&cgroup_id);
    }
    if (workload)
        COUNT(workload->denials[verdict]);
    else
        COUNT(count->other_workloads[verdict]);
}

#endif
