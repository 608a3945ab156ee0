/*
 * frames DEPTH outermost|libc denied|jump [--wait]: DEPTH nested calls, each with a frame pointer,
 * then a refused mprotect, or a call of an address that cannot be executed. The chain of frame
 * pointers ends in 0, as at an outermost frame, or goes on in libc. Prints where the function with
 * the violation begins, and where each caller is returned to, innermost first.
 */
#pragma GCC optimize("no-omit-frame-pointer", "no-optimize-sibling-calls")
#define _GNU_SOURCE
#include "asset.h"

#include <setjmp.h>
#include <signal.h>

#define DEPTH_MAX 64

static char *page;
static void *returns[DEPTH_MAX + 2];
static int count, jumps;
static sigjmp_buf after_jump;

/* Calls a function with an argument and a frame pointer of 0. */
void outermost(void (*function)(long), long argument);
#ifdef __aarch64__
__asm__("outermost:\n\t"
        "stp x29, x30, [sp, #-16]!\n\t"
        "mov x29, #0\n\t"
        "mov x2, x0\n\t"
        "mov x0, x1\n\t"
        "blr x2\n\t"
        "ldp x29, x30, [sp], #16\n\t"
        "ret");
#else
__asm__("outermost:\n\t"
        "push %rbp\n\t"
        "xor %ebp, %ebp\n\t"
        "mov %rdi, %rax\n\t"
        "mov %rsi, %rdi\n\t"
        "call *%rax\n\t"
        "pop %rbp\n\t"
        "ret");
#endif

static void __attribute__((noinline)) violate(void)
{
    returns[count++] = __builtin_return_address(0);
    if (jumps)
        ((void (*)(void))page)();
    else
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
    __asm__ volatile("" ::: "memory");
}

static void __attribute__((noinline)) descend(long depth)
{
    returns[count++] = __builtin_return_address(0);
    if (depth)
        descend(depth - 1);
    else
        violate();
    __asm__ volatile("" ::: "memory");
}

static void on_segv(int signal)
{
    (void)signal;
    siglongjmp(after_jump, 1);
}

int main(int argc, char **argv)
{
    long depth = argc > 3 ? strtol(argv[1], NULL, 10) : -1;

    if (depth < 0 || depth >= DEPTH_MAX) {
        fprintf(stderr, "usage: frames DEPTH outermost|libc denied|jump [--wait]\n");
        return 2;
    }
    jumps = !strcmp(argv[3], "jump");
    page = jumps ? fenced_pages(1) : sealed_page();
    wait_if_asked(argc, argv);
    signal(SIGSEGV, on_segv);
    if (!sigsetjmp(after_jump, 1)) {
        if (!strcmp(argv[2], "outermost"))
            outermost(descend, depth);
        else
            descend(depth);
    }
    printf("{\"violate\": %lu, \"returns\": [", (unsigned long)violate);
    while (count > 0)
        printf("%lu, ", (unsigned long)returns[--count]);
    printf("%lu]}\n", (unsigned long)__builtin_return_address(0));
    return 0;
}
