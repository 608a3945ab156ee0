/* sealed_code [--wait]: seals its own code, then calls work() ten times; prints what it sealed. */
#include "asset.h"

extern char __executable_start, etext;

/* Where a debugger sets its breakpoint. */
__attribute__((noinline)) int work(int number)
{
    __asm__ volatile("");
    return number + 1;
}

int main(int argc, char **argv)
{
    unsigned long start = (unsigned long)&main & ~(PAGE - 1);
    unsigned long end = ((unsigned long)&etext + PAGE - 1) & ~(PAGE - 1);
    int sum = 0;

    if (mseal_range((void *)start, end - start))
        fail("mseal");
    printf("{\"start\": \"%#lx\", \"end\": \"%#lx\", \"pid\": %d}\n", start, end, getpid());
    fflush(stdout);
    wait_if_asked(argc, argv);
    for (int number = 0; number < 10; number++)
        sum = work(sum);
    return sum == 10 ? 0 : 1;
}
