/* Processes and signals behind descriptors: pidfd_open, pidfd_send_signal, waitid(P_PIDFD), signalfd, alone and in poll and epoll.
 * Usage: descriptors        one line for each part, then the verdict */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int pidfd_open_(pid_t pid, unsigned flags) { return (int)syscall(434, pid, flags); }
static int pidfd_send(int fd, int signal) { return (int)syscall(424, fd, signal, NULL, 0); }

static pid_t sleeper(void) {
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    while (child == 0) pause();
    return child;
}

static void pidfd(void) {
    CHECK(pidfd_open_(0, 0) < 0 && errno == EINVAL, "pid 0: %d", errno);
    CHECK(pidfd_open_(getpid(), 1) < 0 && errno == EINVAL, "unknown flag: %d", errno);
    CHECK(pidfd_send(0, 0) < 0 && errno == EBADF, "not a pidfd: %d", errno);
    pid_t child = sleeper();
    int fd = pidfd_open_(child, 0), lazy = pidfd_open_(child, O_NONBLOCK);
    CHECK(fd >= 0 && lazy >= 0, "pidfd_open: %d", errno);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC, "close-on-exec");
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    CHECK(poll(&ready, 1, 0) == 0, "a living process is not readable");
    siginfo_t info = {0};
    CHECK(waitid(P_PIDFD, lazy, &info, WEXITED) < 0 && errno == EAGAIN, "non-blocking: %d", errno);
    CHECK(pidfd_send(fd, 0) == 0, "probe: %d", errno);
    CHECK(pidfd_send(fd, 65) < 0 && errno == EINVAL, "signal 65: %d", errno);
    CHECK(pidfd_send(fd, SIGTERM) == 0, "SIGTERM: %d", errno);
    CHECK(poll(&ready, 1, -1) == 1 && ready.revents == POLLIN, "revents %#x", ready.revents);
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED) == 0, "waitid: %d", errno);
    CHECK(info.si_pid == child && info.si_code == CLD_KILLED && info.si_status == SIGTERM, "code %d, status %d", info.si_code,
          info.si_status);
    CHECK(pidfd_send(fd, 0) < 0 && errno == ESRCH, "reaped: %d", errno);
    CHECK(waitid(P_PIDFD, fd, &info, WEXITED) < 0 && errno == ECHILD, "waited for: %d", errno);
    close(fd);
    close(lazy);
    puts("pidfd");
}

static void signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGRTMIN);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0, "block");
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    CHECK(fd >= 0, "signalfd: %d", errno);
    struct signalfd_siginfo got[4];
    CHECK(read(fd, got, sizeof got) < 0 && errno == EAGAIN, "nothing pending: %d", errno);
    CHECK(read(fd, got, 100) < 0 && errno == EINVAL, "too small: %d", errno);
    kill(getpid(), SIGUSR1);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77});
    CHECK(read(fd, got, sizeof got) == 2 * sizeof *got, "two signals");
    CHECK(got[0].ssi_signo == SIGUSR1 && got[0].ssi_pid == (unsigned)getpid() && got[0].ssi_code == SI_USER, "the first");
    CHECK(got[1].ssi_signo == (unsigned)SIGRTMIN && got[1].ssi_int == 77 && got[1].ssi_code == SI_QUEUE, "the second");

    int queue = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    CHECK(queue >= 0 && epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event) == 0, "epoll");
    CHECK(epoll_wait(queue, &event, 1, 0) == 0, "nothing yet");
    pid_t child = fork();
    if (child == 0) _exit(7);
    CHECK(epoll_wait(queue, &event, 1, -1) == 1 && event.data.fd == fd, "woken by SIGCHLD");
    CHECK(read(fd, got, sizeof got) == sizeof *got && got[0].ssi_signo == SIGCHLD, "SIGCHLD");
    CHECK(got[0].ssi_pid == (unsigned)child && got[0].ssi_status == 7 && got[0].ssi_code == CLD_EXITED, "of the child");
    CHECK(waitpid(child, NULL, 0) == child, "waitpid");

    sigdelset(&set, SIGUSR1);
    CHECK(signalfd(fd, &set, 0) == fd, "another set");
    kill(getpid(), SIGUSR1);
    CHECK(read(fd, got, sizeof got) < 0 && errno == EAGAIN, "no longer wanted: %d", errno);
    CHECK(fcntl(fd, F_SETFL, 0) == 0, "blocking");
    child = fork();
    if (child == 0) _exit(kill(getppid(), SIGRTMIN));
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGRTMIN);
    CHECK(signalfd(fd, &only, 0) == fd, "a third set");
    CHECK(read(fd, got, sizeof *got) == sizeof *got && got[0].ssi_signo == (unsigned)SIGRTMIN, "a read that waited");
    CHECK(waitpid(child, NULL, 0) == child, "waitpid");
    puts("signalfd");
}

int main(void) {
    pidfd();
    signals();
    puts("PASS descriptors");
    return 0;
}
