/* seals COUNT [--wait]: seals COUNT pages, one call each; prints the calls and the bytes. */
#define _GNU_SOURCE
#include "asset.h"

int main(int argc, char **argv)
{
    unsigned long count;
    char *pages;

    if (argc < 2) {
        fprintf(stderr, "usage: seals COUNT [--wait]\n");
        return 2;
    }
    count = strtoul(argv[1], NULL, 10);
    pages = fenced_pages(count);
    wait_if_asked(argc, argv);
    for (unsigned long i = 0; i < count; i++)
        if (mseal_range(pages + i * PAGE, PAGE))
            fail("mseal");
    printf("{\"seals\": %lu, \"bytes\": %lu}\n", count, count * PAGE);
    return 0;
}
