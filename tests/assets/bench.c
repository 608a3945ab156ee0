/*
 * bench calls BATCHES             what a call costs: others, monitored ones, a denied one
 * bench process BATCHES COUNT...  a denied mprotect in a process with COUNT more mappings
 * bench range BATCHES COUNT...    a denied mprotect over COUNT mappings, the last one sealed
 *
 * Times short batches in turn, so that a disturbance meets all alike. Prints a JSON object: by
 * name, ns per call of each batch; `denied`, how many calls were refused; `mappings`, how many the
 * process had.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <time.h>

#define CASES_MAX 16
#define WARM_UP 20
#define DENIALS 400 /* a batch: their events fit into a ring of 1 MiB, read in the pauses */
#define PAUSE_NS 1000000L
#define NOPS 32 /* requests a submission */

struct bench {
    char name[24];
    void (*call)(struct bench *);
    unsigned calls; /* a batch */
    char *start;
    size_t length;
    unsigned made;
    double *ns;
};

static unsigned long denied;

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

/* COUNT mappings and the sealed one in their midst. */
static void in_process(struct bench *bench, size_t count)
{
    char *area = map(NULL, (count + 1) * PAGE, PROT_READ, MAP_NORESERVE);
    size_t middle = (count + 1) / 2;

    bench->start = area + middle * PAGE;
    bench->length = PAGE;
    for (size_t i = 0; i <= count; i++)
        if (i % 2 != middle % 2 && mprotect(area + i * PAGE, PAGE, PROT_NONE))
            fail("mprotect");
    if (mseal_range(bench->start, PAGE))
        fail("mseal");
}

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

static int mappings_of_process(void)
{
    FILE *file = fopen("/proc/self/maps", "r");
    int lines = 0, character;

    if (!file)
        fail("/proc/self/maps");
    while ((character = getc(file)) != EOF)
        lines += character == '\n';
    fclose(file);
    return lines;
}

/* ---- Measuring ------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static double batch(struct bench *bench)
{
    double begin;

    for (int i = 0; i < WARM_UP; i++)
        bench->call(bench);
    begin = now();
    for (unsigned i = 0; i < bench->calls; i++)
        bench->call(bench);
    return (now() - begin) / bench->calls;
}

static void measure(struct bench *benches, int count, int batches)
{
    struct timespec pause = {0, PAUSE_NS};

    for (int i = 0; i < count; i++)
        benches[i].ns = calloc((size_t)batches, sizeof(double));
    for (int n = 0; n < batches; n++)
        for (int i = 0; i < count; i++) {
            benches[i].ns[n] = batch(&benches[i]);
            if (benches[i].call == denied_call)
                nanosleep(&pause, NULL);
        }
}

static void print(struct bench *benches, int count, int batches)
{
    printf("{\"denied\": %lu, \"mappings\": %d, \"ns\": {", denied, mappings_of_process());
    for (int i = 0; i < count; i++) {
        double unit = benches[i].call == nop_calls ? NOPS : 1;

        printf("%s\"%s\": [", i ? ", " : "", benches[i].name);
        for (int n = 0; n < batches; n++)
            printf("%s%.2f", n ? ", " : "", benches[i].ns[n] / unit);
        printf("]");
    }
    printf("}}\n");
}

static int calls(struct bench *benches)
{
    char *pages[3];

    for (int i = 0; i < 3; i++)
        pages[i] = fenced_pages(1);
    pages[0][0] = 1;
    benches[0] = (struct bench){"getppid", getppid_call, 3000, NULL, 0, 0, NULL};
    benches[1] = (struct bench){"mprotect", mprotect_call, 1000, pages[0], PAGE, 0, NULL};
    benches[2] = (struct bench){"munmap+mmap", remap_calls, 500, pages[1], PAGE, 0, NULL};
    benches[3] = (struct bench){"madvise", madvise_call, 2000, pages[2], PAGE, 0, NULL};
    benches[4] = (struct bench){"denied", denied_call, DENIALS, sealed_page(), PAGE, 0, NULL};
    benches[5] = (struct bench){"io_uring nop", nop_calls, 100, NULL, 0, 0, NULL};
    return ring_open() ? 6 : 5;
}

int main(int argc, char **argv)
{
    struct bench benches[CASES_MAX] = {0};
    int batches = argc > 2 ? atoi(argv[2]) : 0, count = argc - 3;

    if (argc == 3 && batches > 0 && !strcmp(argv[1], "calls")) {
        count = calls(benches);
    } else if (count > 0 && count <= CASES_MAX && batches > 0 &&
               (!strcmp(argv[1], "process") || !strcmp(argv[1], "range"))) {
        for (int i = 0; i < count; i++) {
            benches[i] = (struct bench){"", denied_call, DENIALS, NULL, 0, 0, NULL};
            snprintf(benches[i].name, sizeof(benches[i].name), "%s", argv[i + 3]);
            (argv[1][0] == 'p' ? in_process : in_range)(&benches[i],
                                                        strtoul(argv[i + 3], NULL, 10));
        }
    } else {
        fprintf(stderr, "usage: bench calls BATCHES | process|range BATCHES COUNT...\n");
        return 2;
    }
    measure(benches, count, batches);
    print(benches, count, batches);
    return 0;
}
