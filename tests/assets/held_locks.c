/*
 * held_locks PROCESSES MEGABYTES HOGS
 *
 * Each process holds the lock of its own mappings for seconds at a time: a thread that runs only
 * when nobody else wants its CPU changes the protection of much memory, and HOGS processes want
 * that CPU all the time. The main thread of each makes denied calls. Prints the pids once the
 * locks are held; ends when its input does.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>

static char *area;
static size_t bytes;

static void on_one_cpu(void)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof(one), &one);
}

static void *hold(void *unused)
{
    struct sched_param none = {0};

    (void)unused;
    on_one_cpu();
    if (sched_setscheduler(0, SCHED_IDLE, &none))
        fail("sched_setscheduler");
    for (;;) {
        mprotect(area, bytes, PROT_READ);
        mprotect(area, bytes, PROT_READ | PROT_WRITE);
    }
    return NULL;
}

/* Never returns. */
static void locker(int ready)
{
    char *page = sealed_page();
    pthread_t thread;

    area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        fail("mmap");
    madvise(area, bytes, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < bytes; at += PAGE)
        area[at] = 1;
    if (write(ready, "x", 1) != 1 || pthread_create(&thread, NULL, hold, NULL))
        fail("a process");
    for (;;) {
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        usleep(100000);
    }
}

static void hog(void)
{
    on_one_cpu();
    for (;;)
        ;
}

static pid_t start(int ready)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0)
        fail("fork");
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    if (ready < 0)
        hog();
    locker(ready);
    return 0;
}

int main(int argc, char **argv)
{
    int ready[2], count, hogs;
    char byte;

    if (argc < 4 || pipe(ready))
        return 2;
    count = atoi(argv[1]);
    bytes = strtoul(argv[2], NULL, 10) << 20;
    hogs = atoi(argv[3]);
    for (int n = 0; n < count; n++)
        printf("%d ", start(ready[1]));
    for (int n = 0; n < count; n++)
        if (read(ready[0], &byte, 1) != 1)
            fail("read");
    for (; hogs; hogs--)
        start(-1);
    puts("");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
