/*
 * bench_workloads: reads directories of cgroups, a line each; enters each one, makes a denied
 * mprotect there, and prints a line.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <fcntl.h>

static void enter(const char *directory)
{
    char path[4096 + sizeof("/cgroup.procs")];
    int file;

    snprintf(path, sizeof(path), "%s/cgroup.procs", directory);
    file = open(path, O_WRONLY);
    if (file < 0 || write(file, "0", 1) != 1 || close(file))
        fail(path);
}

int main(void)
{
    char line[4096], *page = sealed_page();

    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        enter(line);
        if (mprotect(page, PAGE, PROT_READ) != -1 || errno != EPERM)
            fail("mprotect of sealed memory");
        printf("%s\n", line);
        fflush(stdout);
    }
    return 0;
}
