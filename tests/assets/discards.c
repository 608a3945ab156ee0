/*
 * Discards around seals and beside them: what is known of one mapping, of one process or of one
 * moment does not hold for another. Prints how many of them went around a seal.
 *
 * discards turns ROUNDS     several mappings in turn, every other one sealed
 *
 * discards later ROUNDS     a mapping is discarded, then sealed in part, then discarded
 *
 * discards race ROUNDS      another thread seals while this one discards. `unsure`: how many more
 *                           may have gone around the seal: mseal was not back when they began
 *
 * discards forks COUNT      children at the same addresses, every other one with a seal
 *
 * discards exec COUNT       the same program again and again, every other time with a seal
 */
#define _GNU_SOURCE
#include "asset.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define MAPPINGS 7
#define AFTER 5
#define FIXED ((char *)0x700000000000)

static unsigned long around, unsure;

/* Read-only pages of a file that the process has copies of, like RELRO. */
static char *map(char *address, size_t count)
{
    int file = memfd_create("discards", 0), fixed = address ? MAP_FIXED_NOREPLACE : 0;
    char *area;

    if (file < 0 || ftruncate(file, (long)(count * PAGE)))
        fail("memfd");
    area = mmap(address, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | fixed, file, 0);
    if (area == MAP_FAILED)
        fail("mmap");
    close(file);
    memset(area, 1, count * PAGE);
    if (mprotect(area, count * PAGE, PROT_READ))
        fail("mprotect");
    return area;
}

static void seal(char *start, size_t length)
{
    if (mseal_range(start, length))
        fail("mseal");
}

static void discard(char *start, size_t count)
{
    if (madvise(start, count * PAGE, MADV_DONTNEED))
        fail("madvise");
}

static void turns(unsigned long rounds)
{
    char *area[MAPPINGS];

    for (int i = 0; i < MAPPINGS; i++)
        area[i] = map(NULL, 1);
    for (int i = 1; i < MAPPINGS; i += 2)
        seal(area[i], PAGE);
    for (unsigned long round = 0; round < rounds; round++)
        for (int i = 0; i < MAPPINGS; i++) {
            discard(area[i], 1);
            around += i & 1;
        }
}

static void later(unsigned long rounds)
{
    for (unsigned long round = 0; round < rounds; round++) {
        char *area = map(NULL, 3);

        for (int i = 0; i < 3; i++)
            discard(area + PAGE, 1);
        seal(area + PAGE, PAGE);
        discard(area + PAGE, 1);
        discard(area, 3);
        discard(area, 1);
        discard(area + 2 * PAGE, 1);
        around += 2;
    }
}

static char *contested;
static atomic_ulong sealing, sealed; /* the round whose mapping is being sealed, and is */
static atomic_ulong discarding;

static void *seal_them(void *rounds)
{
    for (unsigned long round = 1; round <= (unsigned long)rounds; round++) {
        while (atomic_load(&discarding) != round)
            ;
        for (volatile unsigned long wait = round * 7919 % 20000; wait; wait--)
            ;
        atomic_store(&sealing, round);
        seal(contested, PAGE);
        atomic_store(&sealed, round);
    }
    return NULL;
}

static void race(unsigned long rounds)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, seal_them, (void *)rounds))
        fail("pthread_create");
    for (unsigned long round = 1; round <= rounds; round++) {
        contested = map(NULL, 1);
        discard(contested, 1);
        atomic_store(&discarding, round);
        for (int after = 0; after < AFTER;) {
            int was_sealed = atomic_load(&sealed) == round;

            discard(contested, 1);
            after += was_sealed;
            around += (unsigned long)was_sealed;
            unsure += !was_sealed && atomic_load(&sealing) == round;
        }
    }
    pthread_join(thread, NULL);
}

/* As many changes of its mappings in both cases: the kernel counts those. */
static void discard_fixed(char *area, int is_sealed)
{
    if (is_sealed)
        seal(area, PAGE);
    else if (mprotect(area, PAGE, PROT_READ))
        fail("mprotect");
    for (int i = 0; i < AFTER; i++)
        discard(area, 1);
}

static void stay_on_this_cpu(void)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(sched_getcpu(), &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus))
        fail("sched_setaffinity");
}

static void forks(unsigned long count)
{
    char *area = map(NULL, 1);

    stay_on_this_cpu();
    for (unsigned long i = 0; i < count; i++) {
        int status;
        pid_t child = fork();

        if (child < 0)
            fail("fork");
        if (!child) {
            discard_fixed(area, i & 1);
            _exit(0);
        }
        if (waitpid(child, &status, 0) < 0 || status)
            fail("a child");
        around += (i & 1) * AFTER;
    }
}

/* The count goes down from one program to the next. `made`: how many discards there were so far. */
static void execs(char **argv, unsigned long count)
{
    const char *made = getenv("MADE");
    char number[24];

    around = made ? strtoul(made, NULL, 10) : 0;
    if (!count)
        return;
    stay_on_this_cpu();
    discard_fixed(map(FIXED, 1), count & 1);
    snprintf(number, sizeof(number), "%lu", around + (count & 1) * AFTER);
    setenv("MADE", number, 1);
    snprintf(number, sizeof(number), "%lu", count - 1);
    execl("/proc/self/exe", argv[0], "exec", number, (char *)NULL);
    fail("exec");
}

int main(int argc, char **argv)
{
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;

    wait_if_asked(argc, argv);
    if (argc > 2 && !strcmp(argv[1], "turns"))
        turns(count);
    else if (argc > 2 && !strcmp(argv[1], "later"))
        later(count);
    else if (argc > 2 && !strcmp(argv[1], "race"))
        race(count);
    else if (argc > 2 && !strcmp(argv[1], "forks"))
        forks(count);
    else if (argc > 2 && !strcmp(argv[1], "exec"))
        execs(argv, count);
    else {
        fprintf(stderr, "usage: discards turns|later|race|forks|exec COUNT [--wait]\n");
        return 2;
    }
    printf("{\"around\": %lu, \"unsure\": %lu}\n", around, unsure);
    return 0;
}
