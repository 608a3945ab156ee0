/*
 * flood callers COUNT SECONDS     one process, denied calls from COUNT places in turn
 * flood steps COUNT               the same, each call when a byte comes from standard input
 * flood processes COUNT SECONDS   processes one after the other, COUNT denied calls each
 * flood faults SECONDS            processes one after the other that die at a guard page
 * flood subordinates SECONDS      processes one after the other of users from 100000 on
 * flood namespace SECONDS         the same in a user namespace of nobody's
 * flood scopes COUNT CGROUP       a denied call in each of COUNT cgroups that it makes in CGROUP
 *
 * Until SECONDS have passed, or the input ends. Prints how many violations there were. Of
 * subordinates and namespace root starts the processes, as newuidmap(1) does, and makes no
 * violation.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define NOBODY 65534
#define FIRST_SUBORDINATE 100000
#define SUBORDINATES 65536
#define STUB 16 /* bytes for each caller */

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* From one place, whichever kind of flood it is: their events have one fingerprint. */
static __attribute__((noinline)) void deny(char *page)
{
    if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) != -1 || errno != EPERM)
        fail("mprotect");
}

/* A wrapper of mprotect, then functions that call it, each by a return address of its own. */
static unsigned char *lay_callers(long count)
{
    static const unsigned char wrapper[] = {0xb8, 10, 0, 0, 0, 0x0f, 0x05, 0xc3};
    size_t size = ((size_t)count + 1) * STUB;
    unsigned char *code =
        mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (code == MAP_FAILED)
        fail("mmap");
    memcpy(code, wrapper, sizeof(wrapper));
    for (long each = 1; each <= count; each++) {
        unsigned char *at = code + each * STUB;
        int relative = (int)(code - (at + 6));

        *at = 0x50; /* push rax: the stack is aligned */
        at[1] = 0xe8;
        memcpy(at + 2, &relative, 4);
        at[6] = 0x59;
        at[7] = 0xc3;
    }
    return code;
}

static void deny_from(unsigned char *code, long each, char *page)
{
    ((long (*)(void *, size_t, int))(code + each * STUB))(page, PAGE, PROT_READ | 2);
}

static unsigned long callers(long count, double end)
{
    unsigned char *code = lay_callers(count);
    char *page = sealed_page();
    unsigned long made = 0;

    while (now() < end)
        for (long each = 1; each <= count; each++, made++)
            deny_from(code, each, page);
    return made;
}

static unsigned long steps(long count)
{
    unsigned char *code = lay_callers(count);
    char *page = sealed_page(), byte;
    long made = 0;

    for (; read(STDIN_FILENO, &byte, 1) == 1; made++)
        deny_from(code, 1 + made % count, page);
    return (unsigned long)made;
}

static void one_after_the_other(void (*live)(long), long argument, double end, unsigned long *made)
{
    for (; now() < end; ++*made) {
        pid_t child = fork();

        if (child < 0)
            fail("fork");
        if (!child) {
            live(argument < 0 ? (long)*made : argument);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
}

static void denied_often(long count)
{
    char *page = sealed_page();

    while (count--)
        deny(page);
}

static void dies_at_a_guard(long unused)
{
    (void)unused;
    *(volatile char *)(fenced_pages(1) + PAGE) = 1;
}

static void of_user(uid_t user)
{
    if (setresgid(user, user, user) || setresuid(user, user, user))
        fail("setresuid");
    denied_often(1);
}

static void of_subordinate(long number)
{
    of_user(FIRST_SUBORDINATE + (uid_t)(number % SUBORDINATES));
}

static void of_namespace(long number)
{
    of_user(1 + (uid_t)(number % (SUBORDINATES - 1)));
}

static void map(pid_t process, const char *name)
{
    char path[64], line[64];
    int file, length = snprintf(line, sizeof(line), "0 %d %d\n", FIRST_SUBORDINATE, SUBORDINATES);

    snprintf(path, sizeof(path), "/proc/%d/%s", process, name);
    file = open(path, O_WRONLY);
    if (file < 0 || write(file, line, (size_t)length) != length)
        fail(path);
    close(file);
}

static void in_namespace(double end, unsigned long *made)
{
    int ready[2], mapped[2], result;
    pid_t child;
    char byte = 0;

    if (pipe(ready) || pipe(mapped) || (child = fork()) < 0)
        fail("pipe");
    if (!child) {
        if (setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY) ||
            prctl(PR_SET_DUMPABLE, 1) || unshare(CLONE_NEWUSER))
            fail("unshare");
        if (write(ready[1], "", 1) != 1 || read(mapped[0], &byte, 1) != 1)
            fail("pipe");
        if (setresuid(0, 0, 0))
            fail("setresuid");
        one_after_the_other(of_namespace, -1, end, made);
        if (write(ready[1], made, sizeof(*made)) != sizeof(*made))
            fail("pipe");
        _exit(0);
    }
    if (read(ready[0], &byte, 1) != 1)
        fail("pipe");
    map(child, "uid_map");
    map(child, "gid_map");
    result = write(mapped[1], "", 1) == 1 && read(ready[0], made, sizeof(*made)) > 0;
    waitpid(child, NULL, 0);
    if (!result)
        fail("namespace");
}

static void enter(const char *cgroup)
{
    char path[4200];
    int file;

    snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
    file = open(path, O_WRONLY);
    if (file < 0 || write(file, "0", 1) != 1)
        fail(path);
    close(file);
}

static unsigned long scopes(long count, const char *cgroup)
{
    char *page = sealed_page(), path[PATH_MAX];

    for (long each = 0; each < count; each++) {
        snprintf(path, sizeof(path), "%s/%ld.scope", cgroup, each);
        if (mkdir(path, 0755))
            fail(path);
        enter(path);
        deny(page);
        enter(cgroup);
    }
    return (unsigned long)count;
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";
    long count = argc > 2 ? strtol(argv[2], NULL, 10) : -1;
    double end = now() + (argc > 2 ? strtod(argv[argc - 1], NULL) : 0);
    unsigned long made = 0;

    if (!strcmp(kind, "callers") && argc > 3 && count > 0)
        made = callers(count, end);
    else if (!strcmp(kind, "steps") && count > 0)
        made = steps(count);
    else if (!strcmp(kind, "processes") && argc > 3 && count > 0)
        one_after_the_other(denied_often, count, end, &made), made *= (unsigned long)count;
    else if (!strcmp(kind, "faults"))
        one_after_the_other(dies_at_a_guard, 0, end, &made);
    else if (!strcmp(kind, "subordinates"))
        one_after_the_other(of_subordinate, -1, end, &made);
    else if (!strcmp(kind, "namespace"))
        in_namespace(end, &made);
    else if (!strcmp(kind, "scopes") && argc > 3 && count > 0)
        made = scopes(count, argv[3]);
    else {
        fprintf(stderr, "usage: flood callers|processes COUNT SECONDS, flood steps COUNT, "
                        "flood faults|subordinates|namespace SECONDS, "
                        "flood scopes COUNT CGROUP\n");
        return 2;
    }
    printf("%lu\n", made);
    return 0;
}
