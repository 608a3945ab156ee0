/* What is each processor's own in the test programs: registers, and machine code that C cannot say.
 */
#ifndef PROCESSOR_H
#define PROCESSOR_H

#include <elf.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>

#if defined(__x86_64__)

#define PROGRAM_COUNTER rip
#define CALL_NUMBER orig_rax
#define CALL_RESULT rax
#define FIRST_ARGUMENT rdi
#define THIRD_ARGUMENT rdx

/* A store of one byte, by an instruction of STORE_SIZE bytes. */
#define STORE_SIZE 3
static inline void store_byte(char *address)
{
    asm volatile("movb $1, (%%rax)" : : "a"(address) : "memory");
}

/* A system call, by code that needs neither libc nor a stack. */
static inline __attribute__((always_inline)) long bare_call(long number, long first, long second,
                                                            long third)
{
    long result;

    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(first), "S"(second), "d"(third)
                 : "rcx", "r11", "memory");
    return result;
}

/* A system call of two arguments while the stack pointer is `stack`. */
static inline long call_on_stack(long number, long first, long second, void *stack)
{
    long result;

    asm volatile("mov %%rsp, %%rbx; mov %4, %%rsp; syscall; mov %%rbx, %%rsp"
                 : "=a"(result)
                 : "a"(number), "D"(first), "S"(second), "r"(stack)
                 : "rbx", "rcx", "r11", "memory");
    return result;
}

/* The same with what looks like a return to `address`, as a wrapper of a library has it. */
static inline long call_returning_to(long number, long first, long second, void *address)
{
    void *words[2] = {address, NULL};

    return call_on_stack(number, first, second, words);
}

/* Leaves all that the caller had: continues at `code` on another stack. */
static inline __attribute__((noreturn)) void jump_on_stack(void *code, void *stack, void *argument)
{
    asm volatile("mov %1, %%rsp; push $0; jmp *%0"
                 :
                 : "r"(code), "r"(stack), "D"(argument)
                 : "memory");
    __builtin_unreachable();
}

/* A clock that counts evenly. */
static inline __attribute__((always_inline)) uint64_t ticks(void)
{
    uint32_t low, high;

    asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

/* rt_tgsigqueueinfo as 32-bit programs call it; `low` is a siginfo below 4 GiB. */
#define HAS_32_BIT_CALLS 1
#define LOW MAP_32BIT
static inline long queue_by_32_bits(pid_t process, pid_t thread, int number, void *low)
{
    long result;

    asm volatile("int $0x80"
                 : "=a"(result)
                 : "a"(335), "b"(process), "c"(thread), "d"(number), "S"(low)
                 : "memory");
    return result;
}

#elif defined(__aarch64__)

#define PROGRAM_COUNTER pc
#define CALL_NUMBER regs[8]
#define CALL_RESULT regs[0]
#define FIRST_ARGUMENT regs[0]
#define THIRD_ARGUMENT regs[2]

#define STORE_SIZE 4
static inline void store_byte(char *address)
{
    asm volatile("strb w0, [%0]" : : "r"(address) : "memory");
}

static inline __attribute__((always_inline)) long bare_call(long number, long first, long second,
                                                            long third)
{
    register long x8 asm("x8") = number;
    register long x0 asm("x0") = first;
    register long x1 asm("x1") = second;
    register long x2 asm("x2") = third;

    asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}

static inline long call_on_stack(long number, long first, long second, void *stack)
{
    register long x8 asm("x8") = number;
    register long x0 asm("x0") = first;
    register long x1 asm("x1") = second;

    asm volatile("mov x9, sp; mov sp, %3; svc 0; mov sp, x9"
                 : "+r"(x0)
                 : "r"(x8), "r"(x1), "r"(stack)
                 : "x9", "memory");
    return x0;
}

/* A wrapper calls nobody, so that its return address is in the link register. */
static inline long call_returning_to(long number, long first, long second, void *address)
{
    register long x8 asm("x8") = number;
    register long x0 asm("x0") = first;
    register long x1 asm("x1") = second;

    asm volatile("mov x30, %3; svc 0"
                 : "+r"(x0)
                 : "r"(x8), "r"(x1), "r"(address)
                 : "x30", "memory");
    return x0;
}

static inline __attribute__((noreturn)) void jump_on_stack(void *code, void *stack, void *argument)
{
    register void *x0 asm("x0") = argument;

    asm volatile("mov sp, %1; br %0" : : "r"(code), "r"(stack), "r"(x0) : "memory");
    __builtin_unreachable();
}

static inline __attribute__((always_inline)) uint64_t ticks(void)
{
    uint64_t count;

    asm volatile("isb; mrs %0, cntvct_el0" : "=r"(count) : : "memory");
    return count;
}

/* No 64-bit program can make a 32-bit call; aarch32.c does. */
#define HAS_32_BIT_CALLS 0
#define LOW 0
static inline long queue_by_32_bits(pid_t process, pid_t thread, int number, void *low)
{
    (void)process;
    (void)thread;
    (void)number;
    (void)low;
    return -1;
}

#else
#error "processor.h has nothing for this processor"
#endif

/* Registers of a process that is traced and stopped. */
static inline long get_registers(pid_t process, struct user_regs_struct *registers)
{
    struct iovec place = {registers, sizeof(*registers)};

    return ptrace(PTRACE_GETREGSET, process, (void *)NT_PRSTATUS, &place);
}

static inline long set_registers(pid_t process, struct user_regs_struct *registers)
{
    struct iovec place = {registers, sizeof(*registers)};

    return ptrace(PTRACE_SETREGSET, process, (void *)NT_PRSTATUS, &place);
}

#endif
