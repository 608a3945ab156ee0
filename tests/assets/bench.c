/*
 * bench calls BATCHES                  what a call costs: others, monitored ones, a denied one
 * bench range BATCHES COUNT...         a denied mprotect over COUNT mappings, the last one sealed
 * bench instructions CALLS [COUNT...]  the same calls one by one, by the time-stamp counter
 *
 * Times short batches in turn: a disturbance then meets all alike. Prints a JSON object: by
 * name, ns per call of each batch; `denied`, how many calls were refused; `faults`, how many
 * accesses went to the handler.
 *
 * Where the clock counts instructions (QEMU with -icount) and addresses are not random, the least
 * of many calls is the exact number of instructions. `ns` then holds this one figure, less what the
 * measuring takes.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <time.h>
#include <ucontext.h>
#ifdef __x86_64__
#include <x86intrin.h>
#endif

#define CASES_MAX 16
#define WARM_UP 20
#define DENIALS 400 /* a batch: their events fit into a ring of 1 MiB, read in the pauses */
#define PAUSE_NS 1000000L
#define NOPS 32 /* requests a submission */
#define TOUCHES 500
#define ATTEMPTS 5

struct bench {
    char name[24];
    void (*call)(struct bench *);
    void (*prepare)(struct bench *); /* before a batch, not timed */
    unsigned calls;                  /* a batch */
    char *start;
    size_t length;
    unsigned made;
    double *ns;
};

static unsigned long denied;
static volatile unsigned long faults;

static inline unsigned long long ticks(void)
{
#ifdef __x86_64__
    return __rdtsc();
#else
    unsigned long long count;

    __asm__ volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(count)::"memory");
    return count;
#endif
}

static void *map(void *address, size_t length, int protection, int flags)
{
    void *area = mmap(address, length, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

    if (area == MAP_FAILED)
        fail("mmap");
    return area;
}

/* ---- Calls --------------------------------------------------------------------------------- */

static void getppid_call(struct bench *bench)
{
    (void)bench;
    syscall(SYS_getppid);
}

static void mprotect_call(struct bench *bench)
{
    int protection = bench->made++ & 1 ? PROT_READ | PROT_WRITE : PROT_READ;

    if (mprotect(bench->start, bench->length, protection))
        fail("mprotect");
}

static void remap_calls(struct bench *bench)
{
    if (munmap(bench->start, bench->length))
        fail("munmap");
    map(bench->start, bench->length, PROT_READ | PROT_WRITE, MAP_FIXED);
}

static void madvise_call(struct bench *bench)
{
    if (madvise(bench->start, bench->length, MADV_DONTNEED))
        fail("madvise");
}

static void denied_call(struct bench *bench)
{
    if (mprotect(bench->start, bench->length, PROT_READ) != -1 || errno != EPERM)
        fail("mprotect of sealed memory");
    denied++;
}

/* ---- Faults -------------------------------------------------------------------------------- */

static void touch_call(struct bench *bench)
{
    bench->start[bench->made++ * PAGE] = 1;
}

static void give_back(struct bench *bench)
{
    bench->made = 0;
    if (madvise(bench->start, bench->length, MADV_DONTNEED))
        fail("madvise");
}

/* An access of one instruction, and how a handler goes on after it. */
#ifdef __aarch64__
#define ACCESS "strb wzr, [%0]"
#define ACCESS_LENGTH 4
#define ADDRESS_REGISTER "r"
#define PROGRAM_COUNTER pc
#else
#define ACCESS "movb $0, (%0)"
#define ACCESS_LENGTH 3
#define ADDRESS_REGISTER "D"
#define PROGRAM_COUNTER gregs[REG_RIP]
#endif

static void skip_access(int signal, siginfo_t *information, void *context)
{
    (void)signal;
    (void)information;
    ((ucontext_t *)context)->uc_mcontext.PROGRAM_COUNTER += ACCESS_LENGTH;
    faults++;
}

static void handled_call(struct bench *bench)
{
    asm volatile(ACCESS : : ADDRESS_REGISTER(bench->start) : "memory");
}

static void handle_faults(void)
{
    struct sigaction action = {.sa_sigaction = skip_access, .sa_flags = SA_SIGINFO};

    if (sigaction(SIGSEGV, &action, NULL))
        fail("sigaction");
}

/* ---- io_uring: submissions of NOPS requests that do nothing ---------------------------------- */

static struct {
    int descriptor;
    unsigned *tail, *head, *completed;
} ring;

static int ring_open(void)
{
    struct io_uring_params params = {0};
    char *queue;
    unsigned *slots;

    ring.descriptor = (int)syscall(SYS_io_uring_setup, NOPS, &params);
    if (ring.descriptor < 0)
        return 0;
    queue = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
                 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.descriptor,
                 IORING_OFF_SQ_RING);
    if (queue == MAP_FAILED || !(params.features & IORING_FEAT_SINGLE_MMAP))
        return 0;
    ring.tail = (unsigned *)(queue + params.sq_off.tail);
    ring.head = (unsigned *)(queue + params.cq_off.head);
    ring.completed = (unsigned *)(queue + params.cq_off.tail);
    slots = (unsigned *)(queue + params.sq_off.array);
    /* The entries stay all zero: IORING_OP_NOP. */
    for (unsigned i = 0; i < params.sq_entries; i++)
        slots[i] = i;
    return params.sq_entries == NOPS;
}

static void nop_calls(struct bench *bench)
{
    (void)bench;
    __atomic_store_n(ring.tail, *ring.tail + NOPS, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring.descriptor, NOPS, NOPS, IORING_ENTER_GETEVENTS, NULL, 0) !=
        NOPS)
        fail("io_uring_enter");
    __atomic_store_n(ring.head, __atomic_load_n(ring.completed, __ATOMIC_ACQUIRE),
                     __ATOMIC_RELEASE);
}

/* ---- Layouts --------------------------------------------------------------------------------- */

/* COUNT mappings of the same protection, the last one sealed: the refused call changes nothing. */
static void in_range(struct bench *bench, size_t count)
{
    char *area = fenced_pages(count);

    bench->start = area;
    bench->length = count * PAGE;
    if (mprotect(area, count * PAGE, PROT_READ))
        fail("mprotect");
    for (size_t i = 1; i < count; i += 2)
        if (madvise(area + i * PAGE, PAGE, MADV_DONTDUMP))
            fail("madvise");
    if (mseal_range(area + (count - 1) * PAGE, PAGE))
        fail("mseal");
}

/* ---- Measuring ------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static long preemptions(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nivcsw;
}

static double batch(struct bench *bench)
{
    struct timespec pause = {0, PAUSE_NS};
    double begin;

    if (bench->call == denied_call || bench->call == handled_call)
        nanosleep(&pause, NULL); /* in which the ring is read */
    if (bench->prepare)
        bench->prepare(bench);
    for (int i = 0; i < WARM_UP; i++)
        bench->call(bench);
    begin = now();
    for (unsigned i = 0; i < bench->calls; i++)
        bench->call(bench);
    return (now() - begin) / bench->calls;
}

/* A batch in which something else got the CPU is made again, if it can be had for itself at all. */
static double undisturbed_batch(struct bench *bench)
{
    double taken = 0;

    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        long before = preemptions();

        taken = batch(bench);
        if (preemptions() == before)
            break;
    }
    return taken;
}

static void measure(struct bench *benches, int count, int batches)
{
    for (int i = 0; i < count; i++)
        benches[i].ns = calloc((size_t)batches, sizeof(double));
    for (int n = 0; n < batches; n++)
        for (int i = 0; i < count; i++)
            benches[i].ns[n] = undisturbed_batch(&benches[i]);
}

static void no_call(struct bench *bench)
{
    (void)bench;
}

static unsigned long least(struct bench *bench, int calls)
{
    unsigned long best = -1UL, taken;

    if (bench->prepare)
        bench->prepare(bench);
    for (int i = 0; i < calls; i++) {
        taken = ticks();
        bench->call(bench);
        taken = ticks() - taken;
        if (taken < best)
            best = taken;
    }
    return best;
}

static void count_instructions(struct bench *benches, int count, int calls)
{
    struct bench none = {.call = no_call};
    unsigned long measuring = least(&none, calls);

    for (int i = 0; i < count; i++) {
        benches[i].ns = calloc(1, sizeof(double));
        benches[i].ns[0] = (double)(least(&benches[i], calls) - measuring);
    }
}

static void print(struct bench *benches, int count, int batches)
{
    printf("{\"denied\": %lu, \"faults\": %lu, \"ns\": {", denied, faults);
    for (int i = 0; i < count; i++) {
        double unit = benches[i].call == nop_calls ? NOPS : 1;

        printf("%s\"%s\": [", i ? ", " : "", benches[i].name);
        for (int n = 0; n < batches; n++)
            printf("%s%.2f", n ? ", " : "", benches[i].ns[n] / unit);
        printf("]");
    }
    printf("}}\n");
}

static void ranges(struct bench *benches, char **counts, int count)
{
    for (int i = 0; i < count; i++) {
        benches[i] = (struct bench){"", denied_call, NULL, DENIALS, NULL, 0, 0, NULL};
        snprintf(benches[i].name, sizeof(benches[i].name), "%s", counts[i]);
        in_range(&benches[i], strtoul(counts[i], NULL, 10));
    }
}

/* A page for each fault of the longest run, in small pages. */
static char *fresh_pages(size_t count)
{
    char *area = fenced_pages(count);

    if (madvise(area, count * PAGE, MADV_NOHUGEPAGE) && errno != EINVAL)
        fail("madvise");
    return area;
}

static int calls(struct bench *benches, int single_calls)
{
    size_t fresh = (size_t)(single_calls > TOUCHES ? single_calls : TOUCHES) + WARM_UP;
    char *pages[3], *guard = fenced_pages(1);

    for (int i = 0; i < 3; i++)
        pages[i] = fenced_pages(1);
    pages[0][0] = 1;
    if (mprotect(guard, PAGE, PROT_NONE))
        fail("mprotect");
    handle_faults();
    benches[0] = (struct bench){"getppid", getppid_call, NULL, 3000, NULL, 0, 0, NULL};
    benches[1] = (struct bench){"mprotect", mprotect_call, NULL, 1000, pages[0], PAGE, 0, NULL};
    benches[2] = (struct bench){"munmap+mmap", remap_calls, NULL, 500, pages[1], PAGE, 0, NULL};
    benches[3] = (struct bench){"madvise", madvise_call, NULL, 2000, pages[2], PAGE, 0, NULL};
    benches[4] = (struct bench){"denied", denied_call, NULL, DENIALS, sealed_page(), PAGE, 0, NULL};
    benches[5] = (struct bench){"page fault",       touch_call,   give_back, TOUCHES,
                                fresh_pages(fresh), fresh * PAGE, 0,         NULL};
    benches[6] = (struct bench){"SIGSEGV", handled_call, NULL, DENIALS, guard, PAGE, 0, NULL};
    benches[7] = (struct bench){"io_uring nop", nop_calls, NULL, 100, NULL, 0, 0, NULL};
    return !single_calls && ring_open() ? 8 : 7;
}

static void use_fixed_addresses(char **argv)
{
    int now = personality(0xffffffff);

    if (now & ADDR_NO_RANDOMIZE)
        return;
    if (personality((unsigned long)now | ADDR_NO_RANDOMIZE) < 0)
        fail("personality");
    execv("/proc/self/exe", argv);
    fail("execv");
}

int main(int argc, char **argv)
{
    struct bench benches[CASES_MAX] = {0};
    int batches = argc > 2 ? atoi(argv[2]) : 0, count = argc - 3;

    if (argc == 3 && batches > 0 && !strcmp(argv[1], "calls")) {
        count = calls(benches, 0);
        measure(benches, count, batches);
    } else if (count >= 0 && count <= CASES_MAX && batches > 0 &&
               !strcmp(argv[1], "instructions")) {
        use_fixed_addresses(argv);
        if (count)
            ranges(benches, argv + 3, count);
        else
            count = calls(benches, batches);
        count_instructions(benches, count, batches);
        batches = 1;
    } else if (count > 0 && count <= CASES_MAX && batches > 0 && !strcmp(argv[1], "range")) {
        ranges(benches, argv + 3, count);
        measure(benches, count, batches);
    } else {
        fprintf(stderr, "usage: bench calls BATCHES | range BATCHES COUNT... | "
                        "instructions CALLS [COUNT...]\n");
        return 2;
    }
    print(benches, count, batches);
    return 0;
}
