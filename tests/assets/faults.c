/*
 * faults THREADS COUNT [--wait]: each thread writes COUNT times into a guard region of its own; a
 * handler takes the fault and jumps back. Prints the number handled.
 *
 * Ends with code 77 where the kernel has no guard regions.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>

#define GUARD_INSTALL 102
#define NOT_SUPPORTED 77

static _Thread_local sigjmp_buf resume;
static _Thread_local char *guard;
static unsigned long count;
static atomic_ulong handled;

static void on_fault(int number, siginfo_t *information, void *context)
{
    (void)number;
    (void)context;
    if (information->si_addr != guard)
        _exit(1);
    atomic_fetch_add(&handled, 1);
    siglongjmp(resume, 1);
}

static void *fault(void *argument)
{
    guard = argument;
    for (volatile unsigned long n = 0; n < count; n++)
        if (!sigsetjmp(resume, 0))
            *(volatile char *)guard = 1;
    return NULL;
}

int main(int argc, char **argv)
{
    /* SA_NODEFER: the handler never returns, so the signal must not stay blocked. */
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    pthread_t *threads;
    int number;

    if (argc < 3 || atoi(argv[1]) < 1) {
        fprintf(stderr, "usage: faults THREADS COUNT [--wait]\n");
        return 2;
    }
    number = atoi(argv[1]);
    count = strtoul(argv[2], NULL, 10);
    if (sigaction(SIGSEGV, &action, NULL))
        fail("sigaction");
    threads = calloc((size_t)number, sizeof(*threads));
    if (!threads)
        fail("calloc");
    wait_if_asked(argc, argv);
    for (int i = 0; i < number; i++) {
        char *page = fenced_pages(3) + PAGE;

        if (madvise(page, PAGE, GUARD_INSTALL)) {
            perror("MADV_GUARD_INSTALL");
            return errno == EINVAL ? NOT_SUPPORTED : 1;
        }
        if (pthread_create(&threads[i], NULL, fault, page))
            fail("pthread_create");
    }
    for (int i = 0; i < number; i++)
        pthread_join(threads[i], NULL);
    printf("{\"threads\": %d, \"handled\": %lu}\n", number, atomic_load(&handled));
    return 0;
}
