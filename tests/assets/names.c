/*
 * names HEX [--wait]: takes the bytes given in hexadecimal (up to 15) as its name, makes one denied
 * mprotect and prints errno.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    char name[16] = {0};
    char *page = sealed_page();
    size_t length = argc > 1 ? strlen(argv[1]) / 2 : 0;

    if (!length || length >= sizeof(name)) {
        fprintf(stderr, "usage: names HEX [--wait]: 1 to 15 bytes\n");
        return 2;
    }
    for (size_t i = 0; i < length; i++) {
        unsigned int byte;

        if (sscanf(argv[1] + 2 * i, "%2x", &byte) != 1)
            return 2;
        name[i] = (char)byte;
    }
    if (prctl(PR_SET_NAME, name))
        fail("prctl");
    wait_if_asked(argc, argv);
    if (!mprotect(page, PAGE, PROT_READ | PROT_WRITE))
        errno = 0;
    printf("{\"errno\": %d}\n", errno);
    return 0;
}
