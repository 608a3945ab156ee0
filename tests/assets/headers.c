/*
 * headers [--wait]: a refused mprotect by code in a mapped file, called from this program. The
 * file's ELF header names more program headers than anybody reads.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <elf.h>

#define CODE 2048
#define SIZE (1 << 22)

static const unsigned char mprotect_call[] = {
#ifdef __aarch64__
    0x48, 0x1c, 0x80, 0xd2, /* mov x8, #226 */
    0x01, 0x00, 0x00, 0xd4, /* svc #0 */
    0xc0, 0x03, 0x5f, 0xd6, /* ret */
#else
    0xb8, 0x0a, 0x00, 0x00, 0x00, /* mov $10, %eax */
    0x0f, 0x05,                   /* syscall */
    0xc3,                         /* ret */
#endif
};

int main(int argc, char **argv)
{
    Elf64_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64},
        .e_phoff = sizeof(header),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 0xffff,
    };
    int file = memfd_create("headers", 0);
    char *page = sealed_page(), *mapped;

    if (file < 0 || ftruncate(file, SIZE))
        fail("memfd_create");
    if (pwrite(file, &header, sizeof(header), 0) < 0 ||
        pwrite(file, mprotect_call, sizeof(mprotect_call), CODE) < 0)
        fail("pwrite");
    mapped = mmap(NULL, SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    if (mapped == MAP_FAILED)
        fail("mmap");
    wait_if_asked(argc, argv);
    printf("{\"result\": %ld}\n",
           ((long (*)(void *, size_t, int))(mapped + CODE))(page, PAGE, PROT_READ | PROT_WRITE));
    return 0;
}
