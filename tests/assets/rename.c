/*
 * rename PROGRAM [ARGUMENT...]
 *
 * Makes a denied call and executes another program at once: whoever looks then finds that one.
 */
#include "asset.h"

int main(int argc, char **argv)
{
    char *page = sealed_page();

    if (argc < 2)
        return 2;
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);
    execv(argv[1], argv + 1);
    fail("execv");
}
