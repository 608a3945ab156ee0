/*
 * mte at-once|later [--wait]: a write by a pointer whose tag is not that of the memory (arm64), and
 * then a system call. Prints the address without a tag, and ends by the fault: at once, or where
 * the kernel next looks. Ends with code 77 where memory has no tags.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <sys/auxv.h>
#include <sys/prctl.h>

#ifdef __aarch64__
#define HAS_TAGS (1UL << 18) /* HWCAP2_MTE */
#define PROTECTION_WITH_TAGS 0x20
#define TAGS (1UL | 0xfffeUL << 3) /* enabled, all but tag 0 */
#define AT_ONCE (1UL << 1)
#define LATER (1UL << 2)

int main(int argc, char **argv)
{
    char *page, *tagged;
    unsigned long when = argc > 1 && !strcmp(argv[1], "later") ? LATER : AT_ONCE;

    wait_if_asked(argc, argv);
    if (!(getauxval(AT_HWCAP2) & HAS_TAGS))
        return 77;
    if (prctl(PR_SET_TAGGED_ADDR_CTRL, TAGS | when, 0, 0, 0))
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
    *(volatile char *)((unsigned long)tagged ^ 1UL << 56) = 1;
    getppid();
    return 1;
}
#else
int main(void)
{
    return 77;
}
#endif
