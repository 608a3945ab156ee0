/*
 * swarm COUNT MILLISECONDS [--wait]: COUNT processes, eight at a time. Each seals a page, waits,
 * makes one denied mprotect and dies at once. With --wait, the denials of each eight are made when
 * another byte comes from standard input. Prints the refusals.
 */
#include "asset.h"

#include <errno.h>
#include <sys/wait.h>
#include <time.h>

#define AT_A_TIME 8

static void live(long milliseconds, const int release[2])
{
    struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    char *page = sealed_page(), byte;

    close(release[1]);
    if (milliseconds)
        nanosleep(&wait, NULL);
    if (read(release[0], &byte, 1))
        _exit(1);
    _exit(mprotect(page, PAGE, PROT_READ | PROT_WRITE) && errno == EPERM ? 0 : 1);
}

int main(int argc, char **argv)
{
    long count = argc > 2 ? strtol(argv[1], NULL, 10) : 0, started = 0, ended = 0, refused = 0;
    int status, release[2];

    if (count <= 0) {
        fprintf(stderr, "usage: swarm COUNT MILLISECONDS [--wait]\n");
        return 2;
    }
    while (ended < count) {
        if (pipe(release))
            fail("pipe");
        for (; started < count && started - ended < AT_A_TIME; started++) {
            pid_t child = fork();

            if (child < 0)
                fail("fork");
            if (!child)
                live(strtol(argv[2], NULL, 10), release);
        }
        wait_if_asked(argc, argv);
        close(release[1]);
        for (; ended < started; ended++) {
            if (wait(&status) < 0)
                fail("wait");
            refused += WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
        close(release[0]);
    }
    printf("{\"mprotect\": %ld}\n", refused);
    return 0;
}
