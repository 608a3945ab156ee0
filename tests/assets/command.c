/*
 * command MODE [N]: what a test has `seal-monitor exec` run. Its violations are refused attempts to
 * unmap a sealed page, N of them (1 when it is not given), made by
 *   unmap     one function of this process
 *   threads   N threads
 *   children  N short-lived children, one after the other
 *   orphans   N grandchildren whose parents have gone
 *   daemons   the same, in sessions of their own
 * or, in mode `guard`, one write to an inaccessible page, which kills it.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <pthread.h>
#include <sys/wait.h>

#define NOINLINE __attribute__((noinline))

static NOINLINE void unload_table(char *table)
{
    if (!munmap(table, PAGE))
        fail("munmap of a sealed page succeeded");
    __asm__ volatile("");
}

static NOINLINE char *load_table(void)
{
    return sealed_page();
}

static NOINLINE void overrun(char *page)
{
    *(volatile char *)(page + PAGE) = 1;
}

static void *run_thread(void *unused)
{
    unload_table(load_table());
    return unused;
}

static pid_t forked(void)
{
    pid_t child = fork();

    if (child < 0)
        fail("fork");
    return child;
}

/* A child makes a grandchild and ends at once; the pipe closes with the last grandchild. */
static void make_orphans(int count, int with_session)
{
    int ends[2];
    char byte;

    if (pipe(ends))
        fail("pipe");
    for (int i = 0; i < count; i++) {
        if (!forked()) {
            if (with_session)
                setsid();
            if (forked())
                _exit(0);
            usleep(10000); /* its parent has gone by then */
            unload_table(load_table());
            _exit(0);
        }
        wait(NULL);
    }
    close(ends[1]);
    while (read(ends[0], &byte, 1) > 0)
        ;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    int count = argc > 2 ? atoi(argv[2]) : 1;
    pthread_t thread;

    if (!strcmp(mode, "unmap")) {
        char *table = load_table();

        for (int i = 0; i < count; i++)
            unload_table(table);
    } else if (!strcmp(mode, "threads")) {
        for (int i = 0; i < count; i++)
            if (pthread_create(&thread, NULL, run_thread, NULL) || pthread_join(thread, NULL))
                fail("pthread_create");
    } else if (!strcmp(mode, "children")) {
        for (int i = 0; i < count; i++) {
            if (!forked()) {
                unload_table(load_table());
                _exit(0);
            }
            wait(NULL);
        }
    } else if (!strcmp(mode, "orphans") || !strcmp(mode, "daemons")) {
        make_orphans(count, mode[0] == 'd');
    } else if (!strcmp(mode, "guard")) {
        overrun(fenced_pages(1));
    } else {
        fprintf(stderr, "usage: command MODE [N]\n");
        return 2;
    }
    return 0;
}
