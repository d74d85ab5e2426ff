/* clone, clone3, unshare: which parts of a process a child shares with its parent, pidfds, and which requests are refused. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* struct clone_args, as long as this program needs it; the last words must be zero. */
struct arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup, more;
};

static long clone_raw(unsigned long flags, void *parent_tid) {
    return syscall(SYS_clone, flags, 0, parent_tid, 0, 0);
}

static long clone3_raw(struct arguments *a, size_t size) { return syscall(SYS_clone3, a, size); }

static int wait_for(pid_t pid) {
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* A child with these flags that runs `body`; its exit code must be 0. */
static void in_child(unsigned long flags, void (*body)(void)) {
    pid_t pid = (pid_t)clone_raw(flags | SIGCHLD, NULL);
    CHECK(pid >= 0, "clone with %#lx", flags);
    if (pid == 0) {
        body();
        _exit(0);
    }
    CHECK(wait_for(pid) == 0, "the child with %#lx failed", flags);
}

static void pidfds(void) {
    int fd = -1;
    pid_t pid = (pid_t)clone_raw(CLONE_PIDFD | SIGCHLD, &fd);
    CHECK(pid >= 0, "CLONE_PIDFD");
    if (pid == 0)
        _exit(7);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC, "the pidfd is not closed by exec");
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, -1) == 1 && p.revents & POLLIN, "the pidfd doesn't show the end");
    siginfo_t info;
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED) == 0 && info.si_pid == pid && info.si_status == 7, "waitid by pidfd");
    close(fd);

    pid_t tid = 0;
    struct arguments a = {.flags = CLONE_PIDFD | CLONE_PARENT_SETTID, .exit_signal = SIGCHLD};
    a.pidfd = (uintptr_t)&fd;
    a.parent_tid = (uintptr_t)&tid;
    pid = (pid_t)clone3_raw(&a, 64);
    CHECK(pid >= 0, "clone3 with both addresses");
    if (pid == 0)
        _exit(0);
    CHECK(tid == pid && fd >= 0 && wait_for(pid) == 0, "clone3 wrote %d and %d for %d", tid, fd, pid);
    close(fd);
    puts("pidfds");
}

static int shared_fd;
static void opens_and_closes(void) {
    int fd = dup(shared_fd);
    CHECK(fd == shared_fd + 1, "dup gives %d", fd);
    close(shared_fd);
}
static void unshares_and_closes(void) {
    CHECK(unshare(CLONE_FILES) == 0, "unshare(CLONE_FILES)");
    CHECK(close(shared_fd) == 0, "close of a copy");
    CHECK(fcntl(shared_fd, F_GETFD) == -1 && errno == EBADF, "closed here");
}
static void files(void) {
    shared_fd = open("/dev/null", O_RDONLY);
    in_child(CLONE_FILES, opens_and_closes);
    CHECK(fcntl(shared_fd, F_GETFD) == -1 && errno == EBADF, "the child's close isn't seen");
    CHECK(fcntl(shared_fd + 1, F_GETFD) == 0, "the child's dup isn't seen");
    shared_fd++;
    in_child(CLONE_FILES, unshares_and_closes);
    CHECK(fcntl(shared_fd, F_GETFD) == 0, "a close after unshare is seen");
    in_child(0, unshares_and_closes);
    CHECK(close(shared_fd) == 0, "close");
    puts("files");
}

static void moves(void) {
    CHECK(chdir("/tmp") == 0, "chdir");
    umask(0123);
}
static void moves_alone(void) {
    CHECK(unshare(CLONE_FS) == 0, "unshare(CLONE_FS)");
    CHECK(chdir("/") == 0, "chdir");
    umask(0);
}
static void directories(void) {
    char where[64];
    CHECK(chdir("/") == 0, "chdir");
    umask(022);
    in_child(0, moves);
    CHECK(!strcmp(getcwd(where, sizeof where), "/"), "a copy's chdir is seen: %s", where);
    in_child(CLONE_FS, moves);
    CHECK(!strcmp(getcwd(where, sizeof where), "/tmp"), "the child's chdir isn't seen: %s", where);
    CHECK(umask(022) == 0123, "the child's umask isn't seen");
    in_child(CLONE_FS, moves_alone);
    CHECK(!strcmp(getcwd(where, sizeof where), "/tmp") && umask(022) == 022, "an unshared chdir or umask is seen");
    puts("directories");
}

static volatile sig_atomic_t handled;
static void handler(int sig) { handled = sig; }
static int sets_handler(void *unused) {
    (void)unused;
    return signal(SIGUSR1, handler) == SIG_ERR;
}
static void handlers(void) {
    static char stack[65536] __attribute__((aligned(16)));
    signal(SIGUSR1, SIG_IGN);
    pid_t pid = clone(sets_handler, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    CHECK(pid > 0 && wait_for(pid) == 0, "a child with our memory");
    raise(SIGUSR1);
    CHECK(handled == 0, "a copy's handler is ours");
    pid = clone(sets_handler, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | SIGCHLD, NULL);
    CHECK(pid > 0 && wait_for(pid) == 0, "a child with our handlers");
    raise(SIGUSR1);
    CHECK(handled == SIGUSR1, "the child's handler isn't ours");
    signal(SIGUSR1, SIG_DFL);
    puts("handlers");
}

static void siblings(void) {
    int fds[2];
    CHECK(pipe(fds) == 0, "pipe");
    pid_t child = fork();
    if (child == 0) {
        pid_t sibling = (pid_t)clone_raw(CLONE_PARENT, NULL);
        if (sibling == 0)
            _exit(9);
        CHECK(write(fds[1], &sibling, sizeof sibling) == sizeof sibling, "write");
        CHECK(waitpid(sibling, NULL, 0) == -1 && errno == ECHILD, "it is a child of its maker");
        _exit(0);
    }
    pid_t sibling = 0;
    CHECK(wait_for(child) == 0, "the maker");
    CHECK(read(fds[0], &sibling, sizeof sibling) == sizeof sibling, "read");
    CHECK(wait_for(sibling) == 9, "CLONE_PARENT");
    close(fds[0]);
    close(fds[1]);
    puts("siblings");
}

static void spawns(char *self) {
    extern char **environ;
    char *arguments[] = {self, "exit", NULL};
    for (int i = 0; i < 3; i++) {
        pid_t pid;
        CHECK(posix_spawn(&pid, self, NULL, NULL, arguments, environ) == 0, "posix_spawn");
        CHECK(wait_for(pid) == 42, "the spawned program's exit code");
    }
    pid_t pid = vfork();
    if (pid == 0) {
        execv(self, arguments);
        _exit(1);
    }
    CHECK(pid > 0 && wait_for(pid) == 42, "vfork");
    pid_t none;
    CHECK(posix_spawn(&none, "/nothing/there", NULL, NULL, arguments, environ) == ENOENT, "posix_spawn of nothing");
    puts("spawns");
}

static void refused(long result, int error, const char *what) {
    if (result == 0)
        _exit(0); /* a child that should not be there */
    CHECK(result == -1 && errno == error, "%s: %ld", what, result);
}
static void refusals(void) {
    int word;
    refused(clone_raw(CLONE_THREAD, NULL), EINVAL, "a thread with other handlers");
    refused(clone_raw(CLONE_SIGHAND, NULL), EINVAL, "handlers of other memory");
    refused(clone_raw(CLONE_THREAD | CLONE_SIGHAND, NULL), EINVAL, "a thread with other memory");
    refused(clone_raw(CLONE_PIDFD | CLONE_PARENT_SETTID, &word), EINVAL, "one address for two numbers");
    refused(clone_raw(CLONE_PIDFD | CLONE_DETACHED, &word), EINVAL, "CLONE_PIDFD and CLONE_DETACHED");
    refused(clone_raw(CLONE_PIDFD | SIGCHLD, NULL), EFAULT, "a pidfd to nowhere");
    struct arguments a = {.flags = 0, .exit_signal = SIGCHLD};
    refused(clone3_raw(&a, 63), EINVAL, "clone3, short");
    refused(clone3_raw(&a, 8192), E2BIG, "clone3, long");
    a.more = 1;
    refused(clone3_raw(&a, sizeof a), E2BIG, "clone3 with something unknown");
    a = (struct arguments){.exit_signal = 65};
    refused(clone3_raw(&a, 64), EINVAL, "clone3 with signal 65");
    a = (struct arguments){.flags = CLONE_DETACHED};
    refused(clone3_raw(&a, 64), EINVAL, "clone3 with CLONE_DETACHED");
    a = (struct arguments){.flags = 1ULL << 40};
    refused(clone3_raw(&a, 64), EINVAL, "clone3 with an unknown flag");
    a = (struct arguments){.flags = CLONE_PARENT, .exit_signal = SIGCHLD};
    refused(clone3_raw(&a, 64), EINVAL, "clone3: a sibling with a signal");
    a = (struct arguments){.stack = 4096};
    refused(clone3_raw(&a, 64), EINVAL, "clone3: a stack without size");
    a = (struct arguments){.stack_size = 4096};
    refused(clone3_raw(&a, 64), EINVAL, "clone3: a size without stack");
    refused(syscall(SYS_clone3, NULL, 64), EFAULT, "clone3 of nothing");
    CHECK(unshare(0) == 0 && unshare(CLONE_THREAD | CLONE_VM | CLONE_SIGHAND) == 0, "unshare of what isn't shared");
    CHECK(unshare(CLONE_SETTLS) == -1 && errno == EINVAL, "unshare of what can't be");
    puts("refusals");
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "exit"))
        return 42;
    setvbuf(stdout, NULL, _IOLBF, 0);
    pidfds();
    files();
    directories();
    handlers();
    siblings();
    spawns(argc > 1 ? argv[1] : "/proc/self/exe");
    refusals();
    puts("PASS clones");
    return 0;
}
