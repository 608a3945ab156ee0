"""The reviewed list of the kernel's system calls: what each can do to a sealed mapping.

A seal guards mappings against calls that are known today. A kernel may bring a new one, so each
call of Linux up to 7.3 on x86-64 and arm64 was reviewed and put into a group below. `unreviewed()`
names the calls of a kernel that nobody has reviewed. Names are the kernel's own (__x64_sys_NAME);
some differ from those of the man pages (uname is newuname).

A call is reviewed with the options that it has today. A new option of prctl or ioctl is in no list,
so this does not find it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from monitor.kernel.operations import OPERATIONS

__all__ = ["REVIEWED", "Effect", "Review", "calls", "unreviewed"]


class Effect(Enum):
    """What a call can do to a sealed mapping, or to the bytes in it."""

    WATCHED = "watched"
    HIDDEN = "hidden refusal"  # the seal holds; only the function that unmaps shows it
    BYPASS = "way around"  # the bytes change without a refusal
    ENDS = "ends the address space"  # and its seals with it
    NONE = "cannot change a mapping"


class Review(NamedTuple):
    effect: Effect
    why: str


_GROUPS: tuple[tuple[Effect, str, str], ...] = (
    # Among these, brk, shmdt and process_madvise hide refusals. They are judged by what they return
    # and by what is still mapped.
    (
        Effect.WATCHED,
        "its refusal is counted and proved",
        " ".join(operation.name for operation in OPERATIONS if operation.number is not None),
    ),
    (Effect.WATCHED, "seals, and is never refused by a seal", "mseal"),
    (Effect.WATCHED, "mmap of 32-bit callers", "mmap_pgoff"),
    (Effect.WATCHED, "shmat and shmdt of 32-bit callers", "ipc"),
    # ---- The kernel unmaps on its own account, and drops the refusal ----------------------------
    (
        Effect.HIDDEN,
        "unmaps what lies where the ring of io_setup was mapped, and returns 0 if that is sealed",
        "io_destroy",
    ),
    (
        Effect.HIDDEN,
        "a sealed shadow stack stays mapped when it is given up",
        "arch_prctl exit",
    ),
    (
        Effect.HIDDEN,
        "closes the last descriptor of a KVM machine, which unmaps the pages that KVM mapped",
        "close close_range dup2 dup3",
    ),
    (
        Effect.HIDDEN,
        "maps a library of 32-bit callers, and clears the room for its bss",
        "uselib",
    ),
    # ---- Bytes change, the mapping does not -----------------------------------------------------
    (
        Effect.BYPASS,
        "pokes into another process, past every protection",
        "ptrace",
    ),
    (
        Effect.BYPASS,
        "writes to the file that is mapped, or through /proc/PID/mem past every protection",
        """
        copy_file_range ia32_pwrite64 io_submit pwrite64 pwritev pwritev2 sendfile sendfile64
        splice write writev
        """,
    ),
    (
        Effect.BYPASS,
        "cuts the file that is mapped: its pages go, and with them the private copies",
        """
        creat ftruncate ia32_ftruncate64 ia32_truncate64 open open_by_handle_at openat openat2
        truncate
        """,
    ),
    (
        Effect.BYPASS,
        "punches holes into the file that is mapped",
        "fallocate ia32_fallocate",
    ),
    (
        Effect.BYPASS,
        "does what write, ftruncate and fallocate do; its madvise is watched by itself",
        "io_uring_enter",
    ),
    (
        Effect.BYPASS,
        "userfaultfd fills missing pages and moves pages out; file systems share extents; "
        "drivers replace the pages of their own mappings",
        "ioctl userfaultfd",
    ),
    (
        Effect.BYPASS,
        "puts uprobes into code, and BPF programs write to user memory",
        "bpf perf_event_open",
    ),
    (
        Effect.BYPASS,
        "TCP_ZEROCOPY_RECEIVE replaces the pages of a socket's mapping",
        "getsockopt",
    ),
    (
        Effect.BYPASS,
        "brings code into the kernel, which may do anything",
        "finit_module init_module",
    ),
    # ---- The end of all mappings ----------------------------------------------------------------
    (
        Effect.ENDS,
        "a new program, or none: seals last until then",
        "execve execveat exit_group",
    ),
    (
        Effect.ENDS,
        "ends processes, or takes the memory of one that is dying",
        """
        kill pidfd_send_signal process_mrelease rt_sigqueueinfo rt_tgsigqueueinfo tgkill tkill
        """,
    ),
    (
        Effect.ENDS,
        "ends the kernel",
        "kexec_file_load kexec_load reboot",
    ),
    # ---- All others -----------------------------------------------------------------------------
    (
        Effect.NONE,
        "maps at addresses that are free, and undoes only that",
        "io_setup map_shadow_stack uprobe",
    ),
    (
        Effect.NONE,
        "the child gets copies of mappings and seals, or shares them",
        "clone clone3 fork unshare vfork",
    ),
    (
        Effect.NONE,
        "moves pages or says where they should be; the bytes stay",
        """
        get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node
        """,
    ),
    (
        Effect.NONE,
        "keeps pages in memory, writes them back or counts them",
        """
        cachestat fadvise64 fadvise64_64 fdatasync fsync ia32_fadvise64 ia32_fadvise64_64
        ia32_readahead ia32_sync_file_range membarrier mincore mlock mlock2 mlockall msync munlock
        munlockall readahead swapoff swapon sync sync_file_range sync_file_range2 syncfs
        """,
    ),
    (
        Effect.NONE,
        "changes the rights of a thread to a key, as an instruction also can",
        "pkey_alloc pkey_free",
    ),
    (
        Effect.NONE,
        "names mappings and notes where a program's parts are; moves nothing",
        "arm64_personality personality prctl",
    ),
    (
        Effect.NONE,
        "segments last while they are attached",
        "shmctl shmget",
    ),
    (
        Effect.NONE,
        "maps its table, which is not one of the process's mappings",
        "get_thread_area modify_ldt set_thread_area",
    ),
    (
        Effect.NONE,
        "writes bytes only where the process, or the one written to, may write itself",
        """
        getrandom ia32_pread64 io_cancel io_getevents io_getevents_time32 io_pgetevents
        io_pgetevents_time32 io_uring_register io_uring_setup pread64 preadv preadv2
        process_vm_readv process_vm_writev read readv tee vmsplice
        """,
    ),
    (
        Effect.NONE,
        "waits, and writes a word where the process may write itself",
        """
        futex futex_requeue futex_time32 futex_wait futex_waitv futex_wake get_robust_list rseq
        rseq_slice_yield set_robust_list set_tid_address
        """,
    ),
    (
        Effect.NONE,
        "sockets",
        """
        accept accept4 bind connect getpeername getsockname listen recv recvfrom recvmmsg
        recvmmsg_time32 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socket socketcall
        socketpair
        """,
    ),
    (
        Effect.NONE,
        "messages, semaphores and pipes",
        """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time32 mq_timedsend
        mq_timedsend_time32 mq_unlink msgctl msgget msgrcv msgsnd old_msgctl old_semctl old_shmctl
        pipe pipe2 semctl semget semop semtimedop semtimedop_time32
        """,
    ),
    (
        Effect.NONE,
        "signals: their handling, and returning from it",
        """
        pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend
        rt_sigtimedwait rt_sigtimedwait_time32 sgetmask sigaltstack signal signalfd signalfd4
        sigpending sigprocmask sigsuspend ssetmask uretprobe
        """,
    ),
    (
        Effect.NONE,
        "clocks and timers",
        """
        adjtimex adjtimex_time32 alarm clock_adjtime clock_adjtime32 clock_getres
        clock_getres_time32 clock_gettime clock_gettime32 clock_nanosleep clock_nanosleep_time32
        clock_settime clock_settime32 getitimer gettimeofday nanosleep nanosleep_time32 setitimer
        settimeofday stime stime32 time time32 timer_create timer_delete timer_getoverrun
        timer_gettime timer_gettime32 timer_settime timer_settime32 timerfd_create timerfd_gettime
        timerfd_gettime32 timerfd_settime timerfd_settime32 times
        """,
    ),
    (
        Effect.NONE,
        "waits for descriptors and processes",
        """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
        poll ppoll ppoll_time32 pselect6 pselect6_time32 select wait4 waitid waitpid
        """,
    ),
    (
        Effect.NONE,
        "scheduling and limits",
        """
        getpriority getrlimit getrusage ioprio_get ioprio_set nice old_getrlimit prlimit64
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
        sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time32
        sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield setpriority
        setrlimit
        """,
    ),
    (
        Effect.NONE,
        "who a process is and what it may do",
        """
        add_key capget capset getcpu getegid getegid16 geteuid geteuid16 getgid getgid16 getgroups
        getgroups16 getpgid getpgrp getpid getppid getresgid getresgid16 getresuid getresuid16
        getsid gettid getuid getuid16 ioperm iopl kcmp keyctl landlock_add_rule
        landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr pidfd_getfd pidfd_open request_key seccomp setfsgid setfsgid16 setfsuid
        setfsuid16 setgid setgid16 setgroups setgroups16 setns setpgid setregid setregid16
        setresgid setresgid16 setresuid setresuid16 setreuid setreuid16 setsid setuid setuid16
        """,
    ),
    (
        Effect.NONE,
        "descriptors, names and attributes of files; not what is in them",
        """
        access chdir chmod chown chown16 dup faccessat faccessat2 fchdir fchmod fchmodat fchmodat2
        fchown fchown16 fchownat fcntl fgetxattr file_getattr file_setattr flistxattr flock
        fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat futimesat_time32
        getcwd getdents getdents64 getxattr getxattrat lchown lchown16 lgetxattr link linkat
        listxattr listxattrat llistxattr llseek lremovexattr lseek lsetxattr lstat lstat64
        memfd_create memfd_secret mkdir mkdirat mknod mknodat name_to_handle_at newfstat newfstatat
        newlstat newstat old_readdir readlink readlinkat removexattr removexattrat rename renameat
        renameat2 rmdir setxattr setxattrat stat stat64 statfs statfs64 statx symlink symlinkat
        umask unlink unlinkat ustat utime utime32 utimensat utimensat_time32 utimes utimes_time32
        """,
    ),
    (
        Effect.NONE,
        "reads and sets registers of devices, on other processors",
        "pciconfig_read pciconfig_write",
    ),
    (
        Effect.NONE,
        "reports changes of files",
        "fanotify_init fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch",
    ),
    (
        Effect.NONE,
        "mounts and roots; a mapping keeps its file",
        """
        chroot fchroot fsconfig fsmount fsopen fspick listmount listns mount mount_setattr
        move_mount oldumount open_tree open_tree_attr pivot_root quotactl quotactl_fd statmount
        umount
        """,
    ),
    (
        Effect.NONE,
        "the system as a whole",
        """
        acct delete_module gethostname newuname olduname setdomainname sethostname sysfs sysinfo
        syslog uname vhangup
        """,
    ),
    (
        Effect.NONE,
        "no call, or none of 64-bit kernels",
        "ni_syscall vm86 vm86old",
    ),
)

REVIEWED: Mapping[str, Review] = {
    name: Review(effect, why) for effect, why, names in _GROUPS for name in names.split()
}


def calls(effect: Effect) -> list[str]:
    """The reviewed calls with this effect, sorted."""
    return sorted(name for name, review in REVIEWED.items() if review.effect is effect)


def unreviewed(names: Iterable[str]) -> list[str]:
    """The calls among `names` that nobody has reviewed, sorted."""
    return sorted(set(names) - REVIEWED.keys())
