/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything that BPF programs and Python share. monitor/kernel/abi.py mirrors this file; a test
 * compares every size, offset and enumerator, so a change here fails until both sides agree.
 */
#ifndef SEAL_MONITOR_ABI_H
#define SEAL_MONITOR_ABI_H

#include "definitions.h"

#define ABI_VERSION 1

enum kind { KIND_DENIAL, KIND_FAULT, KIND_SEAL, KIND_BYPASS, KINDS };

enum verdict { VERDICT_SEALED, VERDICT_NOT_SEALED, VERDICT_UNVERIFIED, VERDICTS };

/* Why a denial stays unverified. */
enum reason {
    REASON_NONE,
    REASON_RANGE_TOO_LONG,    /* more mappings in the range than LOOKUP_LIMIT */
    REASON_SECCOMP,           /* a filter may have refused this call before the kernel looked */
    REASON_UNKNOWN_LENGTH,    /* the range could not be read back */
    REASON_OTHER_PROCESS,     /* process_madvise on memory that is not the caller's */
    REASON_CHANGED_MEANWHILE, /* the mappings changed under every attempt to read them */
    REASON_OTHER_CAUSE,       /* a seal is in the range, and so is an earlier reason to refuse */
    REASON_LATE_SECCOMP,      /* the same filter, put there after the process had sealed */
    REASON_TRACED,            /* a tracer answers the calls: the kernel may not have run this one */
    REASONS,
};

/* Which argument of the call led to the sealed mapping. */
enum role { ROLE_RANGE, ROLE_SOURCE, ROLE_DESTINATION, ROLES };

enum cause {
    CAUSE_GUARD_REGION,
    CAUSE_PROT_NONE,
    CAUSE_STACK_GUARD,
    CAUSE_SEALED,
    CAUSE_PKEY,
    CAUSE_OTHER,
    CAUSES,
};

enum disposition {
    DISPOSITION_DEFAULT,
    DISPOSITION_HANDLER,
    DISPOSITION_HANDLER_FAILED, /* second delivery of a fault whose handler's frame did not fit */
    DISPOSITION_HANDLER_ENDED,  /* its handler was called, and the process ended there */
    DISPOSITIONS,
};

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_EXECUTE, ACCESSES };

/* How sealed memory was changed around its seal. */
enum method {
    METHOD_MADVISE_DISCARD,
    METHOD_PTRACE_POKE,
    METHOD_PROC_MEM_WRITE,
    METHOD_USERFAULTFD_COPY,
    METHOD_USERFAULTFD_MOVE,
    METHOD_GUARD_REMOVE,
    METHODS,
};

/* What became of the event of a counted violation, as far as the kernel side decides it. */
enum outcome { OUTCOME_SUBMITTED, OUTCOME_SUPPRESSED, OUTCOME_FILTERED, OUTCOME_DROPPED, OUTCOMES };

#define RECORD_CANARY 1u   /* a violation of our own canary: in no public count */
#define RECORD_COMPAT 2u   /* 32-bit system call */
#define RECORD_HIDDEN 4u   /* the call returned no error */
#define RECORD_INFERRED 8u /* another explanation of the fault cannot be excluded */
#define RECORD_SEALER 16u  /* no event: a program that seals, to be looked up */

#define TASK_NAME_SIZE 16
#define FILE_NAME_SIZE 64
#define MAPPING_NAME_SIZE 48
#define STACK_FRAMES 16 /* powers of two: an index is masked, not compared */
#define STACK_MODULES 8
#define NO_MODULE 0xff
#define BUILD_ID_SIZE 20
#define MODULE_FILE_SIZE 30

struct mapping {
    u64 start;
    u64 end;
    u64 flags; /* vm_flags */
    u64 page_offset;
    u64 inode;
    u32 device; /* kernel dev_t: major << 20 | minor */
    u32 reserved;
    char file[FILE_NAME_SIZE];    /* base name of the mapped file */
    char name[MAPPING_NAME_SIZE]; /* PR_SET_VMA_ANON_NAME */
};

/* A file whose code is in a stack. */
struct module {
    u64 base; /* where the file's offset 0 would be mapped */
    u64 inode;
    u32 device;
    u8 build_id_size; /* 0: none was found */
    u8 build_id[BUILD_ID_SIZE];
    u8 is_roots;                 /* the file belongs to root, of the initial user namespace */
    char file[MODULE_FILE_SIZE]; /* base name */
};

struct stack {
    u64 addresses[STACK_FRAMES]; /* innermost first; all but the first are return addresses */
    u8 modules[STACK_FRAMES];    /* of each frame, NO_MODULE: no file, or one too many */
    u8 depth;                    /* frames in use */
    u8 module_count;
    u8 complete; /* the walk came to the outermost frame */
    u8 reserved[5];
    struct module module[STACK_MODULES];
};

/*
 * The program that a process runs, from one exec to the next: its file, by inode number and by the
 * mount that it was opened through, and two addresses that exec chooses. All of it can be compared
 * with what /proc shows later; 0: not known.
 */
struct image {
    u64 inode;
    u64 mount; /* as statx(2) has it, STATX_MNT_ID_UNIQUE */
    u64 start_code;
    u64 start_stack;
};

/* Whose sealed memory was changed: the process that did it, or another one. */
struct bypass {
    u64 start_boot_ns;
    struct image image;
    u32 pid; /* as the monitor sees it */
    u8 method;
    u8 reserved[3];
    char task_name[TASK_NAME_SIZE];
    char executable[FILE_NAME_SIZE]; /* base name */
};

/* One violation, or one successful mseal. Fixed size: the ring is read in bulk. */
struct record {
    u64 time_boot_ns;
    u64 start_boot_ns; /* of the process */
    u64 cgroup_id;
    struct image image;
    u32 pid;
    u32 tid;
    u32 parent_pid;
    u32 vpid; /* pid in the process's own namespace; the others are as the monitor sees them */
    u32 uid;
    u32 gid;
    u32 flags; /* RECORD_* */
    u8 kind;
    u8 operation;
    u8 verdict;
    u8 reason;
    u8 role;
    u8 cause;
    u8 disposition;
    u8 access;
    u32 error_code;  /* faults: the processor's code, error code or ESR */
    s32 signal_code; /* faults: si_code */
    u32 pkey;        /* faults: si_pkey */
    s64 result;      /* what the system call returned */
    u64 arguments[6];
    u64 instruction_pointer;
    u64 stack_pointer;
    u64 caller;  /* return address of the system-call wrapper, else instruction_pointer */
    u64 address; /* faults: si_addr; all others: start of the range in question */
    u64 length;
    u64 partial_start; /* changed although the call failed; empty when start == end */
    u64 partial_end;
    struct mapping mapping; /* all zero without a mapping */
    char task_name[TASK_NAME_SIZE];
    char executable[FILE_NAME_SIZE]; /* base name */
    struct bypass bypass;
    struct stack stack;
};

/* Exact counts. One element per CPU and bank in an mmapable array; Python adds the CPUs up. */
enum bank { BANK_HOST, BANK_CANARY, BANK_ANNOUNCED, BANKS };

struct counters {
    u64 denials[OPERATIONS][VERDICTS];
    u64 partial_updates[OPERATIONS];
    u64 faults[CAUSES][DISPOSITIONS];
    u64 bypasses[METHODS];
    u64 seals;
    u64 sealed_bytes;
    u64 events[KINDS][OUTCOMES];
    u64 unverified[REASONS];
    u64 other_workloads[VERDICTS]; /* denials in cgroups that found no place in `workloads` */
};

struct workload {
    u64 denials[VERDICTS];
    u64 quota; /* its place in `workload_quotas` */
};
#define WORKLOADS_MAX 65536 /* the most that can be configured */

/* Workloads of the cgroup subtrees whose hash is the same; at place 0 those of all. */
#define WORKLOAD_QUOTAS (4 * 1024)
struct workload_quota {
    u64 taken;      /* by the programs */
    u64 given_back; /* by the daemon */
};

/* Rate limit: one bucket per process, operation or cause, and caller. */
struct bucket_key {
    u64 start_boot_ns;
    u64 caller;
    u32 pid;
    u8 kind;
    u8 what; /* operation, cause or method */
    u16 reserved;
};

struct bucket {
    u64 arrival; /* theoretical arrival time of the next event, boot ns (GCRA) */
    u64 suppressed;
    u64 first_suppressed_ns;
    u64 last_suppressed_ns;
    u64 last_used_ns;
    u64 cgroup_id;
    char task_name[TASK_NAME_SIZE];
};

/*
 * Buckets that are always there. For each kind: the whole host's, and the one that keys without a
 * place share, so that a flood of one kind, such as of faults that a program handles itself, holds
 * back no event of another. One that stays empty: new buckets are copies of it, as the BPF stack
 * has no room for one. And that of the programs that seal.
 */
enum shared_bucket {
    SHARED_HOST,
    SHARED_OVERFLOW = SHARED_HOST + KINDS,
    SHARED_EMPTY = SHARED_OVERFLOW + KINDS,
    SHARED_SEALERS,
    SHARED_BUCKETS
};

/* Places in `shares`, of each kind: those of processes, and after them those of owners. */
#define PROCESS_SHARES 512
#define OWNER_SHARES 1024
#define SHARES_OF_KIND (PROCESS_SHARES + OWNER_SHARES)

/*
 * Trials of our own that were announced to the daemon: processes, each with its children, and the
 * cgroups of commands, which are in `announced_cgroups`.
 */
#define ANNOUNCED_PROCESSES 8
#define ANNOUNCED_CGROUPS 8

struct announced_process {
    u64 start_ticks; /* as in /proc/PID/stat */
    u32 pid;         /* 0: none */
    u32 reserved;
};

/* Written by the daemon alone: what calibration found and what the configuration asks for. */
struct config {
    u64 canary_start_ticks; /* as in /proc/PID/stat */
    u32 canary_pid;         /* 0: none is running */
    u32 announced; /* bit per process, then bit per cgroup; read together with canary_pid */
    struct announced_process announced_processes[ANNOUNCED_PROCESSES];
    u32 pid_namespace;    /* the monitor's own: inode number of /proc/self/ns/pid */
    u32 workloads_max;    /* at most, of all cgroups */
    u64 sealed_mask;      /* VM_SEALED; 0 until calibrated */
    u64 maybe_guard_mask; /* VM_MAYBE_GUARD; 0 where the kernel has none */
    u64 mmap_min_addr;
    u64 event_interval_ns; /* per bucket: 1 s / rate */
    u64 event_burst_ns;    /* per bucket: burst * interval */
    u64 host_interval_ns;
    u64 host_burst_ns;
    u64 ordinary_ring;      /* bytes that may wait in the ring; beyond, it is for early events */
    u64 hash_seed;          /* another one in each run: nobody can choose whose hash is the same */
    u64 system_slice;       /* cgroup id of system.slice; 0: there is none */
    u32 subtree_workloads;  /* at most, of a cgroup subtree */
    u32 ordinary_workloads; /* from there on, places are for system.slice alone */
    u32 emit_verdicts;      /* bit per verdict */
    u16 emit_causes;        /* bit per cause */
    u16 emit_handled;       /* the same of faults that went to a handler */
    u8 emit_seals;
    u8 partial_mprotect;
    u8 partial_madvise;
    u8 partial_mremap;
    u8 anonymous_by_ops; /* madvise: anonymous means vm_ops == NULL, else no file and not shared */
    u8 raw_pokes;        /* not 0: raw_exit reports what ptrace wrote */
    u8 compat_pokes;     /* the same of 32-bit callers, raw_exit or raw_exit_compat */
    u8 guard_files;      /* MADV_GUARD_INSTALL takes mappings of files, too */
    /* Bit per operation: who reports it, so that nothing is reported twice. */
    u32 raw_operations;      /* raw_exit */
    u32 compat_operations;   /* raw_exit or raw_exit_compat, for 32-bit callers */
    u32 function_operations; /* the functions in which a seal refuses */
    u32 raw_mseal;           /* not 0: raw_exit reports mseal, too */
    u32 compat_mseal;        /* the same of 32-bit callers, raw_exit or raw_exit_compat */
    u32 one_cgroup;          /* not 0: whoever is not in or below watched_cgroup is not looked at */
};

#endif
