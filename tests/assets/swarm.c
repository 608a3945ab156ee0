/*
 * swarm COUNT MILLISECONDS: COUNT processes, some at a time. Each seals a page, waits, makes one
 * denied mprotect and dies at once. Prints the refusals.
 */
#include "asset.h"

#include <errno.h>
#include <sys/wait.h>
#include <time.h>

#define AT_A_TIME 8

static void live(long milliseconds)
{
    struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    char *page = sealed_page();

    if (milliseconds)
        nanosleep(&wait, NULL);
    _exit(mprotect(page, PAGE, PROT_READ | PROT_WRITE) && errno == EPERM ? 0 : 1);
}

int main(int argc, char **argv)
{
    long count = argc > 2 ? strtol(argv[1], NULL, 10) : 0, started = 0, ended = 0, refused = 0;
    int status;

    if (count <= 0) {
        fprintf(stderr, "usage: swarm COUNT MILLISECONDS\n");
        return 2;
    }
    while (ended < count) {
        if (started < count && started - ended < AT_A_TIME) {
            pid_t child = fork();

            if (child < 0)
                fail("fork");
            if (!child)
                live(strtol(argv[2], NULL, 10));
            started++;
            continue;
        }
        if (wait(&status) < 0)
            fail("wait");
        ended++;
        refused += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    printf("{\"mprotect\": %ld}\n", refused);
    return 0;
}
