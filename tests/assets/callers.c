/*
 * callers [--wait]: a line for each function that calls another: its name, where the call returns
 * to in its file, and how far that is from where it begins. Then, with --wait, waits for its end of
 * input.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static jmp_buf after;
static void *returns;

#define NOINLINE __attribute__((noinline))

static NOINLINE void leaf(void)
{
    returns = __builtin_return_address(0);
}

static NOINLINE __attribute__((noreturn)) void dies(void)
{
    returns = __builtin_return_address(0);
    longjmp(after, 1);
}

static NOINLINE void local(void)
{
    leaf();
    __asm__ volatile("");
}

NOINLINE void exported(void)
{
    leaf();
    __asm__ volatile("");
}

/* Its call is its last instruction. */
NOINLINE void ends_in_a_call(void)
{
    dies();
}

NOINLINE void comes_next(void)
{
    leaf();
    __asm__ volatile("");
}

void method(void) __asm__("_ZN5queue4pushERKSt6vectorIiSaIiEE");
NOINLINE void method(void)
{
    leaf();
    __asm__ volatile("");
}

void crate(void) __asm__(
    "_ZN4core3ptr42drop_in_place$LT$alloc..string..String$GT$17h0123456789abcdefE");
NOINLINE void crate(void)
{
    leaf();
    __asm__ volatile("");
}

static void print_call(const char *name, void (*start)(void))
{
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long low, high, offset, here = (unsigned long)returns;
    char line[4096];

    while (maps && fgets(line, sizeof(line), maps))
        if (sscanf(line, "%lx-%lx %*s %lx", &low, &high, &offset) == 3 && low <= here &&
            here < high)
            printf("%s %lu %lu\n", name, here - low + offset, here - (unsigned long)start);
    fclose(maps);
}

int main(int argc, char **argv)
{
    local();
    print_call("local", local);
    exported();
    print_call("exported", exported);
    if (!setjmp(after))
        ends_in_a_call();
    print_call("ends_in_a_call", ends_in_a_call);
    comes_next();
    print_call("comes_next", comes_next);
    method();
    print_call("method", method);
    crate();
    print_call("crate", crate);
    fflush(stdout);
    if (argc > 1 && !strcmp(argv[1], "--wait"))
        while (getchar() != EOF)
            ;
    return 0;
}
