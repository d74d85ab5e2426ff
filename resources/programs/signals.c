/* Signals: handlers, masks, alternate stack, children, pipes, alarms, threads, restart and interruption.
 * Usage: signals        one line for each part, then the verdict */
#define _GNU_SOURCE
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t count[65];
static volatile sig_atomic_t depth, deepest;
static volatile siginfo_t last;
static void *volatile handler_frame;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)context;
    int saved = errno;
    count[number]++;
    last = *info;
    handler_frame = __builtin_frame_address(0);
    errno = saved;
}

static void install(int number, int flags, void (*handler)(int, siginfo_t *, void *)) {
    struct sigaction action = {.sa_flags = flags | SA_SIGINFO};
    action.sa_sigaction = handler;
    CHECK(sigaction(number, &action, NULL) == 0, "sigaction %d", number);
    count[number] = 0;
}

/* SIGALRM every so many milliseconds, until 0 is given. Again and again, since the first may come before what it is to interrupt. */
static void every_ms(int ms) {
    struct timeval span = {.tv_usec = ms * 1000};
    struct itimerval value = {.it_value = span, .it_interval = span};
    CHECK(setitimer(ITIMER_REAL, &value, NULL) == 0, "setitimer");
}

static void handlers_and_info(void) {
    install(SIGUSR1, 0, on_signal);
    CHECK(kill(getpid(), SIGUSR1) == 0 && count[SIGUSR1] == 1, "kill arrives before it returns");
    CHECK(last.si_code == SI_USER && last.si_pid == getpid(), "si_code %d, si_pid %d", last.si_code, (int)last.si_pid);
    CHECK(raise(SIGUSR1) == 0 && count[SIGUSR1] == 2, "raise");
    CHECK(last.si_code == SI_TKILL, "si_code %d", last.si_code);
    struct sigaction old;
    CHECK(sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_sigaction == on_signal, "sigaction reads back");
    install(SIGUSR1, SA_RESETHAND, on_signal);
    raise(SIGUSR1);
    CHECK(sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_handler == SIG_DFL, "SA_RESETHAND");
}

static void masks(void) {
    sigset_t set, old, pending;
    install(SIGUSR1, 0, on_signal);
    install(SIGUSR2, 0, on_signal);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0, "block");
    for (int i = 0; i < 3; i++) raise(SIGUSR1);
    raise(SIGUSR2);
    CHECK(count[SIGUSR1] == 0 && count[SIGUSR2] == 1, "blocked %d, open %d", (int)count[SIGUSR1], (int)count[SIGUSR2]);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) == 1, "sigpending");
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0 && count[SIGUSR1] == 1, "standard signals don't queue: %d", (int)count[SIGUSR1]);

    /* sigsuspend opens the mask only while it waits. */
    sigprocmask(SIG_BLOCK, &set, &old);
    raise(SIGUSR1);
    CHECK(sigsuspend(&old) == -1 && errno == EINTR && count[SIGUSR1] == 2, "sigsuspend");
    raise(SIGUSR1);
    CHECK(count[SIGUSR1] == 2, "the mask is back after sigsuspend");
    siginfo_t info;
    struct timespec none = {0};
    CHECK(sigtimedwait(&set, &info, &none) == SIGUSR1 && count[SIGUSR1] == 2, "sigtimedwait takes it without the handler");
    CHECK(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN, "nothing more is pending");
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static void on_nested(int number, siginfo_t *info, void *context) {
    (void)info, (void)context;
    if (++depth > deepest) deepest = depth;
    count[number]++;
    if (number == SIGUSR1) {
        raise(SIGUSR1); /* blocked while its own handler runs */
        raise(SIGUSR2);
        CHECK(count[SIGUSR2] > 0, "another signal nests");
    }
    depth--;
}

static void nested(void) {
    depth = deepest = 0;
    install(SIGUSR1, 0, on_nested);
    install(SIGUSR2, 0, on_nested);
    count[SIGUSR1] = 0;
    sigset_t set, old;
    sigemptyset(&set);
    kill(getpid(), SIGUSR2);
    CHECK(deepest == 1, "one level");
    /* The handler of SIGUSR1 raises SIGUSR1: it must come after the handler's end, not inside. One round of it is enough. */
    struct sigaction once = {.sa_flags = SA_SIGINFO | SA_RESETHAND};
    once.sa_sigaction = on_nested;
    sigaction(SIGUSR1, &once, NULL);
    sigaddset(&set, SIGUSR1);
    pid_t pid = fork();
    if (pid == 0) {
        raise(SIGUSR1); /* the second one meets SIG_DFL */
        _exit(9);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1, "status %#x", status);
    install(SIGUSR1, SA_NODEFER, on_signal);
    sigprocmask(SIG_BLOCK, NULL, &old);
    CHECK(!sigismember(&old, SIGUSR1) && !sigismember(&old, SIGUSR2), "masks are back after handlers");
}

static sigjmp_buf jump;
static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    count[number]++;
    last = *info;
    handler_frame = __builtin_frame_address(0);
    siglongjmp(jump, 1);
}

/* Ends only by the fault: the depth is checked so that the compiler believes in an end. */
static volatile long deep_enough = -1;
static long recurse(long level) {
    volatile char frame[4096];
    frame[0] = (char)level;
    return level == deep_enough ? 0 : recurse(level + 1) + frame[0];
}

static void alternate_stack(void) {
    static char stack[65536] __attribute__((aligned(16)));
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, old;
    CHECK(sigaltstack(&alternate, NULL) == 0, "sigaltstack");
    install(SIGSEGV, SA_ONSTACK, on_fault);
    if (sigsetjmp(jump, 1) == 0) recurse(0);
    CHECK(count[SIGSEGV] == 1, "stack overflow caught");
    CHECK((char *)handler_frame >= stack && (char *)handler_frame < stack + sizeof stack, "handler ran on the alternate stack");
    CHECK(sigaltstack(NULL, &old) == 0 && old.ss_sp == stack && !(old.ss_flags & SS_ONSTACK), "left by siglongjmp");
    volatile int *volatile low = (volatile int *)16;
    if (sigsetjmp(jump, 1) == 0) *low = 1;
    CHECK(count[SIGSEGV] == 2 && last.si_addr == (void *)16 && last.si_code == SEGV_MAPERR, "si_addr %p, si_code %d", last.si_addr, last.si_code);
    install(SIGFPE, 0, on_fault);
    volatile int zero = 0, seven = 7; /* 1 / x would be compiled without a division */
    if (sigsetjmp(jump, 1) == 0) zero = seven / zero;
    CHECK(count[SIGFPE] == 1 && last.si_code == FPE_INTDIV, "division by zero: si_code %d", last.si_code);
    install(SIGILL, 0, on_fault);
    if (sigsetjmp(jump, 1) == 0) __asm__ volatile("ud2");
    CHECK(count[SIGILL] == 1, "ud2");
    alternate.ss_flags = SS_DISABLE;
    sigaltstack(&alternate, NULL);
    signal(SIGSEGV, SIG_DFL);
}

static void children_and_pipes(void) {
    install(SIGCHLD, SA_RESTART, on_signal);
    pid_t pid = fork();
    if (pid == 0) _exit(7);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7, "status %#x", status);
    CHECK(count[SIGCHLD] == 1 && last.si_pid == pid && last.si_code == CLD_EXITED && last.si_status == 7, "SIGCHLD's siginfo");
    pid = fork();
    if (pid == 0) for (;;) pause();
    kill(pid, SIGTERM);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %#x", status);
    signal(SIGCHLD, SIG_DFL);

    int ends[2];
    CHECK(pipe(ends) == 0, "pipe");
    close(ends[0]);
    install(SIGPIPE, 0, on_signal);
    CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE && count[SIGPIPE] == 1, "SIGPIPE");
    signal(SIGPIPE, SIG_IGN);
    CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE, "EPIPE alone when ignored");
    signal(SIGPIPE, SIG_DFL);
    close(ends[1]);
}

static void *write_later(void *fd) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (count[SIGALRM] < 3) usleep(1000);
    CHECK(write((int)(intptr_t)fd, "y", 1) == 1, "write");
    return NULL;
}

static void interruption_and_restart(void) {
    int ends[2];
    char byte;
    CHECK(pipe(ends) == 0, "pipe");
    install(SIGALRM, 0, on_signal);
    every_ms(30);
    CHECK(read(ends[0], &byte, 1) == -1 && errno == EINTR && count[SIGALRM] > 0, "read is interrupted without SA_RESTART");
    every_ms(0);

    install(SIGALRM, SA_RESTART, on_signal);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, write_later, (void *)(intptr_t)ends[1]) == 0, "thread");
    every_ms(30);
    CHECK(read(ends[0], &byte, 1) == 1 && byte == 'y' && count[SIGALRM] > 0, "read goes on with SA_RESTART");
    pthread_join(thread, NULL);

    struct pollfd fd = {.fd = ends[0], .events = POLLIN};
    CHECK(poll(&fd, 1, 1000000) == -1 && errno == EINTR, "poll never restarts");
    struct timespec wanted = {.tv_sec = 1000}, left = {0};
    CHECK(nanosleep(&wanted, &left) == -1 && errno == EINTR && left.tv_sec > 800 && left.tv_sec < 1000,
          "nanosleep tells what is left: %ld s", (long)left.tv_sec);
    every_ms(0);
    close(ends[0]);
    close(ends[1]);
}

static volatile pthread_t receiver;
static void on_thread(int number, siginfo_t *info, void *context) {
    (void)info, (void)context;
    receiver = pthread_self();
    count[number]++;
}

static volatile pid_t thread_id;
static void *wait_for_signal(void *unused) {
    thread_id = (pid_t)syscall(SYS_gettid);
    while (count[SIGUSR2] == 0) usleep(1000);
    return unused;
}

static void threads(void) {
    install(SIGUSR2, 0, on_thread);
    pthread_t thread;
    thread_id = 0;
    CHECK(pthread_create(&thread, NULL, wait_for_signal, NULL) == 0, "thread");
    while (thread_id == 0) usleep(1000);
    CHECK(syscall(SYS_tgkill, getpid(), thread_id, SIGUSR2) == 0, "tgkill");
    pthread_join(thread, NULL);
    CHECK(pthread_equal(receiver, thread), "tgkill reaches the thread that it names");

    /* A signal to the process goes to a thread that doesn't block it. */
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    count[SIGUSR2] = 0;
    thread_id = 0;
    CHECK(pthread_create(&thread, NULL, wait_for_signal, NULL) == 0, "thread");
    while (thread_id == 0) usleep(1000);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    kill(getpid(), SIGUSR2);
    pthread_t other = thread;
    pthread_join(thread, NULL);
    CHECK(pthread_equal(receiver, other), "the open thread takes it");
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

int main(void) {
    static const struct { const char *name; void (*run)(void); } parts[] = {
        {"handlers and siginfo", handlers_and_info},
        {"masks, sigsuspend, sigtimedwait", masks},
        {"nested handlers", nested},
        {"alternate stack and faults", alternate_stack},
        {"SIGCHLD, SIGTERM, SIGPIPE", children_and_pipes},
        {"EINTR and SA_RESTART", interruption_and_restart},
        {"tgkill and threads", threads},
    };
    int total = sizeof parts / sizeof *parts;
    for (int i = 0; i < total; i++) {
        parts[i].run();
        printf("ok %s\n", parts[i].name);
        fflush(stdout);
    }
    printf("PASS signals: %d parts\n", total);
    return 0;
}
