/*
 * mappings N TRIALS SEED [--wait]
 *
 * Makes about N mappings with random protections, files, gaps and seals, then TRIALS denied calls
 * on random ranges. Each prints a line: the call, its range, the sealed mapping that explains the
 * refusal as /proc/self/smaps has it, and `walked`, the number of mappings from the first in the
 * range to that one.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>

#define MAX_MAPPINGS 40000
#define FILE_PAGES 64UL
#define NEAR_PAGES 40

struct mapping {
    unsigned long start, end, offset, inode;
    int writable, sealed;
};

struct trial {
    unsigned long address, length;
    const struct mapping *refusing;
    long walked;
};

/* Static, so that reading smaps maps nothing new into the gaps. */
static struct mapping mappings[MAX_MAPPINGS];
static int mapping_count;
static unsigned long area_start, area_end;
static char *movable; /* source of moves onto the area, FILE_PAGES long */

static unsigned long random_below(unsigned long bound)
{
    return (unsigned long)random() % bound;
}

static unsigned long smaller(unsigned long a, unsigned long b)
{
    return a < b ? a : b;
}

static void read_smaps(void)
{
    FILE *file = fopen("/proc/self/smaps", "r");
    char line[512];

    if (!file)
        fail("/proc/self/smaps");
    mapping_count = 0;
    while (fgets(line, sizeof(line), file)) {
        struct mapping *next = &mappings[mapping_count];
        char mode[5];

        if (sscanf(line, "%lx-%lx %4s %lx %*x:%*x %lu", &next->start, &next->end, mode,
                   &next->offset, &next->inode) == 5) {
            next->writable = mode[1] == 'w';
            next->sealed = 0;
            if (++mapping_count == MAX_MAPPINGS) {
                fprintf(stderr, "more than %d mappings\n", MAX_MAPPINGS);
                exit(1);
            }
        } else if (!strncmp(line, "VmFlags:", 8)) {
            mappings[mapping_count - 1].sealed = strstr(line, " sl") != NULL;
        }
    }
    fclose(file);
}

static void map_one(unsigned long address, unsigned long pages, int file)
{
    static const int protections[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE};
    int protection = protections[random_below(3)];
    int flags = MAP_FIXED | MAP_PRIVATE, descriptor = file;
    unsigned long offset = random_below(FILE_PAGES - pages) * PAGE;

    if (random_below(4)) {
        flags |= MAP_ANONYMOUS;
        descriptor = -1;
        offset = 0;
    }
    if (mmap((void *)address, pages * PAGE, protection, flags, descriptor, (off_t)offset) ==
        MAP_FAILED)
        fail("mmap");
    if (!random_below(6)) {
        unsigned long skipped = random_below(pages);
        unsigned long sealed = 1 + random_below(pages - skipped);

        if (mseal_range((void *)(address + skipped * PAGE), sealed * PAGE))
            fail("mseal");
    }
}

/* The last mapping is a sealed, inaccessible, anonymous one: every operation finds a refusal. */
static void build(int count)
{
    unsigned long size = (unsigned long)count * 8 * PAGE;
    unsigned long address;
    int file = memfd_create("mappings", 0);

    if (file < 0 || ftruncate(file, FILE_PAGES * PAGE))
        fail("memfd_create");
    area_start = (unsigned long)fenced_pages((size_t)count * 8);
    if (munmap((void *)area_start, size))
        fail("munmap");
    address = area_start;
    for (int i = 1; i < count; i++) {
        unsigned long pages = 1 + random_below(4);

        if (!random_below(3))
            address += (1 + random_below(3)) * PAGE;
        map_one(address, pages, file);
        address += pages * PAGE;
    }
    area_end = address + PAGE;
    if (mmap((void *)address, PAGE, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
        MAP_FAILED)
        fail("mmap");
    if (mseal_range((void *)address, PAGE))
        fail("mseal");
    movable = fenced_pages(FILE_PAGES);
    close(file);
}

static int refuses(const struct mapping *mapping)
{
    return mapping->sealed;
}

/* madvise discards what is writable or comes from a file, sealed or not. */
static int refuses_discard(const struct mapping *mapping)
{
    return mapping->sealed && !mapping->writable && !mapping->inode;
}

/* Find who refuses a call on the range; false when nobody does. `gap`: a hole lies before it. */
static int explain(struct trial *trial, int (*test)(const struct mapping *), int *gap)
{
    unsigned long end = trial->address + trial->length, reached = trial->address;

    trial->walked = 0;
    *gap = 0;
    for (int i = 0; i < mapping_count; i++) {
        const struct mapping *mapping = &mappings[i];

        if (mapping->end <= trial->address)
            continue;
        if (mapping->start >= end)
            return 0;
        *gap |= mapping->start > reached;
        reached = mapping->end;
        trial->walked++;
        if (test(mapping)) {
            trial->refusing = mapping;
            return 1;
        }
    }
    return 0;
}

/* A range that reaches a sealed mapping from at most `near` pages before it. */
static struct trial random_trial(unsigned long near)
{
    struct trial trial = {0};
    unsigned long back, reach;
    int sealed;

    do
        sealed = (int)random_below((unsigned long)mapping_count);
    while (!mappings[sealed].sealed || mappings[sealed].start < area_start ||
           mappings[sealed].end > area_end);
    back = smaller(random_below(near + 1) * PAGE, mappings[sealed].start - area_start);
    reach = smaller((1 + random_below(8)) * PAGE, area_end - mappings[sealed].start);
    trial.address = mappings[sealed].start - back;
    trial.length = back + reach;
    return trial;
}

static int choose_munmap(struct trial *trial)
{
    int gap;

    *trial = random_trial(random_below(16) ? NEAR_PAGES : (area_end - area_start) / PAGE);
    return explain(trial, refuses, &gap);
}

static int make_munmap(const struct trial *trial)
{
    return munmap((void *)trial->address, trial->length);
}

/* A gap before the seal would be ENOMEM. */
static int choose_mprotect(struct trial *trial)
{
    int gap;

    *trial = random_trial(NEAR_PAGES);
    return explain(trial, refuses, &gap) && !gap;
}

static int make_mprotect(const struct trial *trial)
{
    return mprotect((void *)trial->address, trial->length, PROT_READ);
}

static int choose_madvise(struct trial *trial)
{
    int gap;

    *trial = random_trial(NEAR_PAGES);
    return explain(trial, refuses_discard, &gap);
}

static int make_madvise(const struct trial *trial)
{
    return madvise((void *)trial->address, trial->length, MADV_DONTNEED);
}

/* Part of one sealed mapping. */
static int choose_mremap_source(struct trial *trial)
{
    unsigned long skipped;
    int gap;

    *trial = random_trial(0);
    if (!explain(trial, refuses, &gap))
        return 0;
    skipped = random_below((trial->refusing->end - trial->address) / PAGE) * PAGE;
    trial->address += skipped;
    trial->length = smaller(trial->length, trial->refusing->end - trial->address);
    return 1;
}

static int make_mremap_source(const struct trial *trial)
{
    void *moved =
        mremap((void *)trial->address, trial->length, trial->length + 3 * PAGE, MREMAP_MAYMOVE);

    return moved == MAP_FAILED ? -1 : 0;
}

static int choose_mremap_destination(struct trial *trial)
{
    int gap;

    *trial = random_trial(NEAR_PAGES);
    return trial->length <= FILE_PAGES * PAGE && explain(trial, refuses, &gap);
}

static int make_mremap_destination(const struct trial *trial)
{
    void *moved = mremap(movable, trial->length, trial->length, MREMAP_MAYMOVE | MREMAP_FIXED,
                         trial->address);

    return moved == MAP_FAILED ? -1 : 0;
}

/* `choose` finds a range that somebody refuses; `changes`: mappings before the seal may change. */
static const struct {
    const char *operation, *role;
    int (*choose)(struct trial *);
    int (*make)(const struct trial *);
    int changes;
} operations[] = {
    {"munmap", "range", choose_munmap, make_munmap, 0},
    {"mprotect", "range", choose_mprotect, make_mprotect, 1},
    {"madvise", "range", choose_madvise, make_madvise, 0},
    {"mremap", "source", choose_mremap_source, make_mremap_source, 0},
    {"mremap", "destination", choose_mremap_destination, make_mremap_destination, 0},
};
#define OPERATIONS (sizeof(operations) / sizeof(operations[0]))

int main(int argc, char **argv)
{
    int done = 0, trials;

    if (argc < 4 || atoi(argv[1]) < 1) {
        fprintf(stderr, "usage: mappings N TRIALS SEED [--wait]\n");
        return 2;
    }
    trials = atoi(argv[2]);
    srandom((unsigned)atoi(argv[3]));
    build(atoi(argv[1]));
    read_smaps();
    wait_if_asked(argc, argv);
    while (done < trials) {
        size_t which = random_below(OPERATIONS);
        struct trial trial;

        if (!operations[which].choose(&trial))
            continue;
        errno = 0;
        if (operations[which].make(&trial) != -1 || errno != EPERM)
            fail(operations[which].operation);
        printf("{\"operation\": \"%s\", \"role\": \"%s\", \"address\": %lu, \"length\": %lu, "
               "\"sealed_start\": %lu, \"sealed_end\": %lu, \"inode\": %lu, \"offset\": %lu, "
               "\"walked\": %ld}\n",
               operations[which].operation, operations[which].role, trial.address, trial.length,
               trial.refusing->start, trial.refusing->end, trial.refusing->inode,
               trial.refusing->offset, trial.walked);
        done++;
        if (operations[which].changes)
            read_smaps();
    }
    return 0;
}
