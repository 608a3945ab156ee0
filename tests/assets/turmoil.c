/*
 * turmoil SECONDS THREADS SEED [--wait]
 *
 * Starts one process after the other; each lives for a second at most. Its THREADS (at least 2)
 * map, unmap, protect, seal and fault in one address space, and it knows the truth of each
 * violation. Prints a line with the layout before it waits, and at the end one with the violations.
 *
 * The arena is cut into cells, which the threads get in turn: mappings of all of them then share
 * nodes of the kernel's tree. A thread changes only its own cells, with one exception: other
 * threads change what lies before the seal of a violator's first cell while calls on that cell are
 * refused. A page of a violator's cell always stays the same kind of page, so the address of a
 * violation says what it must be. An odd address is written to, an even one is read.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#define ARENA 0x100000000000UL /* nothing else is ever mapped near it */
#define CELL_PAGES 32
#define CELLS_EACH 64
#define FAR_PAGES 255 /* of a range that is refused at its end */
#define BULK_PAGES 512
#define CONTESTED 0 /* a violator's cell that churning threads change, too */
#define IN_A_ROW 32
#define NR_PKEY_MPROTECT 329
#define GUARD_INSTALL 102

enum { SEAL = 8, SEAL_END = 10, SPARED = 16, SPARED_END = 18, GUARD = 25, PROTECTED = 28 };

/* Pages of a cell that come and go: [from, to). */
struct range {
    int from, to;
};
static const struct range loose[] = {{0, SEAL}, {SEAL_END, SPARED}, {SPARED_END, 24}, {29, 32}};
static const struct range whole = {0, CELL_PAGES};

enum { HOLE, NONE, READ, WRITE };
static const int protections[] = {0, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};

/* The truth: why the kernel refused a call, or what a fault hit. */
enum { MPROTECT, PKEY_MPROTECT, MUNMAP, MREMAP, MMAP, MADVISE, OPERATIONS };
enum { BY_SEAL, NOT_BY_SEAL, BY_OTHER_CAUSE_OVER_SEAL, TRUTHS };
enum { AT_GUARD, AT_PROT_NONE, AT_SEAL, AT_OTHER, CAUSES };
#define DENIAL(operation, truth) (1 + (operation)*TRUTHS + (truth))
#define FAULT(cause) (1 + OPERATIONS * TRUTHS + (cause))
#define DEATH(cause) (FAULT(CAUSES) + (cause))
#define SEALING DEATH(CAUSES)
#define KINDS (SEALING + 1) /* the first, 0, is none */

static const char *const operations[] = {"mprotect", "pkey_mprotect", "munmap",
                                         "mremap",   "mmap",          "madvise"};
static const char *const truths[] = {"sealed", "not_sealed", "other_cause"};
static const char *const causes[] = {"guard_region", "prot_none", "sealed", "other"};

/* Shared with the parent: also what a thread was at when its process ended. */
struct tally {
    unsigned long calls, made[KINDS];
    volatile int pending;
};

struct thread {
    pthread_t id;
    int number;
    uint64_t random;
    struct tally *tally;
    bool laid[CELLS_EACH];
    unsigned char state[CELLS_EACH][CELL_PAGES]; /* of loose pages */
};

static int thread_count, seal_file, noexec_file;
static bool has_low_limit;
static struct tally *tallies; /* of the threads, then of what they fork */
static atomic_bool stop, no_guards;
static atomic_uchar *sealed_cells;
static pthread_barrier_t begun;
static _Thread_local sigjmp_buf resume;

static uint64_t random_below(struct thread *self, uint64_t bound)
{
    self->random ^= self->random << 13;
    self->random ^= self->random >> 7;
    self->random ^= self->random << 17;
    return (self->random >> 11) % bound;
}

static char *page_of(int thread, int cell, int page)
{
    unsigned long number = (unsigned long)(cell * thread_count + thread);

    return (char *)(ARENA + (number * CELL_PAGES + (unsigned long)page) * PAGE);
}

static char *page_at(const struct thread *self, int cell, int page)
{
    return page_of(self->number, cell, page);
}

static size_t size_of(struct range range)
{
    return (size_t)(range.to - range.from) * PAGE;
}

/* ---- What is expected, and counted ---------------------------------------------------------- */

static void expect(struct thread *self, int kind)
{
    self->tally->calls++;
    self->tally->pending = kind;
}

static void count(struct thread *self, int kind)
{
    self->tally->made[kind]++;
    self->tally->pending = 0;
}

static void refused(struct thread *self, int kind, long result)
{
    if (result != -1 || errno != EPERM) {
        fprintf(stderr, "violation %d: result %lx, errno %d\n", kind, result, errno);
        _exit(1);
    }
    count(self, kind);
}

static void done(struct thread *self, long result, const char *what)
{
    self->tally->calls++;
    if (result == -1) {
        perror(what);
        _exit(1);
    }
}

/* ---- Loose pages ---------------------------------------------------------------------------- */

static void map(struct thread *self, int cell, struct range range, int state)
{
    void *start = page_at(self, cell, range.from);

    done(self,
         (long)mmap(start, size_of(range), protections[state],
                    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
         "mmap");
    memset(self->state[cell] + range.from, state, (size_t)(range.to - range.from));
}

static bool is_mapped(const struct thread *self, int cell, struct range range)
{
    return !memchr(self->state[cell] + range.from, HOLE, (size_t)(range.to - range.from));
}

static void change(struct thread *self, int cell, struct range within)
{
    int state = NONE + (int)random_below(self, 3);
    struct range range;
    char *start;

    range.from = within.from + (int)random_below(self, (uint64_t)(within.to - within.from));
    range.to = range.from + 1 + (int)random_below(self, (uint64_t)(within.to - range.from));
    start = page_at(self, cell, range.from);
    switch (random_below(self, 5)) {
    case 0:
        done(self, munmap(start, size_of(range)), "munmap");
        memset(self->state[cell] + range.from, HOLE, (size_t)(range.to - range.from));
        return;
    case 1:
    case 2:
        if (!is_mapped(self, cell, range))
            break;
        done(self, mprotect(start, size_of(range), protections[state]), "mprotect");
        memset(self->state[cell] + range.from, state, (size_t)(range.to - range.from));
        return;
    case 3:
        if (!is_mapped(self, cell, range))
            break;
        done(self, madvise(start, size_of(range), MADV_DONTNEED), "madvise");
        return;
    }
    map(self, cell, range, state);
}

static void change_loose(struct thread *self, int cell)
{
    change(self, cell, loose[random_below(self, sizeof(loose) / sizeof(*loose))]);
}

/* ---- Cells with seals ----------------------------------------------------------------------- */

static bool is_spared_file(int cell)
{
    return cell & 1;
}

static void seal(struct thread *self, int cell, struct range range)
{
    expect(self, SEALING);
    if (mseal_range(page_at(self, cell, range.from), size_of(range))) {
        perror("mseal");
        _exit(1);
    }
    count(self, SEALING);
}

static void lay(struct thread *self, int cell)
{
    struct range sealed = {SEAL, SEAL_END}, spared = {SPARED, SPARED_END}, guard = {24, 27},
                 protected = {PROTECTED, PROTECTED + 1};

    for (int i = 0; i < 3; i++)
        map(self, cell, loose[i], READ + i % 2);
    map(self, cell, sealed, READ);
    map(self, cell, spared, WRITE);
    /* Destructive advice does not fail on what is sealed and writable, or comes from a file. */
    if (is_spared_file(cell))
        done(self,
             (long)mmap(page_at(self, cell, SPARED), size_of(spared), PROT_READ,
                        MAP_FIXED | MAP_PRIVATE, seal_file, 0),
             "mmap");
    seal(self, cell, sealed);
    seal(self, cell, spared);
    map(self, cell, guard, WRITE);
    if (madvise(page_at(self, cell, GUARD), PAGE, GUARD_INSTALL))
        atomic_store(&no_guards, true);
    map(self, cell, protected, NONE);
    self->laid[cell] = true;
    atomic_store(&sealed_cells[cell * thread_count + self->number], 1);
}

/* Pages that reach at least one sealed one, `first`. */
static struct range random_sealed(struct thread *self, int *first)
{
    struct range range;

    range.from = (int)random_below(self, SPARED_END);
    *first = range.from < SEAL_END ? SEAL : SPARED;
    if (range.from > *first)
        *first = range.from;
    range.to = *first + 1 + (int)random_below(self, (uint64_t)(24 - *first));
    return range;
}

static struct range random_loose(struct thread *self)
{
    struct range range = loose[random_below(self, 3)];

    range.from += (int)random_below(self, 3);
    return range;
}

static int loose_page(struct thread *self, int cell, int state)
{
    int page = SEAL_END + (int)random_below(self, SPARED - SEAL_END);

    if (self->state[cell][page] != state)
        map(self, cell, (struct range){page, page + 1}, state);
    return page;
}

/* ---- Calls that a seal refuses -------------------------------------------------------------- */

static void refuse_munmap(struct thread *self, int cell)
{
    int first;
    struct range range = random_sealed(self, &first);

    expect(self, DENIAL(MUNMAP, BY_SEAL));
    refused(self, DENIAL(MUNMAP, BY_SEAL), munmap(page_at(self, cell, range.from), size_of(range)));
}

static void refuse_mmap(struct thread *self, int cell)
{
    int first;
    struct range range = random_sealed(self, &first);

    expect(self, DENIAL(MMAP, BY_SEAL));
    refused(self, DENIAL(MMAP, BY_SEAL),
            (long)mmap(page_at(self, cell, range.from), size_of(range), PROT_READ,
                       MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/* From here to a seal in the next cell of this thread: through what all the others are changing. */
static void refuse_far(struct thread *self, int cell)
{
    int next = (cell + 1) % CELLS_EACH, kind = DENIAL(MUNMAP, BY_SEAL);
    char *start = page_at(self, cell, SPARED_END);
    size_t size = (size_t)(page_at(self, next, SEAL_END) - start);

    if (!next || size > FAR_PAGES * PAGE)
        return;
    if (!self->laid[next])
        lay(self, next);
    expect(self, kind);
    refused(self, kind, munmap(start, size));
}

static void refuse_contested(struct thread *self, int cell)
{
    if (!self->laid[CONTESTED])
        lay(self, CONTESTED);
    (void)cell;
    for (int i = 0; i < 8 * IN_A_ROW; i++) {
        struct range range = {(int)random_below(self, SEAL), SEAL + 1};

        expect(self, DENIAL(MUNMAP, BY_SEAL));
        refused(self, DENIAL(MUNMAP, BY_SEAL),
                munmap(page_at(self, CONTESTED, range.from), size_of(range)));
    }
}

static void refuse_mprotect(struct thread *self, int cell)
{
    int first, protection = protections[NONE + random_below(self, 3)], kind;
    struct range range = random_sealed(self, &first), before = {range.from, first};
    char *start = page_at(self, cell, range.from);

    if (range.from < first && !is_mapped(self, cell, before))
        map(self, cell, before, WRITE); /* a hole there would be ENOMEM */
    if (random_below(self, 4)) {
        kind = DENIAL(MPROTECT, BY_SEAL);
        expect(self, kind);
        refused(self, kind, mprotect(start, size_of(range), protection));
    } else {
        kind = DENIAL(PKEY_MPROTECT, BY_SEAL);
        expect(self, kind);
        refused(self, kind, syscall(NR_PKEY_MPROTECT, start, size_of(range), protection, -1));
    }
    if (range.from < first) /* may have got the protection */
        map(self, cell, before, READ);
}

static void refuse_madvise(struct thread *self, int cell)
{
    static const int advice[] = {MADV_DONTNEED, MADV_FREE, 24 /* DONTNEED_LOCKED */};
    struct range range = {(int)random_below(self, SEAL_END), SEAL_END};

    if (range.from < SEAL)
        range.to = SEAL + 1 + (int)random_below(self, 8);
    expect(self, DENIAL(MADVISE, BY_SEAL));
    refused(
        self, DENIAL(MADVISE, BY_SEAL),
        madvise(page_at(self, cell, range.from), size_of(range), advice[random_below(self, 3)]));
}

static void refuse_mremap(struct thread *self, int cell)
{
    char *sealed = page_at(self, cell, random_below(self, 2) ? SEAL : SPARED);
    char *source = page_at(self, cell, loose_page(self, cell, WRITE));

    expect(self, DENIAL(MREMAP, BY_SEAL));
    if (random_below(self, 2))
        refused(self, DENIAL(MREMAP, BY_SEAL),
                (long)mremap(sealed, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    else
        refused(self, DENIAL(MREMAP, BY_SEAL),
                (long)mremap(source, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, sealed));
}

/* ---- Calls that something else refuses ------------------------------------------------------ */

/* Beside a seal, and over one. */
static void refuse_otherwise(struct thread *self, int cell, int protection, int flags, int file)
{
    bool over = random_below(self, 2);
    int first, kind = DENIAL(MMAP, over ? BY_OTHER_CAUSE_OVER_SEAL : NOT_BY_SEAL);
    struct range range = over ? random_sealed(self, &first) : random_loose(self);

    expect(self, kind);
    refused(self, kind,
            (long)mmap(page_at(self, cell, range.from), size_of(range), protection,
                       MAP_FIXED | MAP_PRIVATE | flags, file, 0));
}

static void refuse_locked(struct thread *self, int cell)
{
    refuse_otherwise(self, cell, PROT_READ, MAP_ANONYMOUS | MAP_LOCKED, -1);
}

static void refuse_noexec(struct thread *self, int cell)
{
    refuse_otherwise(self, cell, PROT_READ | PROT_EXEC, 0, noexec_file);
}

static void refuse_low(struct thread *self, int cell)
{
    char *source = page_at(self, cell, loose_page(self, cell, READ));

    if (!has_low_limit)
        return;
    expect(self, DENIAL(MMAP, NOT_BY_SEAL));
    refused(self, DENIAL(MMAP, NOT_BY_SEAL),
            (long)mmap(NULL, PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    expect(self, DENIAL(MREMAP, NOT_BY_SEAL));
    refused(self, DENIAL(MREMAP, NOT_BY_SEAL),
            (long)mremap(source, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, NULL));
}

static void refuse_poison(struct thread *self, int cell)
{
    long result;

    expect(self, DENIAL(MADVISE, NOT_BY_SEAL));
    result = madvise(page_at(self, cell, SEAL - (int)random_below(self, 2)), PAGE, MADV_HWPOISON);
    if (result == -1 && errno == EINVAL) /* a kernel without it */
        self->tally->pending = 0;
    else
        refused(self, DENIAL(MADVISE, NOT_BY_SEAL), result);
}

/* Sealed, and yet not refused, or not with EPERM. */
static void touch_unrefused(struct thread *self, int cell)
{
    long result = madvise(page_at(self, cell, SPARED - 1), 2 * PAGE, MADV_DONTNEED);
    void *start = page_at(self, cell, SEAL);

    done(self, result && errno == ENOMEM ? 0 : result, "madvise"); /* of a hole before it */
    start = mmap(start, PAGE, PROT_READ, MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    done(self, start == MAP_FAILED && errno == EEXIST ? 0 : -1, "MAP_FIXED_NOREPLACE");
}

/* ---- Faults --------------------------------------------------------------------------------- */

static void on_fault(int number, siginfo_t *information, void *context)
{
    (void)number;
    (void)context;
    siglongjmp(resume, information->si_addr == NULL ? 2 : 1);
}

static void access_byte(char *page, uint64_t offset)
{
    volatile char *address = page + offset;

    if (offset & 1)
        *address = 1;
    else
        (void)*address;
}

static void fault(struct thread *self, int cause, char *page, uint64_t offset)
{
    expect(self, FAULT(cause));
    switch (sigsetjmp(resume, 0)) {
    case 0:
        access_byte(page, offset);
        fprintf(stderr, "no fault of kind %d at %p\n", cause, (void *)page);
        _exit(1);
    case 1:
        count(self, FAULT(cause));
        return;
    default:
        fprintf(stderr, "a fault without an address\n");
        _exit(1);
    }
}

static void fault_at_guard(struct thread *self, int cell)
{
    if (!atomic_load(&no_guards))
        fault(self, AT_GUARD, page_at(self, cell, GUARD), random_below(self, PAGE));
}

static void fault_at_prot_none(struct thread *self, int cell)
{
    fault(self, AT_PROT_NONE, page_at(self, cell, PROTECTED), random_below(self, PAGE));
}

static void fault_at_seal(struct thread *self, int cell)
{
    int page = SEAL + (int)random_below(self, 2);

    if (is_spared_file(cell) && random_below(self, 2))
        page += SPARED - SEAL;
    fault(self, AT_SEAL, page_at(self, cell, page), random_below(self, PAGE) | 1);
}

static void fault_otherwise(struct thread *self, int cell)
{
    struct range hole = {29, 31};

    fault(self, AT_OTHER, page_at(self, cell, loose_page(self, cell, READ)),
          random_below(self, PAGE) | 1);
    done(self, munmap(page_at(self, cell, hole.from), size_of(hole)), "munmap");
    memset(self->state[cell] + hole.from, HOLE, 2);
    fault(self, AT_OTHER, page_at(self, cell, 30), random_below(self, PAGE));
}

/* ---- Threads -------------------------------------------------------------------------------- */

static void (*const violations[])(struct thread *, int) = {
    refuse_munmap,   refuse_mmap,    refuse_far,         refuse_contested,
    refuse_mprotect, refuse_madvise, refuse_mremap,      refuse_locked,
    refuse_noexec,   refuse_low,     refuse_poison,      touch_unrefused,
    fault_at_seal,   fault_at_guard, fault_at_prot_none, fault_otherwise,
};
#define VIOLATIONS (sizeof(violations) / sizeof(*violations))

struct role {
    void (*act)(struct thread *);
    bool violates;
};
static const struct role *role_of(int number);

static int random_laid(struct thread *self)
{
    int cell = CONTESTED + 1 + (int)random_below(self, CELLS_EACH - CONTESTED - 1);

    if (!self->laid[cell])
        lay(self, cell);
    return cell;
}

static void violate(struct thread *self)
{
    int cell = random_laid(self);

    for (uint64_t i = random_below(self, 4); i; i--)
        change_loose(self, cell);
    violations[random_below(self, VIOLATIONS)](self, cell);
}

static void contest(struct thread *self)
{
    int victim = (int)random_below(self, (uint64_t)thread_count);
    char *start = page_of(victim, CONTESTED, (int)random_below(self, SEAL));

    if (!role_of(victim)->violates)
        return;
    if (random_below(self, 2))
        done(self, munmap(start, PAGE), "munmap");
    else
        done(self,
             (long)mmap(start, PAGE, protections[NONE + random_below(self, 3)],
                        MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
             "mmap");
}

static void churn(struct thread *self)
{
    int cell = (int)random_below(self, CELLS_EACH);

    for (int i = 0; i < IN_A_ROW; i++)
        contest(self);
    for (int i = 0; i < IN_A_ROW; i++)
        change(self, cell, whole);
    for (int page = 0; page < CELL_PAGES; page++)
        map(self, cell, (struct range){page, page + 1}, NONE + page % 3);
}

/* Thousands of mappings elsewhere, whose nodes come and go by the dozen. */
static void churn_in_bulk(struct thread *self)
{
    char *start = mmap(NULL, BULK_PAGES * PAGE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    done(self, (long)start, "mmap");
    for (unsigned long i = random_below(self, 2); i < BULK_PAGES; i += 2)
        done(self, mprotect(start + i * PAGE, PAGE, PROT_READ), "mprotect");
    for (unsigned long i = 0; i < BULK_PAGES; i += 8)
        done(self, munmap(start + i * PAGE, 8 * PAGE), "munmap");
}

/* Cuts sealed mappings in two and joins them again, which no seal forbids. */
static void split_seals(struct thread *self)
{
    unsigned long cell = random_below(self, (uint64_t)thread_count * CELLS_EACH);
    unsigned long page = (random_below(self, 2) ? SEAL : SPARED) + random_below(self, 2);
    char *start = (char *)(ARENA + (cell * CELL_PAGES + page) * PAGE);

    if (!atomic_load(&sealed_cells[cell]))
        return;
    done(self, madvise(start, PAGE, MADV_DONTDUMP), "MADV_DONTDUMP");
    done(self, madvise(start, PAGE, MADV_DODUMP), "MADV_DODUMP");
}

/* A copy of the whole address space that makes a few violations of its own and ends. */
static void violate_in_copy(struct thread *self)
{
    int status, cell = random_laid(self);
    pid_t child;

    for (int i = 0; i < IN_A_ROW; i++)
        violate(self);
    child = fork();
    if (child < 0) {
        perror("fork");
        _exit(1);
    }
    if (!child) {
        self->tally = &tallies[thread_count + self->number];
        refuse_munmap(self, cell);
        refuse_madvise(self, cell);
        fault_at_seal(self, cell);
        fault_at_guard(self, cell);
        refuse_mprotect(self, cell);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child || status) {
        fprintf(stderr, "a forked process ended with status %x\n", status);
        _exit(1);
    }
}

/* By the thread's number, over and over. */
static const struct role roles[] = {
    {violate, true}, {churn, false},          {violate, true},        {split_seals, false},
    {violate, true}, {violate_in_copy, true}, {churn_in_bulk, false}, {churn, false},
};

static const struct role *role_of(int number)
{
    return &roles[(unsigned long)number % (sizeof(roles) / sizeof(*roles))];
}

static void *run_thread(void *argument)
{
    struct thread *self = argument;
    const struct role *role = role_of(self->number);

    if (role->act == violate)
        for (size_t i = 0; i < VIOLATIONS; i++)
            violations[i](self, random_laid(self));
    else
        role->act(self);
    pthread_barrier_wait(&begun);
    while (!atomic_load_explicit(&stop, memory_order_relaxed) || !role->violates)
        role->act(self);
    return NULL;
}

/* ---- Processes ------------------------------------------------------------------------------ */

/* Without the privilege some calls are refused. */
static void drop_privileges(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    struct rlimit limit = {0, 0};

    if (setrlimit(RLIMIT_MEMLOCK, &limit) || setrlimit(RLIMIT_CORE, &limit))
        fail("setrlimit");
    if (syscall(SYS_capset, &header, none))
        fail("capset");
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || prctl(PR_SET_DUMPABLE, 0))
        fail("prctl");
}

enum { END_OF_VIOLATORS, END_OF_ALL, END_BY_FAULT, ENDS };

static int death_of(int generation)
{
    return AT_PROT_NONE + generation / ENDS % 2;
}

/* Threads are always in the middle of calls when their process ends. */
static void live(int generation, uint64_t seed, double seconds)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    struct timespec life = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    struct thread *threads = calloc((size_t)thread_count, sizeof(*threads));
    int end = generation % ENDS;

    drop_privileges();
    if (!threads || sigaction(SIGSEGV, &action, NULL))
        fail("sigaction");
    pthread_barrier_init(&begun, NULL, (unsigned)thread_count + 1);
    for (int i = 0; i < thread_count; i++) {
        threads[i].number = i;
        threads[i].random = (seed + 1) * 0x9e3779b97f4a7c15UL + (uint64_t)generation * 7919 +
                            (uint64_t)i * 104729 + 1;
        threads[i].tally = &tallies[i];
        if (pthread_create(&threads[i].id, NULL, run_thread, &threads[i]))
            fail("pthread_create");
    }
    pthread_barrier_wait(&begun);
    nanosleep(&life, NULL);
    if (end != END_OF_ALL) {
        atomic_store(&stop, true);
        for (int i = 0; i < thread_count; i++)
            if (role_of(i)->violates)
                pthread_join(threads[i].id, NULL);
    }
    if (end == END_BY_FAULT) {
        signal(SIGSEGV, SIG_DFL);
        access_byte(page_at(&threads[0], (int)(random_laid(&threads[0])),
                            death_of(generation) == AT_SEAL ? SEAL : PROTECTED),
                    1);
    }
    _exit(0);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Runs one process to its end and adds up what it made; `doubtful`: and may have made, besides. */
static void run_process(int generation, uint64_t seed, double seconds, struct tally *total,
                        unsigned long *doubtful)
{
    int status, wanted = generation % ENDS == END_BY_FAULT ? SIGSEGV : 0;
    pid_t child = fork(), ended;

    if (child < 0)
        fail("fork");
    if (!child)
        live(generation, seed, seconds);
    while ((ended = wait(&status)) > 0) /* the forked ones come to us when it ends */
        if (ended == child && (status & ~0x80) != wanted) {
            fprintf(stderr, "process %d ended with status %x\n", generation, status);
            exit(1);
        }
    if (wanted)
        total->made[DEATH(death_of(generation))]++;
    for (int i = 0; i < 2 * thread_count; i++) {
        total->calls += tallies[i].calls;
        for (int kind = 1; kind < KINDS; kind++)
            total->made[kind] += tallies[i].made[kind];
        if (tallies[i].pending)
            doubtful[tallies[i].pending]++;
    }
    memset(tallies, 0, 2 * (size_t)thread_count * sizeof(*tallies));
}

static void *shared_memory(size_t size)
{
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (start == MAP_FAILED)
        fail("mmap");
    return start;
}

static void print_layout(void)
{
    printf("{\"arena\": %lu, \"threads\": %d, \"cell_pages\": %d, \"violators\": [", ARENA,
           thread_count, CELL_PAGES);
    for (int i = 0, printed = 0; i < thread_count; i++)
        if (role_of(i)->violates)
            printf("%s%d", printed++ ? ", " : "", i);
    printf("], \"seals\": [[%d, %d], [%d, %d]], \"guard\": %d, \"prot_none\": %d}\n", SEAL,
           SEAL_END, SPARED, SPARED_END, GUARD, PROTECTED);
    fflush(stdout);
}

static void print_kinds(const char *title, const unsigned long *made)
{
    printf("\"%s\": {\"denials\": {", title);
    for (int i = 0; i < OPERATIONS; i++) {
        printf("%s\"%s\": {", i ? ", " : "", operations[i]);
        for (int truth = 0; truth < TRUTHS; truth++)
            printf("%s\"%s\": %lu", truth ? ", " : "", truths[truth], made[DENIAL(i, truth)]);
        printf("}");
    }
    printf("}, \"faults\": {");
    for (int cause = 0; cause < CAUSES; cause++)
        printf("%s\"%s\": {\"handler\": %lu, \"default\": %lu}", cause ? ", " : "", causes[cause],
               made[FAULT(cause)], made[DEATH(cause)]);
    printf("}, \"seals\": %lu}", made[SEALING]);
}

int main(int argc, char **argv)
{
    unsigned long doubtful[KINDS] = {0}, lowest = 0;
    struct tally total = {0};
    int processes = 0;
    double seconds, end, left;
    uint64_t seed;
    FILE *limit;

    if (argc < 4 || (thread_count = atoi(argv[2])) < 2 || (seconds = atof(argv[1])) <= 0) {
        fprintf(stderr, "usage: turmoil SECONDS THREADS SEED [--wait]\n");
        return 2;
    }
    seed = strtoul(argv[3], NULL, 10);
    tallies = shared_memory(2 * (size_t)thread_count * sizeof(*tallies));
    sealed_cells = calloc((size_t)thread_count * CELLS_EACH, sizeof(*sealed_cells));
    seal_file = memfd_create("turmoil", 0);
    noexec_file = open("/proc/self/status", O_RDONLY); /* no file of proc can be executed */
    limit = fopen("/proc/sys/vm/mmap_min_addr", "r");
    if (!sealed_cells || seal_file < 0 || ftruncate(seal_file, 2 * PAGE) || noexec_file < 0 ||
        !limit || fscanf(limit, "%lu", &lowest) != 1)
        fail("turmoil");
    fclose(limit);
    has_low_limit = lowest > 0;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1))
        fail("prctl");
    print_layout();
    wait_if_asked(argc, argv);

    end = now() + seconds;
    while (processes < ENDS || now() < end) {
        left = 0.5 + (double)(processes * 7 % 10) / 7;
        run_process(processes++, seed, left, &total, doubtful);
    }
    printf("{\"processes\": %d, \"calls\": %lu, ", processes, total.calls);
    print_kinds("made", total.made);
    printf(", ");
    print_kinds("doubtful", doubtful);
    printf("}\n");
    return 0;
}
