/* What the test programs share. Each makes one kind of violation and prints JSON of what it did. */
#ifndef ASSET_H
#define ASSET_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
#define PAGE 4096UL
#else
#define PAGE ((unsigned long)sysconf(_SC_PAGESIZE))
#endif
#define NR_MSEAL 462

#define fail(what)                                                                                 \
    do {                                                                                           \
        perror(what);                                                                              \
        exit(1);                                                                                   \
    } while (0)

static inline long mseal_range(void *start, size_t length)
{
    return syscall(NR_MSEAL, start, length, 0UL);
}

/* Fresh writable pages between two inaccessible ones: they merge with no other mapping. */
static inline char *fenced_pages(size_t count)
{
    char *area = mmap(NULL, (count + 2) * PAGE, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (area == MAP_FAILED)
        fail("mmap");
    if (mprotect(area + PAGE, count * PAGE, PROT_READ | PROT_WRITE))
        fail("mprotect");
    return area + PAGE;
}

/* A sealed read-only page. */
static inline char *sealed_page(void)
{
    char *page = fenced_pages(1);

    if (mprotect(page, PAGE, PROT_READ))
        fail("mprotect");
    if (mseal_range(page, PAGE))
        fail("mseal");
    return page;
}

/* With --wait as the last argument: returns once a byte or the end of standard input arrives. */
static inline void wait_if_asked(int count, char **arguments)
{
    char byte;

    if (count > 1 && !strcmp(arguments[count - 1], "--wait") && read(STDIN_FILENO, &byte, 1) < 0)
        fail("read");
}

#endif
