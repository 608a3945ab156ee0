/*
 * crash WHERE END [--wait]: a fault at an inaccessible page goes to a handler, whose signal is
 * blocked in it (WHERE is blocked), or which has a stack of its own and may be interrupted (stack).
 * END is how that goes on: see main().
 */
#define _GNU_SOURCE
#include "asset.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>

static const char *end;
static char *page;
static sigjmp_buf resume;
static atomic_int is_in_handler;

static void *fault(void *unused)
{
    (void)unused;
    *(volatile char *)page = 1;
    return NULL;
}

static void on_fault(int number)
{
    if (!strcmp(end, "exit"))
        _exit(11);
    if (!strcmp(end, "abort"))
        abort();
    if (!strcmp(end, "pause")) {
        atomic_store(&is_in_handler, 1);
        pause();
    }
    if (!strcmp(end, "exec"))
        execl("/proc/self/exe", "crash", "-", "nothing", NULL);
    if (!strcmp(end, "raise") || !strcmp(end, "default"))
        signal(SIGSEGV, SIG_DFL);
    if (!strcmp(end, "raise"))
        raise(number); /* where it is blocked: once the handler has returned */
    if (!strcmp(end, "jump"))
        siglongjmp(resume, 1);
    if (!strncmp(end, "mend", 4))
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

/* Deeper on the stack than the fault was, with other signals blocked. */
static __attribute__((noinline)) void go_on(void)
{
    volatile char deep[65536];
    sigset_t others;

    deep[0] = 1;
    if (!strcmp(end, "mend and abort"))
        abort();
    if (!strcmp(end, "mend, block and exit")) {
        sigemptyset(&others);
        sigaddset(&others, SIGUSR1);
        sigprocmask(SIG_SETMASK, &others, NULL);
    }
    _exit(deep[0]);
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_fault};
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    pthread_t thread;

    if (argc < 3)
        return 2;
    end = argv[2];
    if (!strcmp(end, "nothing"))
        _exit(0);
    wait_if_asked(argc, argv);
    page = fenced_pages(1);
    if (mprotect(page, PAGE, PROT_NONE))
        fail("mprotect");
    if (!strcmp(argv[1], "stack")) {
        action.sa_flags = SA_ONSTACK | SA_NODEFER;
        sigaltstack(&stack, NULL);
    }
    sigaction(SIGSEGV, &action, NULL);
    if (!strcmp(end, "pause")) {
        pthread_create(&thread, NULL, fault, NULL);
        while (!atomic_load(&is_in_handler))
            usleep(1000);
        go_on();
    }
    if (!sigsetjmp(resume, 1))
        fault(NULL);
    go_on();
}
