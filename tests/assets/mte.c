/*
 * mte [--wait]: a read through a pointer whose tag is not that of the memory (arm64). Prints the
 * address without a tag, and ends by the fault. Ends with code 77 where memory has no tags.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <sys/auxv.h>
#include <sys/prctl.h>

#ifdef __aarch64__
#define HAS_TAGS (1UL << 18) /* HWCAP2_MTE */
#define PROTECTION_WITH_TAGS 0x20
#define TAGS_AT_ONCE (1UL | 1UL << 1 | 0xfffeUL << 3) /* enabled, synchronous, all but tag 0 */

int main(int argc, char **argv)
{
    char *page, *tagged;

    wait_if_asked(argc, argv);
    if (!(getauxval(AT_HWCAP2) & HAS_TAGS))
        return 77;
    if (prctl(PR_SET_TAGGED_ADDR_CTRL, TAGS_AT_ONCE, 0, 0, 0))
        fail("prctl");
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROTECTION_WITH_TAGS,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        fail("mmap");
    __asm__ volatile(".arch armv8.5-a+memtag\n\tirg %0, %1\n\tstg %0, [%0]"
                     : "=&r"(tagged)
                     : "r"(page)
                     : "memory");
    printf("{\"address\": %lu}\n", (unsigned long)page);
    fflush(stdout);
    return *(volatile char *)((unsigned long)tagged ^ 1UL << 56);
}
#else
int main(void)
{
    return 77;
}
#endif
