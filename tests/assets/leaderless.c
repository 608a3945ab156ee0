/*
 * leaderless [--with-leader]
 *
 * Seals a page. Its first thread ends, or waits; another prints its id and the page's address once
 * that has happened, and makes a denied call for each byte of standard input, with a line for each.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <pthread.h>
#include <stdbool.h>

static char *page;
static bool with_leader;

/* As the kernel has it: S, or Z once the first thread has ended. */
static char leaders_state(void)
{
    char text[512], path[64];
    FILE *file;
    size_t length;

    snprintf(path, sizeof(path), "/proc/%d/stat", getpid());
    file = fopen(path, "r");
    if (!file)
        fail("stat");
    length = fread(text, 1, sizeof(text) - 1, file);
    text[length] = 0;
    fclose(file);
    return strrchr(text, ')')[2];
}

static void *go_on(void *unused)
{
    char byte;

    while (!with_leader && leaders_state() != 'Z')
        usleep(1000);
    printf("%d %lu\n", gettid(), (unsigned long)page);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) == 1) {
        printf("%d\n", mprotect(page, PAGE, PROT_READ | PROT_WRITE));
        fflush(stdout);
    }
    exit(0);
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    with_leader = argc > 1 && !strcmp(argv[1], "--with-leader");
    page = sealed_page();
    if (pthread_create(&thread, NULL, go_on, NULL))
        fail("pthread_create");
    if (with_leader)
        pthread_join(thread, NULL);
    pthread_exit(NULL);
}
