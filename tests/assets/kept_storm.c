/*
 * Refusals and faults from THREADS threads, until it is asked to end; then it prints what it made.
 *
 *     kept_storm MICROSECONDS      from one to the next, of each thread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 8
#define PAGE 4096
#define SYS_MSEAL 462
#define MADV_GUARD 102

static volatile sig_atomic_t ending;
static unsigned long denials[THREADS], faults[THREADS];
static useconds_t pause_us;
static __thread sigjmp_buf back;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

static void on_end(int number)
{
    (void)number;
    ending = 1;
}

static void *storm(void *argument)
{
    long thread = (long)argument;
    char *sealed = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *guard = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (sealed == MAP_FAILED || guard == MAP_FAILED || syscall(SYS_MSEAL, sealed, PAGE, 0))
        abort();
    if (madvise(guard, PAGE, MADV_GUARD))
        abort();
    while (!ending) {
        if (thread % 2) {
            if (mprotect(sealed, PAGE, PROT_READ | PROT_WRITE) != -1)
                abort();
            denials[thread]++;
        } else if (!sigsetjmp(back, 1)) {
            *(volatile char *)guard = 1;
            abort();
        } else {
            faults[thread]++;
        }
        usleep(pause_us);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    struct sigaction fault = {.sa_handler = on_fault}, end = {.sa_handler = on_end};
    pthread_t threads[THREADS];
    unsigned long all_denials = 0, all_faults = 0;

    pause_us = count > 1 ? (useconds_t)atoi(arguments[1]) : 1000;
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGTERM, &end, NULL);
    for (long each = 0; each < THREADS; each++)
        pthread_create(&threads[each], NULL, storm, (void *)each);
    for (int each = 0; each < THREADS; each++) {
        pthread_join(threads[each], NULL);
        all_denials += denials[each];
        all_faults += faults[each];
    }
    printf("%lu %lu\n", all_denials, all_faults);
    return 0;
}
