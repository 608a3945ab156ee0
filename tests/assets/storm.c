/*
 * storm THREADS COUNT SECONDS mprotect|munmap|madvise|mixed [--wait]
 *
 * Each thread makes COUNT denied calls on a sealed page of its own (0: until SECONDS have passed;
 * SECONDS 0: no limit). Prints how many of each there were in all, the seconds they took, and the
 * threads' ids.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { MPROTECT, MUNMAP, MADVISE, OPERATIONS };
static const char *const names[OPERATIONS] = {"mprotect", "munmap", "madvise"};

struct thread {
    pthread_t id;
    pid_t tid;
    char *page;
    unsigned long made[OPERATIONS];
};

static unsigned long count;
static int first = MPROTECT, last = MADVISE;
static atomic_bool stop;
static pthread_barrier_t start;

static int denied_call(int operation, char *page)
{
    switch (operation) {
    case MPROTECT:
        return mprotect(page, PAGE, PROT_READ | PROT_WRITE);
    case MUNMAP:
        return munmap(page, PAGE);
    default:
        return madvise(page, PAGE, MADV_DONTNEED);
    }
}

static void *storm(void *argument)
{
    struct thread *self = argument;
    int operation = first;

    self->tid = gettid();
    pthread_barrier_wait(&start);
    for (unsigned long n = 0; !count || n < count; n++) {
        if (atomic_load_explicit(&stop, memory_order_relaxed))
            break;
        if (denied_call(operation, self->page) != -1 || errno != EPERM)
            fail(names[operation]);
        self->made[operation]++;
        operation = operation == last ? first : operation + 1;
    }
    return NULL;
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Until the threads end by themselves, or `seconds` have passed. */
static void join_all(struct thread *threads, int number, double seconds)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += (time_t)seconds;
    deadline.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (deadline.tv_nsec >= 1000000000L) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000L;
    }
    for (int i = 0; i < number; i++) {
        if (seconds > 0 && pthread_timedjoin_np(threads[i].id, NULL, &deadline) == 0)
            continue;
        if (seconds > 0)
            atomic_store(&stop, 1);
        pthread_join(threads[i].id, NULL);
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: storm THREADS COUNT SECONDS mprotect|munmap|madvise|mixed [--wait]\n");
    return 2;
}

int main(int argc, char **argv)
{
    unsigned long total = 0, made[OPERATIONS] = {0};
    struct thread *threads;
    double seconds, begin;
    int number;

    if (argc < 5)
        return usage();
    number = atoi(argv[1]);
    count = strtoul(argv[2], NULL, 10);
    seconds = atof(argv[3]);
    for (int i = 0; i < OPERATIONS; i++)
        if (!strcmp(argv[4], names[i]))
            first = last = i;
    if (number < 1 || (!count && seconds <= 0) || (first != last && strcmp(argv[4], "mixed")))
        return usage();

    threads = calloc((size_t)number, sizeof(*threads));
    if (!threads)
        fail("calloc");
    pthread_barrier_init(&start, NULL, (unsigned)number + 1);
    for (int i = 0; i < number; i++) {
        threads[i].page = sealed_page();
        if (pthread_create(&threads[i].id, NULL, storm, &threads[i]))
            fail("pthread_create");
    }
    wait_if_asked(argc, argv);
    begin = now();
    pthread_barrier_wait(&start);
    join_all(threads, number, seconds);
    seconds = now() - begin;

    for (int i = 0; i < number; i++)
        for (int operation = 0; operation < OPERATIONS; operation++) {
            made[operation] += threads[i].made[operation];
            total += threads[i].made[operation];
        }
    printf("{\"threads\": %d", number);
    for (int operation = 0; operation < OPERATIONS; operation++)
        printf(", \"%s\": %lu", names[operation], made[operation]);
    printf(", \"total\": %lu, \"seconds\": %.6f, \"tids\": [", total, seconds);
    for (int i = 0; i < number; i++)
        printf("%s%d", i ? ", " : "", threads[i].tid);
    printf("]}\n");
    return 0;
}
