/* Resource limits that are kept to: address space, data, stack, file size, descriptors, pending signals; of other processes too. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t MIB = 1 << 20;

static void soft(int kind, rlim_t value) {
    struct rlimit limit;
    CHECK(getrlimit(kind, &limit) == 0, "getrlimit");
    limit.rlim_cur = value;
    CHECK(setrlimit(kind, &limit) == 0, "setrlimit %d", kind);
}

static void *map(size_t len, int prot, int flags) { return mmap(NULL, len, prot, MAP_ANONYMOUS | flags, -1, 0); }

/* Each in a child, so that what it sets is gone with it. */
static void in_child(const char *name, void (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        body();
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "%s: status %#x", name, status);
    puts(name);
}

static void address_space(void) {
    void *old = map(MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    soft(RLIMIT_AS, 64 * MIB);
    CHECK(map(128 * MIB, PROT_NONE, MAP_PRIVATE) == MAP_FAILED && errno == ENOMEM, "mmap beyond it");
    CHECK(map(128 * MIB, PROT_READ, MAP_SHARED) == MAP_FAILED && errno == ENOMEM, "shared mmap beyond it");
    CHECK(mremap(old, MIB, 128 * MIB, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM, "mremap beyond it");
    CHECK(sbrk(128 * MIB) == (void *)-1 && errno == ENOMEM, "brk beyond it");
    CHECK(map(MIB, PROT_READ, MAP_PRIVATE) != MAP_FAILED, "mmap below it");
    CHECK(mmap(old, MIB, PROT_READ, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, -1, 0) == old, "mmap in place");
}

static void data(void) {
    soft(RLIMIT_DATA, 32 * MIB);
    CHECK(map(64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE) == MAP_FAILED && errno == ENOMEM, "mmap beyond it");
    CHECK(sbrk(64 * MIB) == (void *)-1 && errno == ENOMEM, "brk beyond it");
    CHECK(map(64 * MIB, PROT_READ, MAP_PRIVATE) != MAP_FAILED, "what is only read doesn't count");
    CHECK(map(64 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED) != MAP_FAILED, "what is shared doesn't count");
}

static volatile sig_atomic_t signalled;
static void note(int sig) { signalled = sig; }

static void file_size(void) {
    char bytes[1000] = {0};
    FILE *file = tmpfile();
    int fd = fileno(file);
    signal(SIGXFSZ, note);
    soft(RLIMIT_FSIZE, 2500);
    CHECK(write(fd, bytes, 1000) == 1000 && write(fd, bytes, 1000) == 1000, "below it");
    CHECK(write(fd, bytes, 1000) == 500 && !signalled, "up to it");
    CHECK(write(fd, bytes, 1000) == -1 && errno == EFBIG && signalled == SIGXFSZ, "beyond it");
    signalled = 0;
    CHECK(pwrite(fd, bytes, 10, 5000) == -1 && errno == EFBIG && signalled == SIGXFSZ, "pwrite beyond it");
    signalled = 0;
    CHECK(ftruncate(fd, 5000) == -1 && errno == EFBIG && signalled == SIGXFSZ, "ftruncate beyond it");
    CHECK(ftruncate(fd, 100) == 0 && pwrite(fd, bytes, 10, 2490) == 10, "below it again");
    signal(SIGXFSZ, SIG_DFL);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        _exit((int)pwrite(fd, bytes, 10, 5000));
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ, "status %#x", status);
}

static void descriptors(void) {
    soft(RLIMIT_NOFILE, 20);
    CHECK(dup2(1, 20) == -1 && errno == EBADF, "dup2 beyond it");
    CHECK(fcntl(1, F_DUPFD, 20) == -1 && errno == EINVAL, "F_DUPFD beyond it");
    int fd;
    while ((fd = dup(1)) >= 0)
        CHECK(fd < 20, "descriptor %d", fd);
    CHECK(errno == EMFILE, "dup beyond it");
    int pair[2];
    close(19);
    CHECK(pipe(pair) == -1 && errno == EMFILE, "a pipe with room for one end");
    CHECK(dup(1) == 19, "the failed pipe kept a descriptor");
    struct rlimit limit = {4, 3};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == -1 && errno == EINVAL, "soft above hard");
}

static void pending(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    soft(RLIMIT_SIGPENDING, 5);
    union sigval value = {0};
    int queued = 0;
    while (queued < 1000 && sigqueue(getpid(), SIGRTMIN, value) == 0)
        queued++;
    CHECK(errno == EAGAIN && queued <= 5, "%d signals queued", queued);
}

static volatile char *deepest;
static int __attribute__((noinline)) descend(int depth) {
    volatile char frame[4096];
    frame[0] = (char)depth;
    deepest = frame;
    return depth == 0 ? 0 : descend(depth - 1) + frame[0];
}

static void stack(char *self) {
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_CORE, &none);
            soft(RLIMIT_STACK, i ? MIB / 2 : 4 * MIB);
            execl(self, self, "descend", NULL);
            _exit(1);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
        if (i)
            CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "2 MiB on half a MiB: status %#x", status);
        else
            CHECK(status == 0, "2 MiB on 4 MiB: status %#x", status);
    }
    puts("stack");
}

static void others(void) {
    int go[2];
    CHECK(pipe(go) == 0, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        struct rlimit limit;
        CHECK(read(go[0], &c, 1) == 1, "read");
        CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 33, "the parent's prlimit");
        _exit(0);
    }
    struct rlimit new, old, seen;
    CHECK(prlimit(pid, RLIMIT_NOFILE, NULL, &old) == 0, "prlimit, reading");
    new = old;
    new.rlim_cur = 33;
    CHECK(prlimit(pid, RLIMIT_NOFILE, &new, &seen) == 0 && seen.rlim_cur == old.rlim_cur, "prlimit, writing");
    CHECK(getrlimit(RLIMIT_NOFILE, &seen) == 0 && seen.rlim_cur == old.rlim_cur, "our own has changed");
    CHECK(prlimit(pid, 16, NULL, &old) == -1 && errno == EINVAL, "a limit that isn't there");
    CHECK(write(go[1], "x", 1) == 1, "write");
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "status %#x", status);
    CHECK(prlimit(pid, RLIMIT_NOFILE, NULL, &old) == -1 && errno == ESRCH, "prlimit of nobody");
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "descend"))
        return descend(512) == 12345;
    in_child("address space", address_space);
    in_child("data", data);
    in_child("file size", file_size);
    in_child("descriptors", descriptors);
    in_child("pending signals", pending);
    stack("/proc/self/exe");
    in_child("other processes", others);
    puts("PASS limits");
    return 0;
}
