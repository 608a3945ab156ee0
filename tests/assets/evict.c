/*
 * evict N DIRECTORY [SECONDS]: N faults, each in an inaccessible mapping of a file just renamed, or
 * as many as there are in SECONDS. Prints how many there were.
 */
#include "asset.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <time.h>

static sigjmp_buf back;
static long made;

static void handle(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

int main(int count, char **words)
{
    long faults = count > 2 ? atol(words[1]) : 0;
    time_t end = count > 3 ? time(NULL) + atol(words[3]) : 0;
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
    for (; made < faults && (!end || time(NULL) < end); made++) {
        snprintf(next, sizeof(next), "%s/f%ld", words[2], made);
        if (rename(name, next))
            fail("rename");
        strcpy(name, next);
        if (!sigsetjmp(back, 1))
            *(volatile char *)page = 1;
        usleep(1000);
    }
    printf("%ld\n", made);
    return 0;
}
