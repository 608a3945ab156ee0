/*
 * pretend [FILE]: makes a denied call and waits until standard input ends. With FILE it has the
 * kernel show that as its executable before.
 *
 * For this it needs CAP_CHECKPOINT_RESTORE, which the root of a user namespace has there. The
 * kernel shows another executable only once nothing of the old one is mapped
 * (replace_mm_exe_file()), so every mapping of it gives way to a copy in place.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <stdint.h>
#include <sys/prctl.h>

static char maps[1 << 16], name[4096];

static void read_all(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t got;

    if (fd < 0)
        fail(path);
    while (size > 1 && (got = read(fd, text, size - 1)) > 0) {
        text += got;
        size -= got;
    }
    *text = 0;
    close(fd);
}

static void copy_in_place(char *start, char *end, const char *permissions)
{
    size_t size = end - start;
    int protection = (permissions[0] == 'r' ? PROT_READ : 0) |
                     (permissions[1] == 'w' ? PROT_WRITE : 0) |
                     (permissions[2] == 'x' ? PROT_EXEC : 0);
    char *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (copy == MAP_FAILED)
        fail("mmap");
    memcpy(copy, start, size);
    if (mprotect(copy, size, protection))
        fail("mprotect");
    if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start) != start)
        fail("mremap");
}

static void leave_executable(void)
{
    char permissions[5], *line, *end;
    unsigned long first, last;
    ssize_t length = readlink("/proc/self/exe", name, sizeof(name) - 1);

    if (length < 0)
        fail("readlink");
    read_all("/proc/self/maps", maps, sizeof(maps));
    for (line = maps; (end = strchr(line, '\n')); line = end + 1) {
        *end = 0;
        if (!strstr(line, name))
            continue;
        if (sscanf(line, "%lx-%lx %4s", &first, &last, permissions) != 3)
            fail("sscanf");
        copy_in_place((char *)first, (char *)last, permissions);
    }
}

/* The fields of /proc/PID/stat from the third on, by their numbers in proc(5). */
static void read_stat(unsigned long *field)
{
    char text[4096], *next;

    read_all("/proc/self/stat", text, sizeof(text));
    next = strrchr(text, ')') + 4; /* the third is a letter */
    for (int number = 4; number <= 51; number++)
        field[number] = strtoul(next, &next, 10);
}

static void show(const char *file)
{
    unsigned long field[52];
    struct prctl_mm_map map = {0};

    read_stat(field);
    map.start_code = field[26];
    map.end_code = field[27];
    map.start_stack = field[28];
    map.start_data = field[45];
    map.end_data = field[46];
    map.start_brk = field[47];
    map.brk = (uint64_t)(uintptr_t)sbrk(0);
    map.arg_start = field[48];
    map.arg_end = field[49];
    map.env_start = field[50];
    map.env_end = field[51];
    map.exe_fd = open(file, O_RDONLY);
    if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0))
        fail("PR_SET_MM_MAP");
}

int main(int argc, char **argv)
{
    char *page = sealed_page(), byte;

    if (argc > 1) {
        leave_executable();
        show(argv[1]);
    }
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);
    return read(STDIN_FILENO, &byte, 1) < 0;
}
