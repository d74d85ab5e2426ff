/* Named pipes: whoever opens one end meets whoever opens the other, however short the other's visit is. Two processes take turns as
 * reader and writer; each writer writes one number and is gone. A meeting that is missed shows as a hang. And what is in a pipe that
 * somebody has open stays there, however close to that somebody else has left it for good. Argument: rounds. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Each side has met the other at three more before it comes back to one, so two meetings at the same never mix. */
enum { FIFOS = 4 };
static char paths[FIFOS][80];

static void take_turns(int me, int rounds) {
    for (int i = 0; i < rounds; i++) {
        int reads = (i / 2 + me) % 2, seen = -1;
        int fd = open(paths[i % FIFOS], reads ? O_RDONLY : O_WRONLY);
        CHECK(fd >= 0, "round %d, open", i);
        if (reads) {
            CHECK(read(fd, &seen, sizeof seen) == sizeof seen && seen == i, "round %d: %d came", i, seen);
            CHECK(read(fd, &seen, 1) == 0, "round %d: no end", i);
        } else {
            CHECK(write(fd, &i, sizeof i) == sizeof i, "round %d, write", i);
        }
        CHECK(close(fd) == 0, "round %d, close", i);
    }
}

/* One comes and goes, and writes nothing; the other finds what it wrote, though it may have opened the pipe just as that one left. */
static void come_and_go(int rounds) {
    for (int i = 0; i < rounds; i++) {
        int fd = open(paths[0], O_RDWR);
        CHECK(fd >= 0 && close(fd) == 0, "round %d, come and go", i);
    }
}

static void keep(int rounds) {
    for (int i = 0; i < rounds; i++) {
        int fd = open(paths[0], O_RDWR | O_NONBLOCK), seen = -1;
        CHECK(fd >= 0, "round %d, open for both", i);
        CHECK(write(fd, &i, sizeof i) == sizeof i, "round %d, write", i);
        CHECK(read(fd, &seen, sizeof seen) == sizeof seen && seen == i, "round %d: %d is in the pipe", i, seen);
        CHECK(close(fd) == 0, "round %d, close", i);
    }
}

static void beside_a_child(void (*mine)(int), void (*childs)(int), int rounds) {
    int status;
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    (child == 0 ? childs : mine)(rounds);
    if (child == 0) {
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the other side ended with %#x", status);
}

static void first(int rounds) { take_turns(0, rounds); }
static void second(int rounds) { take_turns(1, rounds); }

int main(int argc, char **argv) {
    int rounds = (int)argument(argc, argv, 1, 2000);
    char dir[] = "/tmp/fifos.XXXXXX";
    CHECK(mkdtemp(dir), "a directory");
    for (int i = 0; i < FIFOS; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%d", dir, i);
        CHECK(mkfifo(paths[i], 0600) == 0, "mkfifo");
    }
    beside_a_child(first, second, rounds);
    beside_a_child(keep, come_and_go, rounds);
    for (int i = 0; i < FIFOS; i++) {
        CHECK(unlink(paths[i]) == 0, "unlink");
    }
    CHECK(rmdir(dir) == 0, "rmdir");
    printf("PASS fifos\n");
    return 0;
}
