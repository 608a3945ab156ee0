/*
 * slow_lock MEGABYTES THREADS SECONDS
 *
 * Keeps the lock of its own mappings busy: so many threads change the protection of much memory,
 * and whoever wants the lock waits for all of them. Makes ten denied calls a second, at most, and
 * prints how many.
 */
#include "asset.h"

#include <pthread.h>
#include <time.h>

#define DENIALS_A_SECOND 10

static char *area;
static size_t bytes;

static void *keep_busy(void *unused)
{
    (void)unused;
    for (;;) {
        mprotect(area, bytes, PROT_READ);
        mprotect(area, bytes, PROT_READ | PROT_WRITE);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned long threads, denied;
    time_t end;
    char *page = sealed_page();
    pthread_t thread;

    if (argc < 4)
        return 2;
    bytes = strtoul(argv[1], NULL, 10) << 20;
    threads = strtoul(argv[2], NULL, 10);
    end = time(NULL) + atol(argv[3]);
    area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        fail("mmap");
    madvise(area, bytes, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < bytes; at += PAGE)
        area[at] = 1;
    for (; threads; threads--)
        if (pthread_create(&thread, NULL, keep_busy, NULL))
            fail("pthread_create");
    for (denied = 0; time(NULL) < end; denied++) {
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        usleep(1000000 / DENIALS_A_SECOND);
    }
    printf("%lu\n", denied);
    return 0;
}
