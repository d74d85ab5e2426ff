/* Fork, copy-on-write and pipes: children see the parent's pages as they were at the fork, and nobody sees another's writes.
 * Usage: forkstorm [ROUNDS] [CHILDREN] [PAGES] */
#define _GNU_SOURCE
#include "check.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };
static unsigned char *memory;
static long pages;

static void fill(unsigned salt) {
    for (long p = 0; p < pages; p++) memory[p * PAGE + (salt * 131 + (unsigned)p) % PAGE] = (unsigned char)(salt + (unsigned)p);
}

/* Returns how many pages don't hold what fill(salt) wrote. */
static long wrong(unsigned salt) {
    long count = 0;
    for (long p = 0; p < pages; p++)
        count += memory[p * PAGE + (salt * 131 + (unsigned)p) % PAGE] != (unsigned char)(salt + (unsigned)p);
    return count;
}

struct report {
    long child, seen_wrong, own_wrong, grandchild;
};

/* A child checks what it inherited, writes its own over it, and has a grandchild check that. */
static void child(long number, unsigned salt, int out) {
    struct report report = {.child = number, .seen_wrong = wrong(salt)};
    unsigned own = 1000 + (unsigned)number;
    fill(own);
    pid_t pid = fork();
    if (pid == 0) _exit(wrong(own) == 0 ? 42 : 1);
    int status = 0;
    waitpid(pid, &status, 0);
    report.grandchild = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    report.own_wrong = wrong(own);
    if (write(out, &report, sizeof report) != sizeof report) _exit(2);
    _exit((int)(number & 0x3f));
}

int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 5), children = argument(argc, argv, 2, 8);
    pages = argument(argc, argv, 3, 32);
    memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap of %ld pages", pages);

    long reports = 0;
    for (long round = 0; round < rounds; round++) {
        unsigned salt = (unsigned)round * 7 + 1;
        fill(salt);
        int ends[2];
        CHECK(pipe(ends) == 0, "pipe");
        for (long i = 0; i < children; i++) {
            pid_t pid = fork();
            CHECK(pid >= 0, "fork of child %ld", i);
            if (pid == 0) {
                close(ends[0]);
                child(i, salt, ends[1]);
            }
        }
        close(ends[1]);
        struct report report;
        ssize_t size;
        while ((size = read(ends[0], &report, sizeof report)) == sizeof report) {
            CHECK(report.seen_wrong == 0, "child %ld saw %ld wrong pages", report.child, report.seen_wrong);
            CHECK(report.own_wrong == 0, "child %ld lost %ld of its own pages", report.child, report.own_wrong);
            CHECK(report.grandchild == 42, "grandchild of %ld: %ld", report.child, report.grandchild);
            reports++;
        }
        CHECK(size == 0, "pipe must end after the last writer: %zd", size);
        close(ends[0]);
        long sum = 0;
        int status;
        while (wait(&status) > 0) {
            CHECK(WIFEXITED(status), "child's status %#x", status);
            sum += WEXITSTATUS(status);
        }
        CHECK(errno == ECHILD, "wait ends with ECHILD");
        CHECK(sum == children * (children - 1) / 2, "exit codes add up to %ld", sum);
        CHECK(wrong(salt) == 0, "the parent lost %ld pages", wrong(salt));
    }
    CHECK(reports == rounds * children, "%ld reports", reports);
    printf("PASS forkstorm: %ld rounds, %ld reports, %ld pages each\n", rounds, reports, pages);
    return 0;
}
