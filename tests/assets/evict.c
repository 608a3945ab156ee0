/* evict N DIRECTORY: N faults, each in an inaccessible mapping of a file just renamed. */
#include "asset.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf back;

static void handle(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

int main(int count, char **words)
{
    long faults = count == 3 ? atol(words[1]) : 0;
    char name[256], next[256];
    char *page;
    int file;

    if (faults <= 0)
        return 2;
    snprintf(name, sizeof(name), "%s/f", words[2]);
    file = open(name, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, PAGE))
        fail("open");
    page = mmap(NULL, PAGE, PROT_NONE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED)
        fail("mmap");
    signal(SIGSEGV, handle);
    for (long made = 0; made < faults; made++) {
        snprintf(next, sizeof(next), "%s/f%ld", words[2], made);
        if (rename(name, next))
            fail("rename");
        strcpy(name, next);
        if (!sigsetjmp(back, 1))
            *(volatile char *)page = 1;
        usleep(1000);
    }
    return 0;
}
