/* crowd COUNT: COUNT processes at once, each makes one denied mprotect and dies. Prints the
 * refusals. */
#include "asset.h"

#include <errno.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
    long count = argc > 1 ? strtol(argv[1], NULL, 10) : 0, refused = 0;
    char *page = sealed_page(), byte;
    int status, gate[2];

    if (count <= 0) {
        fprintf(stderr, "usage: crowd COUNT\n");
        return 2;
    }
    if (pipe(gate))
        fail("pipe");
    for (long i = 0; i < count; i++) {
        pid_t child = fork();

        if (child < 0)
            fail("fork");
        if (!child) {
            close(gate[1]);
            if (read(gate[0], &byte, 1) < 0)
                _exit(2);
            _exit(mprotect(page, PAGE, PROT_READ | PROT_WRITE) && errno == EPERM ? 0 : 1);
        }
    }
    close(gate[1]); /* lets all of them go */
    while (wait(&status) > 0)
        refused += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("{\"mprotect\": %ld}\n", refused);
    return 0;
}
