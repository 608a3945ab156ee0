/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bcc has built in, as far as it is used here. bcc never reads this file: an editor does
 * (../compile_flags.txt), and the test that every file is complete. The members of a table are
 * functions for both; bcc rewrites their calls.
 */
#ifndef SEAL_MONITOR_BCC_H
#define SEAL_MONITOR_BCC_H

#include <linux/types.h>

#define BPF_F_TABLE(kind, key_type, value_type, name, entries, flags)                              \
    extern struct {                                                                                \
        value_type *(*lookup)(key_type *);                                                         \
        int (*update)(key_type *, value_type *);                                                   \
        int (*insert)(key_type *, value_type *); /* fails where the key is there */                \
        int (*delete)(key_type *);                                                                 \
    } name
#define BPF_TABLE(kind, key_type, value_type, name, entries)                                       \
    BPF_F_TABLE(kind, key_type, value_type, name, entries, 0)
#define BPF_F_NO_PREALLOC 1
#define BPF_F_MMAPABLE 1024

#define BPF_PROG_ARRAY(name, entries)                                                              \
    extern struct {                                                                                \
        void (*call)(void *ctx, int index); /* returns only where it fails */                      \
    } name

#define BPF_CGROUP_ARRAY(name, entries)                                                            \
    extern struct {                                                                                \
        int (*check_current_task)(int index);                                                      \
    } name

#define BPF_RINGBUF_OUTPUT(name, pages)                                                            \
    extern struct {                                                                                \
        void *(*ringbuf_reserve)(u64 size);                                                        \
        void (*ringbuf_submit)(void *data, u64 flags);                                             \
    } name

struct task_struct;
struct bpf_raw_tracepoint_args {
    u64 args[0];
};

/* bpf-helpers(7) */
u32 bpf_get_smp_processor_id(void);
u64 bpf_jiffies64(void);
u64 bpf_ktime_get_boot_ns(void);
u64 bpf_get_current_cgroup_id(void);
u64 bpf_get_current_ancestor_cgroup_id(int level);
u64 bpf_get_current_pid_tgid(void);
u64 bpf_get_current_uid_gid(void);
int bpf_get_current_comm(void *destination, int size);
struct task_struct *bpf_get_current_task_btf(void);
long bpf_task_pt_regs(struct task_struct *task);
int bpf_probe_read_user(void *destination, u32 size, const void *source);
int bpf_probe_read_kernel_str(void *destination, u32 size, const void *source);

#endif
