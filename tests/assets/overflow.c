/*
 * overflow WHERE HOW [--wait]: uses up a stack, or only seems to. Prints the range of the stack
 * that is meant as {"low": ..., "high": ...}; it ends where a guard begins.
 *
 * WHERE  main (8 MiB at most), thread (the C library's guard), region (a thread, guard region),
 *        bare (a thread, nothing below), context (a stack that the program switches to),
 *        signal (the stack of a signal's handler)
 * HOW    recurse; array (larger than the stack, its end touched); middle (the same, its middle);
 *        null (read through a null pointer and an offset); guard (a wild pointer into the guard);
 *        below (one far below the stack); overrun (upwards out of a buffer into the next guard);
 *        pivot (sp is wild); catch (recurse, and a handler on a stack of its own ends the process)
 *
 * Ends with code 77 where the kernel has no guard regions.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>
#include <ucontext.h>

#define GUARD_INSTALL 102
#define NOT_SUPPORTED 77
#define SIZE (1ul << 20)
#define LARGE (12ul << 20)

static const char *how;
static char *low, *high;
static volatile int sink;

static void report(void)
{
    printf("{\"low\": %lu, \"high\": %lu}\n", (unsigned long)low, (unsigned long)high);
    fflush(stdout);
}

#pragma GCC diagnostic ignored "-Winfinite-recursion"
__attribute__((noinline)) static int recurse(int depth)
{
    volatile char frame[256];

    frame[0] = (char)depth;
    sink = frame[0];
    return recurse(depth + 1) + frame[0];
}

__attribute__((noinline)) static int array_end(void)
{
    volatile char frame[LARGE];

    frame[16] = 1;
    return frame[16];
}

__attribute__((noinline)) static int array_middle(void)
{
    volatile char frame[LARGE];

    frame[LARGE / 4] = 1;
    return frame[LARGE / 4];
}

static void pivot(void)
{
#ifdef __aarch64__
    __asm__ volatile("mov sp, %0\n\tstr x0, [sp, #-16]!" ::"r"(0x414141410000ul));
#else
    __asm__ volatile("mov %0, %%rsp\n\tpush %%rax" ::"r"(0x414141410000ul));
#endif
}

static void strike(void)
{
    report();
    if (!strcmp(how, "recurse") || !strcmp(how, "catch"))
        recurse(0);
    else if (!strcmp(how, "array"))
        array_end();
    else if (!strcmp(how, "middle"))
        array_middle();
    else if (!strcmp(how, "null"))
        sink = *(volatile char *)0x1234;
    else if (!strcmp(how, "guard"))
        *(volatile char *)(low - 16) = 1;
    else if (!strcmp(how, "below"))
        *(volatile char *)(low - (64ul << 20)) = 1;
    else if (!strcmp(how, "overrun"))
        *(volatile char *)(high + 16) = 1;
    else
        pivot();
    fprintf(stderr, "overflow: nothing happened\n");
    _exit(2);
}

static void *on_thread(void *unused)
{
    pthread_attr_t attributes;
    size_t size;
    void *start;

    (void)unused;
    if (!low) { /* the C library's own */
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &start, &size);
        low = start;
        high = low + size;
    }
    strike();
    return NULL;
}

static void on_signal(int number)
{
    (void)number;
    strike();
}

static void on_fault(int number)
{
    _exit(number);
}

static void run_thread(char *stack)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_attr_init(&attributes);
    if (stack && pthread_attr_setstack(&attributes, stack, SIZE))
        fail("pthread_attr_setstack");
    if (!stack)
        pthread_attr_setstacksize(&attributes, SIZE);
    if (pthread_create(&thread, &attributes, on_thread, NULL))
        fail("pthread_create");
    pthread_join(thread, NULL);
}

/* A stack with a page before and one behind that nobody may use. */
static char *fenced_stack(void)
{
    char *pages = mmap(NULL, SIZE + 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (pages == MAP_FAILED || mprotect(pages + 32 * PAGE, SIZE, PROT_READ | PROT_WRITE))
        fail("mmap");
    return pages + 32 * PAGE;
}

/* One mapping of stack and guards, of which the kernel makes guard regions. */
static char *regions(void)
{
    char *pages =
        mmap(NULL, SIZE + 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (pages == MAP_FAILED)
        fail("mmap");
    if (madvise(pages, 32 * PAGE, GUARD_INSTALL) ||
        madvise(pages + 32 * PAGE + SIZE, 32 * PAGE, GUARD_INSTALL)) {
        perror("MADV_GUARD_INSTALL");
        exit(errno == EINVAL ? NOT_SUPPORTED : 1);
    }
    return pages + 32 * PAGE;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_flags = SA_ONSTACK};
    struct rlimit limit = {8ul << 20, RLIM_INFINITY};
    static ucontext_t context, back;
    stack_t alternate = {0};

    if (argc < 3) {
        fprintf(stderr, "usage: overflow WHERE HOW [--wait]\n");
        return 2;
    }
    how = argv[2];
    getrlimit(RLIMIT_STACK, &limit);
    if (limit.rlim_cur > 8ul << 20)
        limit.rlim_cur = 8ul << 20;
    setrlimit(RLIMIT_STACK, &limit);
    wait_if_asked(argc, argv);
    if (!strcmp(how, "catch")) {
        action.sa_handler = on_fault;
        alternate.ss_sp = fenced_stack();
        alternate.ss_size = SIZE;
        sigaltstack(&alternate, NULL);
        sigaction(SIGSEGV, &action, NULL);
    }
    if (!strcmp(argv[1], "main")) {
        high = (char *)__builtin_frame_address(0);
        low = high - limit.rlim_cur;
        strike();
    } else if (!strcmp(argv[1], "thread")) {
        run_thread(NULL);
    } else if (!strcmp(argv[1], "region") || !strcmp(argv[1], "bare")) {
        low = argv[1][0] == 'r' ? regions() : fenced_stack();
        high = low + SIZE;
        if (argv[1][0] == 'b')
            munmap(low - 32 * PAGE, 32 * PAGE);
        run_thread(low);
    } else if (!strcmp(argv[1], "context")) {
        low = fenced_stack();
        high = low + SIZE;
        getcontext(&context);
        context.uc_stack.ss_sp = low;
        context.uc_stack.ss_size = SIZE;
        context.uc_link = &back;
        makecontext(&context, strike, 0);
        swapcontext(&back, &context);
    } else if (!strcmp(argv[1], "signal")) {
        low = alternate.ss_sp = fenced_stack();
        high = low + SIZE;
        alternate.ss_size = SIZE;
        sigaltstack(&alternate, NULL);
        action.sa_handler = on_signal;
        sigaction(SIGUSR1, &action, NULL);
        raise(SIGUSR1);
    }
    return 2;
}
