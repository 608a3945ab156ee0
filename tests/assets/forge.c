/*
 * forge WHAT COUNT [--wait]: an ordinary user's attempts to have something counted that did not
 * happen, or to have what did happen taken for less. See `ways` at the end. Prints what the process
 * itself saw.
 */
#define _GNU_SOURCE
#include "asset.h"
#include "processor.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define SENDERS 4

static siginfo_t first;
static atomic_ulong handled;
static sigjmp_buf resume;
static char *page;

static void on_fault(int number, siginfo_t *information, void *context)
{
    (void)number;
    (void)context;
    if (atomic_fetch_add(&handled, 1))
        return;
    first = *information;
    siglongjmp(resume, 1);
}

/* One real fault, whose siginfo is kept. */
static void fault_once(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

    page = sealed_page();
    if (sigaction(SIGSEGV, &action, NULL))
        fail("sigaction");
    if (!sigsetjmp(resume, 1))
        *(volatile char *)page = 1;
}

/* The same call by 32-bit code, with a siginfo that lies low enough; by 64-bit code where a program
 * cannot have both. A kernel without 32-bit calls refuses it by a SIGSEGV of its own. */
static long queue_as_32_bit(void)
{
    static int *low;

    if (!HAS_32_BIT_CALLS)
        return syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGSEGV, &first);
    if (!low) {
        low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | LOW, -1, 0);
        if (low == MAP_FAILED)
            fail("mmap");
        low[0] = SIGSEGV;
        low[2] = first.si_code;
        low[3] = (int)(uintptr_t)first.si_addr;
    }
    queue_by_32_bits(getpid(), gettid(), SIGSEGV, low);
    return 0;
}

static long queue_one(unsigned long number)
{
    static int pidfd = -1;

    switch (number % SENDERS) {
    case 0:
        return syscall(SYS_rt_sigqueueinfo, getpid(), SIGSEGV, &first);
    case 1:
        if (pidfd < 0)
            pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
        return syscall(SYS_pidfd_send_signal, pidfd, SIGSEGV, &first, 0);
    case 2:
        return queue_as_32_bit();
    }
    return syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGSEGV, &first);
}

static void queue_copies(unsigned long count)
{
    fault_once();
    for (unsigned long n = 0; n < count; n++)
        if (queue_one(n))
            fail("queue");
}

/* With what the processor said of the parent's fault: fork copies it. */
static void queue_copies_in_child(unsigned long count)
{
    pid_t child;

    fault_once();
    child = fork();
    if (!child) {
        for (unsigned long n = 0; n < count; n++)
            syscall(SYS_rt_sigqueueinfo, getpid(), SIGSEGV, &first);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static atomic_bool is_done;
static atomic_bool is_ready;

/* In no system call when the signals come to it. */
static void *take_signals(void *unused)
{
    (void)unused;
    fault_once();
    is_ready = true;
    while (!is_done)
        ;
    return NULL;
}

/* To the group, of which only another thread takes the signal: one that has really faulted. */
static void queue_copies_to_thread(unsigned long count)
{
    pthread_t thread;
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGSEGV);
    if (pthread_create(&thread, NULL, take_signals, NULL))
        fail("pthread_create");
    while (!is_ready)
        ;
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    for (unsigned long n = 0; n < count; n++) {
        unsigned long seen = handled;

        if (syscall(SYS_rt_sigqueueinfo, getpid(), SIGSEGV, &first))
            fail("rt_sigqueueinfo");
        while (handled == seen)
            ;
    }
    is_done = true;
    pthread_join(thread, NULL);
}

/* A handler's frame that does not fit, at the end of a system call: the kernel's own SIGSEGV. */
static void lose_stack(unsigned long count)
{
    for (unsigned long n = 0; n < count; n++) {
        pid_t child = fork();

        if (!child) {
            struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};

            sigaction(SIGUSR1, &action, NULL);
            page = sealed_page();
            call_on_stack(SYS_kill, getpid(), SIGUSR1, page + PAGE);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
}

static pid_t traced(void (*run)(unsigned long), unsigned long count)
{
    pid_t child = fork();

    if (!child) {
        page = sealed_page();
        if (ptrace(PTRACE_TRACEME, 0, 0, 0))
            fail("ptrace");
        raise(SIGSTOP);
        run(count);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    return child;
}

static void write_to_page(unsigned long count)
{
    for (unsigned long n = 0; n < count; n++)
        store_byte(page);
}

/* A tracer keeps the signals of real faults back. */
static void swallow(unsigned long count)
{
    struct user_regs_struct registers;
    pid_t child = traced(write_to_page, count);
    int status;

    ptrace(PTRACE_CONT, child, 0, 0);
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        if (WSTOPSIG(status) == SIGSEGV) {
            handled++;
            get_registers(child, &registers);
            registers.PROGRAM_COUNTER += STORE_SIZE;
            set_registers(child, &registers);
        }
        ptrace(PTRACE_CONT, child, 0, 0);
    }
}

static void unmap_page(unsigned long count)
{
    for (unsigned long n = 0; n < count; n++)
        syscall(SYS_munmap, page, PAGE);
    syscall(SYS_getppid);
}

/* A tracer answers the calls itself: the kernel never runs them. */
static void emulate(unsigned long count)
{
    struct user_regs_struct registers;
    pid_t child = traced(unmap_page, count);
    int status;

    ptrace(PTRACE_SYSEMU, child, 0, 0);
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        get_registers(child, &registers);
        if (registers.CALL_NUMBER == SYS_getppid)
            break;
        registers.CALL_RESULT = (unsigned long)-EPERM;
        handled += registers.CALL_NUMBER == SYS_munmap;
        set_registers(child, &registers);
        ptrace(PTRACE_SYSEMU, child, 0, 0);
    }
    ptrace(PTRACE_DETACH, child, 0, 0);
    waitpid(child, NULL, 0);
}

/* The third argument, of which the kernel takes no notice, is for the tracer. */
static void unmap_nothing(unsigned long count)
{
    for (unsigned long n = 0; n < count; n++)
        syscall(SYS_munmap, 0, PAGE, page);
}

/* A tracer changes what the call is about, and the kernel runs it. */
static void divert(unsigned long count)
{
    struct user_regs_struct registers;
    pid_t child = traced(unmap_nothing, count);
    int status;

    ptrace(PTRACE_SYSCALL, child, 0, 0);
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        get_registers(child, &registers);
        if (registers.CALL_NUMBER == SYS_munmap && !registers.FIRST_ARGUMENT) {
            registers.FIRST_ARGUMENT = registers.THIRD_ARGUMENT;
            set_registers(child, &registers);
            handled++;
        }
        ptrace(PTRACE_SYSCALL, child, 0, 0);
    }
}

/* Lets everything pass, but only after a look at an argument: it may have refused any call. */
static void filter(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(*code), code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        fail("seccomp");
}

static void open_page(unsigned long count)
{
    for (unsigned long n = 0; n < count; n++)
        handled += mprotect(page, PAGE, PROT_READ | PROT_WRITE) && errno == EPERM;
}

static void filter_then_open(unsigned long count)
{
    page = sealed_page();
    filter();
    open_page(count);
}

/* The filter was there before the first seal. */
static void open_filtered(unsigned long count)
{
    filter();
    page = sealed_page();
    open_page(count);
}

/* One sealed page behind so many mappings, of which no two can be merged. */
static void open_behind(unsigned long count)
{
    char *pages = fenced_pages(count + 1);

    for (unsigned long n = 0; n < count; n += 2)
        if (mprotect(pages + n * PAGE, PAGE, PROT_READ))
            fail("mprotect");
    page = pages + count * PAGE;
    if (mprotect(page, PAGE, PROT_NONE) || mseal_range(page, PAGE))
        fail("mseal");
    handled += munmap(pages, (count + 1) * PAGE) && errno == EPERM;
}

/* free() of a block that is sealed: the C library unmaps it. */
static void free_sealed(unsigned long count)
{
    mallopt(M_MMAP_THRESHOLD, 16 * PAGE); /* else free() raises it */
    for (unsigned long n = 0; n < count; n++) {
        char *block = malloc(256 * PAGE);

        if (mseal_range(block - (uintptr_t)block % PAGE, 64 * PAGE))
            fail("mseal");
        free(block);
    }
}

static void *libc_address; /* what a call in the C library returns to */

/* The program's own call, which looks as if the C library had called it. */
static void unmap_as_libc(unsigned long count)
{
    page = sealed_page();
    for (unsigned long n = 0; n < count; n++)
        call_returning_to(SYS_munmap, (long)page, (long)PAGE, libc_address);
}

static void *map_and_unmap(void *unused)
{
    (void)unused;
    while (!is_done) {
        if (mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) != page)
            fail("mmap");
        munmap(page, PAGE);
    }
    return NULL;
}

static void on_hole(int number)
{
    (void)number;
    handled++;
    siglongjmp(resume, 1);
}

/* Writes into a hole that another thread maps and unmaps meanwhile: no guard region anywhere. */
static void churn(unsigned long count)
{
    struct sigaction action = {.sa_handler = on_hole, .sa_flags = SA_NODEFER};
    pthread_t thread;

    page = fenced_pages(3) + PAGE;
    if (sigaction(SIGSEGV, &action, NULL) || pthread_create(&thread, NULL, map_and_unmap, NULL))
        fail("start");
    while (handled < count)
        if (!sigsetjmp(resume, 0))
            *(volatile char *)page = 1;
    is_done = true;
    pthread_join(thread, NULL);
}

static const struct {
    const char *name;
    void (*run)(unsigned long count);
} ways[] = {
    {"queued", queue_copies},
    {"queued_in_child", queue_copies_in_child},
    {"queued_to_thread", queue_copies_to_thread},
    {"lost_stack", lose_stack},
    {"swallowed", swallow},
    {"emulated", emulate},
    {"diverted", divert},
    {"late_filter", filter_then_open},
    {"early_filter", open_filtered},
    {"behind", open_behind},
    {"churn", churn},
    {"freed", free_sealed},
    {"as_libc", unmap_as_libc},
};

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: forge WHAT COUNT [--wait]\n");
        return 2;
    }
    wait_if_asked(argc, argv);
    libc_address = __builtin_return_address(0);
    for (size_t n = 0; n < sizeof(ways) / sizeof(*ways); n++)
        if (!strcmp(argv[1], ways[n].name)) {
            ways[n].run(strtoul(argv[2], NULL, 10));
            printf("{\"seen\": %lu}\n", atomic_load(&handled));
            return 0;
        }
    fprintf(stderr, "forge: no such way: %s\n", argv[1]);
    return 2;
}
