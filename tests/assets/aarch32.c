/*
 * aarch32 [--wait]: for 32-bit programs of arm64. Seals a page, which is then refused an mprotect,
 * an mmap over it and a process_madvise; writes to it, and sends itself copies of the fault's
 * siginfo by each call that takes one. Prints the page, the errors, and how many signals came.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/uio.h>

#define COPIES 100

static siginfo_t first;
static volatile int taken;
static sigjmp_buf resume;

static void on_fault(int number, siginfo_t *information, void *context)
{
    (void)number;
    (void)context;
    if (taken++)
        return;
    first = *information;
    siglongjmp(resume, 1);
}

static void send_copies(void)
{
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);

    for (int n = 0; n < COPIES; n++)
        if (syscall(SYS_rt_sigqueueinfo, getpid(), SIGSEGV, &first) ||
            syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGSEGV, &first) ||
            syscall(SYS_pidfd_send_signal, pidfd, SIGSEGV, &first, 0))
            fail("queue");
}

/* Of two ranges, the first of which is empty. */
static int discard_by_vector(char *page)
{
    struct iovec ranges[] = {{page, 0}, {page, PAGE}};
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);

    return syscall(SYS_process_madvise, pidfd, ranges, 2, MADV_DONTNEED, 0) < 0 ? errno : 0;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    int protected, mapped, discarded;
    char *page;

    wait_if_asked(argc, argv);
    page = sealed_page();
    protected = mprotect(page, PAGE, PROT_READ | PROT_WRITE) ? errno : 0;
    mapped =
        mmap(page, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED
            ? errno
            : 0;
    discarded = discard_by_vector(page);
    if (sigaction(SIGSEGV, &action, NULL))
        fail("sigaction");
    if (!sigsetjmp(resume, 1))
        *(volatile char *)(page + 5) = 1;
    send_copies();
    printf("{\"start\": %lu, \"mprotect\": %d, \"mmap\": %d, \"process_madvise\": %d, "
           "\"signals\": %d}\n",
           (unsigned long)page, protected, mapped, discarded, taken);
    return 0;
}
