/*
 * behind BEFORE HOLES OTHERS [--wait]: one sealed page behind BEFORE mappings, of which no two can
 * be merged, with holes between them or none, in a process with OTHERS more. Unmaps all of the
 * range. Prints the error and the sealed page.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>

/* So many mappings, `step` pages from each other. */
static char *unlike_neighbours(size_t count, size_t step, size_t more)
{
    char *pages = fenced_pages(count * step + more);

    for (size_t n = 0; n < count; n++) {
        char *page = pages + n * step * PAGE;

        if (n % 2 == 0 && mprotect(page, PAGE, PROT_READ))
            fail("mprotect");
        if (step > 1 && munmap(page + PAGE, (step - 1) * PAGE))
            fail("munmap");
    }
    return pages;
}

int main(int argc, char **argv)
{
    size_t before, step;
    char *pages, *sealed;
    int error;

    if (argc < 4) {
        fprintf(stderr, "usage: behind BEFORE HOLES OTHERS [--wait]\n");
        return 2;
    }
    wait_if_asked(argc, argv);
    before = strtoul(argv[1], NULL, 10);
    step = strtoul(argv[2], NULL, 10) ? 2 : 1;
    unlike_neighbours(strtoul(argv[3], NULL, 10), 1, 0);
    pages = unlike_neighbours(before, step, 1);
    sealed = pages + before * step * PAGE;
    if (mprotect(sealed, PAGE, PROT_READ) || mseal_range(sealed, PAGE))
        fail("mseal");
    error = munmap(pages, (size_t)(sealed - pages) + PAGE) ? errno : 0;
    printf("{\"error\": %d, \"sealed\": %lu}\n", error, (unsigned long)sealed);
    return 0;
}
