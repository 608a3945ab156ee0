/*
 * Refusals, faults and bypasses of two methods from THREADS threads, until it is asked to end; then
 * it prints how many of each it made: refused mprotects, writes to a guard region, discards of
 * sealed pages, and words that a debugger wrote to them.
 *
 *     kept_storm MICROSECONDS      from one to the next, of each thread
 */
#define _GNU_SOURCE
#include "asset.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define THREADS 8
#define MADV_GUARD 102

static volatile sig_atomic_t ending;
static useconds_t pause_us;
static __thread sigjmp_buf back;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

static void on_end(int number)
{
    (void)number;
    ending = 1;
}

static char *map(int protection, int file)
{
    int flags = MAP_PRIVATE | (file < 0 ? MAP_ANONYMOUS : 0);
    char *area = mmap(NULL, PAGE, protection, flags, file, 0);

    if (area == MAP_FAILED)
        fail("mmap");
    return area;
}

static char *guard_region(void)
{
    char *area = map(PROT_READ | PROT_WRITE, -1);

    if (madvise(area, PAGE, MADV_GUARD))
        fail("guard region");
    return area;
}

/* A read-only page of a file, of which the process has a copy, like RELRO. */
static char *sealed_copy(void)
{
    int file = memfd_create("kept_storm", 0);
    char *area;

    if (file < 0 || ftruncate(file, PAGE))
        fail("memfd");
    area = map(PROT_READ | PROT_WRITE, file);
    close(file);
    *area = 1;
    if (mprotect(area, PAGE, PROT_READ))
        fail("mprotect");
    if (mseal_range(area, PAGE))
        fail("mseal");
    return area;
}

static void refuse(char *area, pid_t child)
{
    (void)child;
    if (mprotect(area, PAGE, PROT_READ | PROT_WRITE) != -1)
        fail("mprotect of sealed memory");
}

static void fault(char *area, pid_t child)
{
    (void)child;
    if (sigsetjmp(back, 1))
        return;
    *(volatile char *)area = 1;
    fail("write to a guard region");
}

static void discard(char *area, pid_t child)
{
    (void)child;
    if (madvise(area, PAGE, MADV_DONTNEED))
        fail("discard");
}

static void poke(char *area, pid_t child)
{
    if (ptrace(PTRACE_POKEDATA, child, area, 1L))
        fail("poke");
}

/* A stopped child that ends with its debugger, this thread. */
static pid_t debugged(void)
{
    pid_t child = fork();

    if (child < 0)
        fail("fork");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(0);
    }
    if (waitpid(child, NULL, 0) != child)
        fail("child");
    return child;
}

static const struct kind {
    char *(*map)(void);
    void (*make)(char *area, pid_t child);
    int is_debugger;
} kinds[] = {
    {sealed_page, refuse, 0},
    {guard_region, fault, 0},
    {sealed_copy, discard, 0},
    {sealed_page, poke, 1},
};
#define KINDS (sizeof(kinds) / sizeof(*kinds))

static unsigned long made[THREADS];

static void *storm(void *argument)
{
    long thread = (long)argument;
    const struct kind *kind = &kinds[(unsigned long)thread % KINDS];
    char *area = kind->map();
    pid_t child = kind->is_debugger ? debugged() : 0;

    while (!ending) {
        kind->make(area, child);
        made[thread]++;
        usleep(pause_us);
    }
    if (child) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    struct sigaction at_fault = {.sa_handler = on_fault}, at_end = {.sa_handler = on_end};
    pthread_t threads[THREADS];
    unsigned long sums[KINDS] = {0};

    pause_us = count > 1 ? (useconds_t)atoi(arguments[1]) : 1000;
    sigaction(SIGSEGV, &at_fault, NULL);
    sigaction(SIGTERM, &at_end, NULL);
    for (long each = 0; each < THREADS; each++)
        pthread_create(&threads[each], NULL, storm, (void *)each);
    for (unsigned long each = 0; each < THREADS; each++) {
        pthread_join(threads[each], NULL);
        sums[each % KINDS] += made[each];
    }
    printf("%lu %lu %lu %lu\n", sums[0], sums[1], sums[2], sums[3]);
    return 0;
}
