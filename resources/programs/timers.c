/* Sleeps and timers: never short, on any clock, by any call, with several threads at it.
 * Usage: timers [ROUNDS] [THREADS]     the worst lateness of each call goes to stderr */
#define _GNU_SOURCE
#include "check.h"
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <unistd.h>

static long rounds;

static struct timespec span(int64_t ns) { return (struct timespec){ns / 1000000000, ns % 1000000000}; }

static void by_nanosleep(int64_t ns) {
    struct timespec t = span(ns);
    CHECK(nanosleep(&t, NULL) == 0, "nanosleep");
}
static void by_clock_relative(int64_t ns) {
    struct timespec t = span(ns);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL) == 0, "clock_nanosleep");
}
static void by_clock_absolute(int64_t ns) {
    struct timespec t = span(now_ns(CLOCK_MONOTONIC) + ns);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == 0, "clock_nanosleep, absolute");
}
/* These count in milliseconds: round up, as a caller would. */
static int ms(int64_t ns) { return (int)((ns + 999999) / 1000000); }
static void by_poll(int64_t ns) { CHECK(poll(NULL, 0, ms(ns)) == 0, "poll"); }
static void by_select(int64_t ns) {
    struct timeval t = {ns / 1000000000, (ns % 1000000000 + 999) / 1000};
    CHECK(select(0, NULL, NULL, NULL, &t) == 0, "select");
}
static void by_epoll(int64_t ns) {
    struct epoll_event event;
    int fd = epoll_create1(0);
    CHECK(fd >= 0 && epoll_wait(fd, &event, 1, ms(ns)) == 0, "epoll_wait");
    close(fd);
}
static void by_timerfd(int64_t ns) {
    uint64_t expirations = 0;
    struct itimerspec t = {.it_value = span(ns)};
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    CHECK(fd >= 0 && timerfd_settime(fd, 0, &t, NULL) == 0, "timerfd");
    CHECK(read(fd, &expirations, 8) == 8 && expirations == 1, "timerfd tells %ld expirations", (long)expirations);
    close(fd);
}
static void by_condition(int64_t ns) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&condition, &attributes);
    struct timespec t = span(now_ns(CLOCK_MONOTONIC) + ns);
    pthread_mutex_lock(&mutex);
    int result;
    while ((result = pthread_cond_timedwait(&condition, &mutex, &t)) == 0) {}
    CHECK(result == ETIMEDOUT, "pthread_cond_timedwait: %d", result);
    pthread_mutex_unlock(&mutex);
}
static void by_semaphore(int64_t ns) {
    sem_t semaphore;
    sem_init(&semaphore, 0, 0);
    struct timespec t = span(now_ns(CLOCK_REALTIME) + ns);
    CHECK(sem_timedwait(&semaphore, &t) == -1 && errno == ETIMEDOUT, "sem_timedwait");
}

static const struct { const char *name; void (*sleep)(int64_t); } ways[] = {
    {"nanosleep", by_nanosleep}, {"clock_nanosleep", by_clock_relative}, {"clock_nanosleep absolute", by_clock_absolute},
    {"poll", by_poll}, {"select", by_select}, {"epoll_wait", by_epoll}, {"timerfd", by_timerfd},
    {"pthread_cond_timedwait", by_condition}, {"sem_timedwait", by_semaphore},
};
enum { WAYS = sizeof ways / sizeof *ways };
static int64_t worst[64][WAYS];

static void *sleeper(void *argument_) {
    long thread = (long)argument_;
    static const int64_t lengths[] = {0, 1, 1000, 50000, 999999, 1000000, 3300000, 10000001};
    for (long round = 0; round < rounds; round++)
        for (int way = 0; way < WAYS; way++)
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                int64_t wanted = lengths[i] == 0 && way == 6 ? 1 : lengths[i]; /* 0 disarms a timerfd */
                int64_t before = now_ns(CLOCK_MONOTONIC);
                ways[way].sleep(wanted);
                int64_t took = now_ns(CLOCK_MONOTONIC) - before;
                CHECK(took >= wanted, "%s of %ld ns took %ld ns", ways[way].name, (long)wanted, (long)took);
                if (took - wanted > worst[thread][way]) worst[thread][way] = took - wanted;
            }
    return NULL;
}

static volatile sig_atomic_t alarms;
static void on_alarm(int number) { (void)number; alarms++; }

static void interval_timer(void) {
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {.it_interval = {.tv_usec = 5000}, .it_value = {.tv_usec = 5000}}, off = {0};
    int64_t before = now_ns(CLOCK_MONOTONIC);
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0, "setitimer");
    while (alarms < 10) pause();
    int64_t took = now_ns(CLOCK_MONOTONIC) - before;
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0, "setitimer off");
    CHECK(took >= 50000000, "10 alarms of 5 ms within %ld ns", (long)took);
    fprintf(stderr, "setitimer: 10 alarms of 5 ms in %.3f ms\n", (double)took / 1e6);
    /* Shorter than a handler takes where a kernel is interpreted: what is below still runs. */
    every.it_interval.tv_usec = every.it_value.tv_usec = 100;
    alarms = 0;
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0, "setitimer");
    while (alarms < 10) pause();
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0, "setitimer off");
}

int main(int argc, char **argv) {
    rounds = argument(argc, argv, 1, 2);
    long threads = argument(argc, argv, 2, 4);
    CHECK(threads >= 1 && threads <= 64, "THREADS 1..64");
    pthread_t thread[64];
    for (long i = 0; i < threads; i++) CHECK(pthread_create(&thread[i], NULL, sleeper, (void *)i) == 0, "thread %ld", i);
    for (long i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    for (int way = 0; way < WAYS; way++) {
        int64_t most = 0;
        for (long i = 0; i < threads; i++)
            if (worst[i][way] > most) most = worst[i][way];
        fprintf(stderr, "%s: at most %.3f ms late\n", ways[way].name, (double)most / 1e6);
    }
    interval_timer();
    printf("PASS timers: %ld threads, %ld rounds, %d calls, none short\n", threads, rounds, WAYS);
    return 0;
}
