/* free_sealed [--wait]: seals a part of a large block and frees it. For any C library. */
#include "asset.h"

int main(int argc, char **argv)
{
    char *block;

    wait_if_asked(argc, argv);
    block = malloc(4 << 20);
    if (!block)
        fail("malloc");
    if (mseal_range((void *)(((size_t)block + PAGE - 1) & ~(PAGE - 1)), 16 * PAGE))
        fail("mseal");
    free(block);
    return 0;
}
