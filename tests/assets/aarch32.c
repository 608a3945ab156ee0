/*
 * aarch32 [--wait]: for 32-bit programs of arm64. Seals a page, which is then refused an mprotect
 * and an mmap over it. Prints the page and the results.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>

int main(int argc, char **argv)
{
    char *page;
    int protected, mapped;

    wait_if_asked(argc, argv);
    page = sealed_page();
    protected = mprotect(page, PAGE, PROT_READ | PROT_WRITE) ? errno : 0;
    mapped =
        mmap(page, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED
            ? errno
            : 0;
    printf("{\"start\": %lu, \"mprotect\": %d, \"mmap\": %d}\n", (unsigned long)page, protected,
           mapped);
    return 0;
}
