/* Clocks and timers of CPU time: they count what was run and not what was slept, end no earlier than they should, and RLIMIT_CPU
 * holds. Usage: cputime [MILLISECONDS of CPU time per check] */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int64_t span;

static struct timespec spec(int64_t ns) { return (struct timespec){ns / 1000000000, ns % 1000000000}; }

static volatile sig_atomic_t fired;
static void count(int sig) {
    (void)sig;
    fired++;
}
static void on(int sig, void (*handler)(int)) {
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    CHECK(sigaction(sig, &a, NULL) == 0, "sigaction");
}

static volatile unsigned sink;
static void burn_until_fired(int times) {
    while (fired < times)
        for (int i = 0; i < 10000; i++)
            sink++;
}

/* Sleeps, and the clock does not go on meanwhile. A machine that waits for its own CPU just before a sleep begins or after it ends counts
 * that: a clock that counts sleep does so every time. A timer may have ended by now, if the clock says so too. */
static void sleep_uncounted(clockid_t clock, int64_t before, int64_t early, const char *name) {
    int64_t used, wall;
    int tries = 20;
    do {
        wall = now_ns(CLOCK_MONOTONIC), used = now_ns(clock);
        usleep(2 * span / 1000);
        used = now_ns(clock) - used;
        wall = now_ns(CLOCK_MONOTONIC) - wall;
    } while (used > wall - span && --tries > 0);
    CHECK(tries > 0, "%s counts sleep: %ld of %ld ns", name, (long)used, (long)wall);
    CHECK(fired == 0 || now_ns(clock) - before >= span - early, "%s fired too early", name);
}

/* A tick early is what a kernel that counts in ticks may be. */
#define TICK 20000000

static void intervals(void) {
    static const struct {
        int which, sig;
        const char *name;
    } kinds[] = {{ITIMER_VIRTUAL, SIGVTALRM, "ITIMER_VIRTUAL"}, {ITIMER_PROF, SIGPROF, "ITIMER_PROF"}};
    for (int k = 0; k < 2; k++) {
        on(kinds[k].sig, count);
        fired = 0;
        struct itimerval t = {.it_value.tv_usec = span / 1000, .it_interval.tv_usec = span / 1000}, left;
        int64_t before = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        CHECK(setitimer(kinds[k].which, &t, NULL) == 0, "setitimer");
        CHECK(getitimer(kinds[k].which, &left) == 0 && left.it_value.tv_usec > 0, "getitimer");
        sleep_uncounted(CLOCK_PROCESS_CPUTIME_ID, before, TICK, kinds[k].name);
        burn_until_fired(2);
        int64_t used = now_ns(CLOCK_PROCESS_CPUTIME_ID) - before;
        CHECK(used >= 2 * span - TICK, "%s fired after %ld ns", kinds[k].name, (long)used);
        t = (struct itimerval){0};
        CHECK(setitimer(kinds[k].which, &t, &left) == 0 && left.it_interval.tv_usec == span / 1000, "setitimer, off");
        puts(kinds[k].name);
    }
    struct itimerval t;
    CHECK(getitimer(3, &t) == -1 && errno == EINVAL, "a fourth interval timer");
}

static void posix_timers(clockid_t clock, const char *name) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec t = {.it_value = spec(span)}, left;
    on(SIGUSR1, count);
    fired = 0;
    CHECK(timer_create(clock, &event, &timer) == 0, "timer_create on %s", name);
    int64_t before = now_ns(clock);
    CHECK(timer_settime(timer, 0, &t, NULL) == 0, "timer_settime");
    sleep_uncounted(clock, before, 0, name);
    CHECK(timer_gettime(timer, &left) == 0 && left.it_value.tv_nsec <= span, "timer_gettime");
    CHECK(fired > 0 || left.it_value.tv_nsec > 0, "%s is over and has not fired", name);
    burn_until_fired(1);
    CHECK(now_ns(clock) - before >= span, "%s fired too early", name);
    t.it_value = spec(now_ns(clock) + span);
    CHECK(timer_settime(timer, TIMER_ABSTIME, &t, NULL) == 0, "timer_settime, absolute");
    burn_until_fired(2);
    CHECK(now_ns(clock) >= t.it_value.tv_sec * 1000000000LL + t.it_value.tv_nsec, "%s, absolute, fired too early", name);
    CHECK(timer_delete(timer) == 0, "timer_delete");
    printf("timers on %s\n", name);
}

static volatile int stop;
static void *burn(void *unused) {
    (void)unused;
    while (!stop)
        sink++;
    return NULL;
}

/* One thread sleeps until the process, another thread of which runs, has used some CPU time. */
static void process_sleep(void) {
    pthread_t other;
    stop = 0;
    CHECK(pthread_create(&other, NULL, burn, NULL) == 0, "pthread_create");
    int64_t before = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    struct timespec t = spec(span);
    CHECK(clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, 0, &t, NULL) == 0, "clock_nanosleep");
    CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) - before >= span, "slept too short");
    t = spec(now_ns(CLOCK_PROCESS_CPUTIME_ID) + span);
    CHECK(clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, TIMER_ABSTIME, &t, NULL) == 0, "clock_nanosleep, absolute");
    CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) >= t.tv_sec * 1000000000LL + t.tv_nsec, "slept too short, absolute");
    clockid_t clock;
    CHECK(pthread_getcpuclockid(other, &clock) == 0, "pthread_getcpuclockid");
    CHECK(now_ns(clock) > span, "the other thread's clock");
    t = spec(span);
    CHECK(clock_nanosleep(clock, 0, &t, NULL) == 0, "clock_nanosleep on another thread's clock");
    stop = 1;
    pthread_join(other, NULL);
    CHECK(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &t, NULL) != 0, "a sleep on the own clock");
    puts("sleeps");
}

/* A thread that was never preempted counts all the same: here, for its parent, and seen from outside. */
static void children(void) {
    pid_t pid = fork();
    if (pid == 0) {
        alarm(60); /* in case that the parent fails */
        /* Not just until the span is over: a kernel that looks at its ticks only never sees the end of a clock that has stopped. */
        for (;;)
            sink++;
    }
    clockid_t clock;
    CHECK(clock_getcpuclockid(pid, &clock) == 0, "clock_getcpuclockid");
    struct timespec t = spec(span / 2);
    CHECK(clock_nanosleep(clock, TIMER_ABSTIME, &t, NULL) == 0, "clock_nanosleep on a child's clock");
    while (now_ns(clock) < span)
        usleep(1000);
    kill(pid, SIGKILL);
    struct rusage usage;
    CHECK(wait4(pid, NULL, 0, &usage) == pid, "wait4");
    int64_t used = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000LL
                   + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000LL;
    /* Some kernels count by ticks. */
    CHECK(used >= span - 20000000, "the child's usage is %ld ns", (long)used);
    CHECK(clock_gettime(clock, &t) == -1 && errno == EINVAL, "the clock of nobody");
    puts("children");
}

static void cpu_limit(void) {
    pid_t pid = fork();
    if (pid == 0) {
        fired = 0;
        on(SIGXCPU, count);
        struct rlimit limit = {1, 2};
        CHECK(setrlimit(RLIMIT_CPU, &limit) == 0, "setrlimit");
        burn_until_fired(1);
        /* Linux counts this limit in ticks, each of which belongs to whoever runs when it comes. */
        if (now_ns(CLOCK_PROCESS_CPUTIME_ID) < 500000000)
            _exit(2);
        for (;;)
            sink++;
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "beyond the hard limit: status %#x", status);
    pid = fork();
    if (pid == 0) {
        struct rlimit limit = {1, RLIM_INFINITY};
        CHECK(setrlimit(RLIMIT_CPU, &limit) == 0, "setrlimit");
        pid = fork(); /* it is inherited, what was used is not */
        if (pid == 0)
            for (;;)
                sink++;
        CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
        _exit(WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == SIGXCPU, "beyond the soft limit: status %#x", status);
    puts("limit");
}

int main(int argc, char **argv) {
    span = argument(argc, argv, 1, 50) * 1000000LL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    intervals();
    posix_timers(CLOCK_PROCESS_CPUTIME_ID, "CLOCK_PROCESS_CPUTIME_ID");
    posix_timers(CLOCK_THREAD_CPUTIME_ID, "CLOCK_THREAD_CPUTIME_ID");
    process_sleep();
    children();
    cpu_limit();
    puts("PASS cputime");
    return 0;
}
