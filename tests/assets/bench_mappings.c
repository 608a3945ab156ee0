/*
 * bench_mappings BATCHES CALLS COUNT [--wait]
 *
 * What a denied mprotect costs in a process of exactly COUNT mappings. A process of one mapping has
 * no libc and no data: a child keeps only the sealed page that it runs on, with its stack in
 * the same page, and COUNT - 1 others around it, makes its calls from there and writes their time
 * to a pipe. Prints a JSON object: `mappings`, how many the kernel says it had; `denied`, how many
 * calls were refused; `ns` per call of each batch.
 */
#define _GNU_SOURCE
#include "asset.h"
#include "processor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

/* Far from where the kernel puts anything by itself. */
#define BASE 0x100000000000UL

struct life {
    unsigned long batches, calls;
    unsigned long start, end; /* of the mappings that are kept */
    unsigned long highest;    /* where the last one of all ends */
    char *page;               /* the sealed one, which holds this and the code */
    size_t page_size;
    int pipe;
};

#define BARE __attribute__((section("bare_code"), noipa))

/* By a wrapper, as libc has one: its return address is what the monitor looks for. */
BARE static long refused(const struct life *life)
{
    return bare_call(SYS_mprotect, (long)life->page, (long)life->page_size, PROT_READ);
}

/*
 * The child's life from here on: it stops, so that its mappings can be counted, then makes batches
 * of refused calls and writes how many ticks each took. A copy of it runs, with nothing but its
 * argument and its stack.
 */
BARE static void bare(const struct life *life)
{
    long wrong = bare_call(SYS_munmap, 0, (long)life->start, 0) |
                 bare_call(SYS_munmap, (long)life->end, (long)(life->highest - life->end), 0);

    if (!wrong)
        wrong = bare_call(SYS_kill, bare_call(SYS_getpid, 0, 0, 0), SIGSTOP, 0);
    for (unsigned long batch = 0; !wrong && batch < life->batches; batch++) {
        uint64_t took, began = ticks();

        for (unsigned long n = 0; n < life->calls; n++)
            wrong |= refused(life) + EPERM;
        took = ticks() - began;
        wrong |= bare_call(SYS_write, life->pipe, (long)&took, sizeof(took)) - (long)sizeof(took);
    }
    for (;;)
        bare_call(SYS_exit_group, wrong != 0, 0, 0);
}
extern const char __start_bare_code[], __stop_bare_code[]; /* the linker's names */

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

struct mappings {
    int count;
    unsigned long end; /* of the highest one */
};

/* Without the vsyscall page, which is in every list and is no mapping. */
static struct mappings mappings_of(pid_t pid)
{
    struct mappings found = {0, 0};
    char path[32], line[4352];
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    file = fopen(path, "r");
    if (!file)
        fail(path);
    while (fgets(line, sizeof(line), file))
        if (!strstr(line, "[vsyscall]")) {
            found.count++;
            sscanf(line, "%*x-%lx", &found.end);
        }
    fclose(file);
    return found;
}

/*
 * COUNT mappings in a row, neighbours unlike each other; the one in their midst is code. It can be
 * written to, for its stack.
 */
static char *lay_out(size_t count)
{
    char *area = mmap((void *)BASE, count * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    char *code = area + count / 2 * PAGE;
    int all = PROT_READ | PROT_WRITE | PROT_EXEC;

    if (area == MAP_FAILED)
        fail("mmap");
    memcpy(code, __start_bare_code, (size_t)(__stop_bare_code - __start_bare_code));
    __builtin___clear_cache(code, code + PAGE);
    for (size_t i = 0; i < count; i++) {
        char *page = area + i * PAGE;
        int protection = (i ^ count / 2) & 1 ? PROT_NONE : PROT_READ;

        if (mprotect(page, PAGE, page == code ? all : protection))
            fail("mprotect");
    }
    if (mseal_range(code, PAGE))
        fail("mseal");
    return code;
}

static void become_bare(size_t count, unsigned long batches, unsigned long calls, int pipe)
{
    char *code = lay_out(count);
    /* What is above the stack pointer can be read, as it always can. */
    struct life *life = (struct life *)(code + PAGE / 2);

    *life = (struct life){.batches = batches,
                          .calls = calls,
                          .start = BASE,
                          .end = BASE + count * PAGE,
                          .highest = mappings_of(getpid()).end,
                          .page = code,
                          .page_size = PAGE,
                          .pipe = pipe};
    jump_on_stack(code + ((const char *)bare - __start_bare_code),
                  (void *)((uintptr_t)life & ~15UL), life);
}

/* At its every return from an interrupt the kernel would write into what glibc registered. */
static void do_without_rseq(char **argv)
{
    static const char tunable[] = "glibc.pthread.rseq=0";
    const char *set = getenv("GLIBC_TUNABLES");

    if (set && !strcmp(set, tunable))
        return;
    setenv("GLIBC_TUNABLES", tunable, 1);
    execv("/proc/self/exe", argv);
    fail("execv");
}

int main(int argc, char **argv)
{
    unsigned long batches, calls, count, made = 0;
    uint64_t took;
    double begin = now(), ns_per_tick, *ns;
    uint64_t first = ticks();
    int channel[2], status, mappings;
    pid_t child;

    if (argc < 4)
        goto usage;
    batches = strtoul(argv[1], NULL, 10);
    calls = strtoul(argv[2], NULL, 10);
    count = strtoul(argv[3], NULL, 10);
    if (!batches || !calls || !count)
        goto usage;
    do_without_rseq(argv);
    wait_if_asked(argc, argv);
    ns = calloc(batches, sizeof(*ns));
    if (!ns || pipe2(channel, O_CLOEXEC))
        fail("pipe");
    child = fork();
    if (child < 0)
        fail("fork");
    if (!child)
        become_bare(count, batches + 1, calls, channel[1]); /* the first one warms up */
    close(channel[1]);
    if (waitpid(child, &status, WUNTRACED) != child)
        fail("waitpid");
    if (!WIFSTOPPED(status)) {
        fprintf(stderr, "the child cannot give up its mappings: status %d\n", status);
        return 1;
    }
    mappings = mappings_of(child).count;
    kill(child, SIGCONT);
    while (read(channel[0], &took, sizeof(took)) == sizeof(took)) {
        if (made++)
            ns[made - 2] = (double)took / (double)calls;
    }
    if (waitpid(child, &status, 0) != child || status || made != batches + 1) {
        fprintf(stderr, "the child ended with status %d after %lu batches\n", status, made);
        return 1;
    }
    ns_per_tick = (now() - begin) / (double)(ticks() - first);
    printf("{\"mappings\": %d, \"denied\": %lu, \"ns\": [", mappings, made * calls);
    for (unsigned long i = 0; i < batches; i++)
        printf("%s%.2f", i ? ", " : "", ns[i] * ns_per_tick);
    printf("]}\n");
    return 0;

usage:
    fprintf(stderr, "usage: bench_mappings BATCHES CALLS COUNT [--wait]\n");
    return 2;
}
