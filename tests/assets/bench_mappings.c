/*
 * bench_mappings BATCHES CALLS COUNT
 *
 * What a denied mprotect costs in a process of exactly COUNT mappings. A process of one mapping has
 * no stack, no libc and no data: a child keeps only the sealed page that it runs on and COUNT - 1
 * others around it, makes its calls from there and writes their time to a pipe. Prints a JSON
 * object: `mappings`, how many the kernel says it had; `denied`, how many calls were refused; `ns`
 * per call of each batch.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <x86intrin.h>

/* Far from where the kernel puts anything by itself. */
#define BASE 0x100000000000UL
#define USER_END 0x7ffffffff000UL

/*
 * The child's life from here on: it stops, so that its mappings can be counted, then makes batches
 * of refused calls and writes how many ticks each took. All it knows is in registers; to write, it
 * maps a page and takes it away again.
 *
 * rbx: batches; r12: calls of each; r13: the sealed page, this one; r14: the pipe; rbp: the
 * mappings' start; r15: their end.
 */
asm(".globl bare, bare_end\n"
    "bare:\n"
    "    xor %edi, %edi\n" /* munmap all below, and all above */
    "    mov %rbp, %rsi\n"
    "    mov $11, %eax\n"
    "    syscall\n"
    "    test %rax, %rax\n"
    "    jnz 9f\n"
    "    mov %r15, %rdi\n"
    "    mov $0x7ffffffff000, %rsi\n"
    "    sub %r15, %rsi\n"
    "    mov $11, %eax\n"
    "    syscall\n"
    "    test %rax, %rax\n"
    "    jnz 9f\n"
    "    mov $39, %eax\n" /* kill(getpid(), SIGSTOP) */
    "    syscall\n"
    "    mov %eax, %edi\n"
    "    mov $19, %esi\n"
    "    mov $62, %eax\n"
    "    syscall\n"
    "1:  lfence\n"
    "    rdtsc\n"
    "    shl $32, %rdx\n"
    "    lea (%rdx,%rax), %rbp\n"
    "    mov %r12, %r15\n"
    "2:  mov %r13, %rdi\n" /* mprotect(page, 4096, PROT_READ) */
    "    mov $4096, %esi\n"
    "    mov $1, %edx\n"
    "    mov $10, %eax\n"
    "    syscall\n"
    "    cmp $-1, %rax\n"
    "    jne 9f\n"
    "    dec %r15\n"
    "    jnz 2b\n"
    "    lfence\n"
    "    rdtsc\n"
    "    shl $32, %rdx\n"
    "    add %rdx, %rax\n"
    "    sub %rbp, %rax\n"
    "    mov %rax, %rbp\n"
    "    xor %edi, %edi\n" /* mmap(0, 4096, rw, private anonymous, -1, 0) */
    "    mov $4096, %esi\n"
    "    mov $3, %edx\n"
    "    mov $0x22, %r10d\n"
    "    mov $-1, %r8\n"
    "    xor %r9d, %r9d\n"
    "    mov $9, %eax\n"
    "    syscall\n"
    "    mov %rax, %r15\n"
    "    mov %rbp, (%r15)\n"
    "    mov %r14d, %edi\n" /* write(pipe, page, 8) */
    "    mov %r15, %rsi\n"
    "    mov $8, %edx\n"
    "    mov $1, %eax\n"
    "    syscall\n"
    "    cmp $8, %rax\n"
    "    jne 9f\n"
    "    mov %r15, %rdi\n"
    "    mov $4096, %esi\n"
    "    mov $11, %eax\n"
    "    syscall\n"
    "    dec %rbx\n"
    "    jnz 1b\n"
    "    xor %edi, %edi\n"
    "    mov $231, %eax\n"
    "    syscall\n"
    "9:  mov $1, %edi\n" /* exit_group */
    "    mov $231, %eax\n"
    "    syscall\n"
    "bare_end:\n");
extern const char bare[], bare_end[];

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* COUNT mappings in a row, neighbours unlike each other; the one in their midst is code. */
static char *lay_out(size_t count)
{
    char *area = mmap((void *)BASE, count * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    char *code = area + count / 2 * PAGE;

    if (area == MAP_FAILED)
        fail("mmap");
    memcpy(code, bare, (size_t)(bare_end - bare));
    for (size_t i = 0; i < count; i++) {
        char *page = area + i * PAGE;
        int protection = (i ^ count / 2) & 1 ? PROT_NONE : PROT_READ;

        if (mprotect(page, PAGE, page == code ? PROT_READ | PROT_EXEC : protection))
            fail("mprotect");
    }
    if (mseal_range(code, PAGE))
        fail("mseal");
    return code;
}

static void become_bare(size_t count, unsigned long batches, unsigned long calls, int pipe)
{
    register char *code asm("r13") = lay_out(count);
    register unsigned long number asm("r12") = calls;
    register unsigned long out asm("r14") = (unsigned long)pipe;
    register unsigned long end asm("r15") = BASE + count * PAGE;

    /* The stack pointer will point at something readable, as it always does. */
    asm volatile("mov %0, %%rbx\n"
                 "mov %1, %%rbp\n"
                 "mov %%r13, %%rsp\n"
                 "jmp *%%r13\n"
                 :
                 : "a"(batches), "d"(BASE), "r"(code), "r"(number), "r"(out), "r"(end)
                 : "memory");
    __builtin_unreachable();
}

static int mappings_of(pid_t pid)
{
    char path[32];
    FILE *file;
    int lines = 0, character;

    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    file = fopen(path, "r");
    if (!file)
        fail(path);
    while ((character = getc(file)) != EOF)
        lines += character == '\n';
    fclose(file);
    return lines;
}

/* The vsyscall page is in every list and is no mapping. */
static int has_vsyscall(void)
{
    char line[512];
    FILE *file = fopen("/proc/self/maps", "r");
    int found = 0;

    if (!file)
        fail("/proc/self/maps");
    while (fgets(line, sizeof(line), file))
        found |= strstr(line, "[vsyscall]") != NULL;
    fclose(file);
    return found;
}

/* At its every return from an interrupt the kernel would write into what glibc registered. */
static void do_without_rseq(char **argv)
{
    static const char tunable[] = "glibc.pthread.rseq=0";
    const char *set = getenv("GLIBC_TUNABLES");

    if (set && !strcmp(set, tunable))
        return;
    setenv("GLIBC_TUNABLES", tunable, 1);
    execv("/proc/self/exe", argv);
    fail("execv");
}

int main(int argc, char **argv)
{
    unsigned long batches, calls, count, ticks, made = 0;
    double begin = now(), ns_per_tick, *ns;
    unsigned long long first = __rdtsc();
    int channel[2], status, mappings;
    pid_t child;

    if (argc != 4)
        goto usage;
    batches = strtoul(argv[1], NULL, 10);
    calls = strtoul(argv[2], NULL, 10);
    count = strtoul(argv[3], NULL, 10);
    if (!batches || !calls || !count)
        goto usage;
    do_without_rseq(argv);
    ns = calloc(batches, sizeof(*ns));
    if (!ns || pipe2(channel, O_CLOEXEC))
        fail("pipe");
    child = fork();
    if (child < 0)
        fail("fork");
    if (!child)
        become_bare(count, batches + 1, calls, channel[1]); /* the first one warms up */
    close(channel[1]);
    if (waitpid(child, &status, WUNTRACED) != child)
        fail("waitpid");
    if (!WIFSTOPPED(status)) {
        fprintf(stderr, "the child cannot give up its mappings: status %d\n", status);
        return 1;
    }
    mappings = mappings_of(child) - has_vsyscall();
    kill(child, SIGCONT);
    while (read(channel[0], &ticks, sizeof(ticks)) == sizeof(ticks)) {
        if (made++)
            ns[made - 2] = (double)ticks / (double)calls;
    }
    if (waitpid(child, &status, 0) != child || status || made != batches + 1) {
        fprintf(stderr, "the child ended with status %d after %lu batches\n", status, made);
        return 1;
    }
    ns_per_tick = (now() - begin) / (double)(__rdtsc() - first);
    printf("{\"mappings\": %d, \"denied\": %lu, \"ns\": [", mappings, made * calls);
    for (unsigned long i = 0; i < batches; i++)
        printf("%s%.2f", i ? ", " : "", ns[i] * ns_per_tick);
    printf("]}\n");
    return 0;

usage:
    fprintf(stderr, "usage: bench_mappings BATCHES CALLS COUNT\n");
    return 2;
}
