/*
 * posture none|pages|code|relro|all
 *
 * Seals that part of itself and of its libraries, prints what /proc shows of it, and waits for the
 * end of standard input. The dynamic linker says which part is code and which is RELRO.
 */
#define _GNU_SOURCE
#include "asset.h"

#include <link.h>

struct posture {
    int code, relro; /* whether to seal */
    unsigned long ranges, sealed, executable, executable_sealed, relro_bytes, relro_sealed;
};

static unsigned long down(unsigned long address)
{
    return address & ~(PAGE - 1);
}

static void seal(struct posture *all, unsigned long start, unsigned long length)
{
    if (mseal_range((void *)start, length))
        fail("mseal");
    all->ranges++;
    all->sealed += length;
}

static int visit(struct dl_phdr_info *object, size_t size, void *argument)
{
    struct posture *all = argument;

    (void)size;
    if (strstr(object->dlpi_name, "vdso")) /* the kernel's own */
        return 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        unsigned long first = object->dlpi_addr + segment->p_vaddr;
        unsigned long last = first + segment->p_memsz;

        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X) {
            unsigned long length = down(last + PAGE - 1) - down(first);

            all->executable += length;
            if (all->code) {
                seal(all, down(first), length);
                all->executable_sealed += length;
            }
        }
        /* The linker leaves a last page that is not full as it is: _dl_protect_relro(). */
        if (segment->p_type == PT_GNU_RELRO && down(last) > down(first)) {
            unsigned long length = down(last) - down(first);

            all->relro_bytes += length;
            if (all->relro) {
                seal(all, down(first), length);
                all->relro_sealed += length;
            }
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct posture all = {0};
    const char *what = argc == 2 ? argv[1] : "";
    char byte;

    all.code = !strcmp(what, "code") || !strcmp(what, "all");
    all.relro = !strcmp(what, "relro") || !strcmp(what, "all");
    if (!strcmp(what, "pages") || !strcmp(what, "all")) {
        seal(&all, (unsigned long)fenced_pages(3), 3 * PAGE);
        seal(&all, (unsigned long)fenced_pages(5), 5 * PAGE);
    } else if (!all.code && !all.relro && strcmp(what, "none")) {
        fprintf(stderr, "usage: posture none|pages|code|relro|all\n");
        return 2;
    }
    dl_iterate_phdr(visit, &all);
    printf("{\"sealed_ranges\": %lu, \"sealed_bytes\": %lu, \"executable_bytes\": %lu, "
           "\"executable_sealed_bytes\": %lu, \"relro_bytes\": %lu, \"relro_sealed_bytes\": %lu}\n",
           all.ranges, all.sealed, all.executable, all.executable_sealed, all.relro_bytes,
           all.relro_sealed);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    return 0;
}
