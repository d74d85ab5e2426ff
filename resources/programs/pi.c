/* Priority-inheriting locks: who holds one runs with the priority of who waits for it, along the chain; deadlocks are told; a dead
 * owner's lock is inherited. And the futex calls of the second generation. Usage: pi [ROUNDS], or pi hold: a thread named "holder" computes
 * with a lock that one of SCHED_FIFO 50 waits for, until somebody ends both. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* linux/futex.h, which not every C library's headers have. */
enum {
    FUTEX_WAIT_PRIVATE = 0 | 128,
    FUTEX_WAKE_PRIVATE = 1 | 128,
    FUTEX_LOCK_PI_PRIVATE = 6 | 128,
    FUTEX_UNLOCK_PI_PRIVATE = 7 | 128,
    FUTEX_TRYLOCK_PI_PRIVATE = 8 | 128,
    FUTEX_LOCK_PI2_PRIVATE = 13 | 128
};
#define FUTEX_WAITERS 0x80000000u
#define FUTEX_TID_MASK 0x3fffffffu
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
enum { FUTEX2_U32 = 2, FUTEX2_PRIVATE_FLAG = 128, NR_WAKE = 454, NR_WAIT = 455, NR_REQUEUE = 456 };
/* As the kernel's headers of some distributions don't have it yet. */
struct wait_entry {
    uint64_t value, address;
    uint32_t flags, zero;
};

static long futex(uint32_t *word, int op, uint32_t value, const void *timeout) {
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static void be(int policy, int priority) {
    struct sched_param p = {.sched_priority = priority};
    /* musl has no sched_setscheduler. */
    CHECK(syscall(SYS_sched_setscheduler, 0, policy, &p) == 0, "sched_setscheduler");
}

static pthread_mutex_t inheriting(int type, int robust, int shared) {
    pthread_mutexattr_t a;
    pthread_mutex_t m;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, type);
    CHECK(pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT) == 0, "PTHREAD_PRIO_INHERIT");
    pthread_mutexattr_setrobust(&a, robust ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED);
    pthread_mutexattr_setpshared(&a, shared ? PTHREAD_PROCESS_SHARED : PTHREAD_PROCESS_PRIVATE);
    CHECK(pthread_mutex_init(&m, &a) == 0, "pthread_mutex_init");
    return m;
}

/* 1: mutual exclusion. */
static pthread_mutex_t crowd;
static long counter, rounds;
static void *count(void *unused) {
    (void)unused;
    for (long i = 0; i < rounds; i++) {
        CHECK(pthread_mutex_lock(&crowd) == 0, "lock");
        long seen = counter;
        if (i % 16 == 0)
            sched_yield();
        counter = seen + 1;
        CHECK(pthread_mutex_unlock(&crowd) == 0, "unlock");
    }
    return NULL;
}
static void exclusion(void) {
    pthread_t t[6];
    crowd = inheriting(PTHREAD_MUTEX_NORMAL, 0, 0);
    for (int i = 0; i < 6; i++)
        CHECK(pthread_create(&t[i], NULL, count, NULL) == 0, "pthread_create");
    for (int i = 0; i < 6; i++)
        pthread_join(t[i], NULL);
    CHECK(counter == 6 * rounds, "counted %ld", counter);
    puts("exclusion");
}

/* 2: inheritance. All on one CPU: low holds `first`; mid holds `second` and waits for `first`; high waits for `second`; a spinner
 * between them runs until high has had it. Without inheritance through both, low never runs again. */
static pthread_mutex_t first, second;
static volatile int done;
static uint32_t stage, ready;
/* Nobody looks again and again: threads of real-time priority that do would leave none of the CPU to who has none. */
static void await(uint32_t *word, uint32_t value) {
    uint32_t seen;
    while ((seen = __atomic_load_n(word, __ATOMIC_SEQ_CST)) < value)
        futex(word, FUTEX_WAIT_PRIVATE, seen, NULL);
}
static void reach(uint32_t *word) {
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    futex(word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL);
}
static void begin(int priority) {
    be(SCHED_FIFO, priority);
    reach(&ready);
}
static void *low(void *unused) {
    (void)unused;
    begin(10);
    pthread_mutex_lock(&first);
    reach(&stage);
    await(&stage, 4);
    struct sched_param p;
    CHECK(syscall(SYS_sched_getscheduler, 0) == SCHED_FIFO, "the policy that is shown");
    CHECK(syscall(SYS_sched_getparam, 0, &p) == 0 && p.sched_priority == 10, "the priority that is shown");
    pthread_mutex_unlock(&first);
    return NULL;
}
static void *mid(void *unused) {
    (void)unused;
    begin(20);
    await(&stage, 1);
    pthread_mutex_lock(&second);
    reach(&stage);
    pthread_mutex_lock(&first);
    pthread_mutex_unlock(&first);
    pthread_mutex_unlock(&second);
    return NULL;
}
static void *high(void *unused) {
    (void)unused;
    begin(50);
    await(&stage, 3);
    pthread_mutex_lock(&second);
    done = 1;
    pthread_mutex_unlock(&second);
    return NULL;
}
static void *spinner(void *unused) {
    (void)unused;
    begin(60);
    await(&stage, 2);
    await(&ready, 4); /* Who has no real-time priority yet would never get one. */
    reach(&stage);
    usleep(20000); /* high comes to wait */
    be(SCHED_FIFO, 30);
    reach(&stage);
    while (!done)
        ;
    return NULL;
}
static void inheritance(void) {
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0, "sched_getaffinity");
    CPU_ZERO(&one);
    for (int i = 0; CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
    first = inheriting(PTHREAD_MUTEX_NORMAL, 0, 0);
    second = inheriting(PTHREAD_MUTEX_NORMAL, 0, 0);
    void *(*bodies[])(void *) = {low, mid, high, spinner};
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&t[i], NULL, bodies[i], NULL) == 0, "pthread_create");
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0, "sched_setaffinity");
    puts("inheritance");
}

/* 3: what is refused. */
/* Whether a thread of ours is asleep. */
static int sleeps(pid_t tid) {
    char path[64], text[256], *state;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)tid);
    FILE *stat = fopen(path, "r");
    CHECK(stat && fgets(text, sizeof text, stat) && (state = strrchr(text, ')')), "%s", path);
    fclose(stat);
    return state[2] == 'S';
}
static uint32_t one, two;
static volatile int holding;
static volatile pid_t crossing;
static void *cross(void *result) {
    crossing = gettid();
    CHECK(futex(&two, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == 0, "lock of a free one");
    holding = 1;
    long r = futex(&one, FUTEX_LOCK_PI_PRIVATE, 0, NULL);
    *(int *)result = r == 0 ? 0 : errno;
    if (r == 0)
        futex(&one, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL);
    futex(&two, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL);
    return NULL;
}
static void *leaves_one_locked(void *word) {
    CHECK(futex(word, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == 0, "lock");
    return NULL;
}
static void refusals(void) {
    int other = -1;
    pthread_t t;
    uint32_t left = 0;
    CHECK(futex(&one, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == 0 && one == (uint32_t)gettid(), "lock of a free one");
    CHECK(futex(&one, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EDEADLK, "lock of the own one");
    CHECK(futex(&one, FUTEX_TRYLOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EDEADLK, "trylock of the own one");
    CHECK(pthread_create(&t, NULL, cross, &other) == 0, "pthread_create");
    while (!holding || !(*(volatile uint32_t *)&one & FUTEX_WAITERS) || !sleeps(crossing))
        sched_yield();
    CHECK(futex(&two, FUTEX_TRYLOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EAGAIN, "trylock of a taken one");
    CHECK(futex(&two, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EPERM, "unlock of another's");
    CHECK(futex(&two, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EDEADLK, "a circle");
    CHECK(futex(&one, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL) == 0, "unlock");
    pthread_join(t, NULL);
    CHECK(other == 0 && !(one & FUTEX_TID_MASK) && !(two & FUTEX_TID_MASK), "the other: %d, words %#x %#x", other, one, two);

    CHECK(pthread_create(&t, NULL, leaves_one_locked, &left) == 0, "pthread_create");
    pthread_join(t, NULL);
    CHECK(futex(&left, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == -1 && errno == ESRCH, "a dead owner");
    CHECK(futex((uint32_t *)((char *)&one + 1), FUTEX_LOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EINVAL, "alignment");
    CHECK(futex((uint32_t *)4096, FUTEX_LOCK_PI_PRIVATE, 0, NULL) == -1 && errno == EFAULT, "nothing there");
    puts("refusals");
}

/* 4: time. */
static volatile int release;
static void *holds(void *mutex) {
    pthread_mutex_lock(mutex);
    holding = 1;
    while (!release)
        usleep(1000);
    pthread_mutex_unlock(mutex);
    return NULL;
}
static void timeouts(void) {
    pthread_mutex_t m = inheriting(PTHREAD_MUTEX_NORMAL, 0, 0);
    pthread_t t;
    holding = 0;
    pthread_create(&t, NULL, holds, &m);
    while (!holding)
        sched_yield();
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += 30000000;
    if (at.tv_nsec >= 1000000000)
        at.tv_sec++, at.tv_nsec -= 1000000000;
    CHECK(pthread_mutex_timedlock(&m, &at) == ETIMEDOUT, "timedlock");
    int64_t end = at.tv_sec * 1000000000LL + at.tv_nsec;
    CHECK(now_ns(CLOCK_REALTIME) >= end, "timed out too early");
    CHECK(pthread_mutex_trylock(&m) == EBUSY, "trylock");
    uint32_t word = 0;
    CHECK(futex(&word, FUTEX_LOCK_PI2_PRIVATE, 0, NULL) == 0, "FUTEX_LOCK_PI2");
    CHECK(futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL) == 0 && word == 0, "unlock");
    release = 1;
    CHECK(pthread_mutex_lock(&m) == 0 && pthread_mutex_unlock(&m) == 0, "lock after a timeout");
    pthread_join(t, NULL);
    puts("timeouts");
}

/* 5: death of an owner, with and without somebody waiting, in this and in another process. */
static void *dies_holding(void *mutex) {
    CHECK(pthread_mutex_lock(mutex) == 0, "lock");
    holding = 1;
    while (!release)
        usleep(1000);
    usleep(20000); /* so that somebody waits */
    return NULL;
}
static void inherit_from(pthread_mutex_t *m) {
    CHECK(pthread_mutex_lock(m) == EOWNERDEAD, "lock of a dead owner's");
    CHECK(pthread_mutex_consistent(m) == 0 && pthread_mutex_unlock(m) == 0, "made consistent");
    CHECK(pthread_mutex_lock(m) == 0 && pthread_mutex_unlock(m) == 0, "and usable");
}
static void deaths(void) {
    pthread_mutex_t *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_t t;
    *m = inheriting(PTHREAD_MUTEX_NORMAL, 1, 0);
    holding = 0, release = 1;
    pthread_create(&t, NULL, dies_holding, m);
    pthread_join(t, NULL);
    inherit_from(m);
    holding = 0, release = 0;
    pthread_create(&t, NULL, dies_holding, m);
    while (!holding)
        sched_yield();
    release = 1;
    inherit_from(m);
    pthread_join(t, NULL);

    *m = inheriting(PTHREAD_MUTEX_NORMAL, 1, 1);
    int ready[2];
    CHECK(pipe(ready) == 0, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(pthread_mutex_lock(m) == 0 && write(ready[1], "x", 1) == 1, "lock");
        usleep(30000);
        raise(SIGKILL);
    }
    char c;
    CHECK(read(ready[0], &c, 1) == 1, "read");
    inherit_from(m);
    waitpid(pid, NULL, 0);
    puts("deaths");
}

/* 6: the second generation. */
static uint32_t words[3];
static void *waker(void *unused) {
    (void)unused;
    /* The value stays, so that whoever comes to wait late still waits. */
    while (syscall(NR_WAKE, &words[1], ~0U, 1, FUTEX2_U32 | FUTEX2_PRIVATE_FLAG) == 0)
        sched_yield();
    return NULL;
}
static void second_generation(void) {
    struct wait_entry list[3];
    pthread_t t;
    for (int i = 0; i < 3; i++)
        list[i] = (struct wait_entry){0, (uintptr_t)&words[i], FUTEX2_U32 | FUTEX2_PRIVATE_FLAG, 0};
    pthread_create(&t, NULL, waker, NULL);
    CHECK(syscall(SYS_futex_waitv, list, 3, 0, NULL, 0) == 1, "futex_waitv");
    pthread_join(t, NULL);
    words[1] = 1;
    CHECK(syscall(SYS_futex_waitv, list, 3, 0, NULL, 0) == -1 && errno == EAGAIN, "futex_waitv, another value");
    words[1] = 0;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    CHECK(syscall(SYS_futex_waitv, list, 3, 0, &at, CLOCK_MONOTONIC) == -1 && errno == ETIMEDOUT, "futex_waitv, time out");
    CHECK(syscall(SYS_futex_waitv, list, 0, 0, NULL, 0) == -1 && errno == EINVAL, "futex_waitv of none");
    CHECK(syscall(SYS_futex_waitv, list, 129, 0, NULL, 0) == -1 && errno == EINVAL, "futex_waitv of too many");
    list[2].flags = 1;
    CHECK(syscall(SYS_futex_waitv, list, 3, 0, NULL, 0) == -1 && errno == EINVAL, "futex_waitv of 16 bits");
    list[2].flags = FUTEX2_U32;
    list[2].zero = 1;
    CHECK(syscall(SYS_futex_waitv, list, 3, 0, NULL, 0) == -1 && errno == EINVAL, "futex_waitv, reserved");
    CHECK(syscall(NR_WAIT, &words[0], 1, ~0U, FUTEX2_U32, NULL, 0) == -1 && errno == EAGAIN, "futex_wait, another value");
    CHECK(syscall(NR_WAIT, &words[0], 0, ~0U, FUTEX2_U32, &at, CLOCK_MONOTONIC) == -1 && errno == ETIMEDOUT, "futex_wait");
    CHECK(syscall(NR_WAIT, &words[0], 0, 0, FUTEX2_U32, &at, CLOCK_MONOTONIC) == -1 && errno == EINVAL, "futex_wait, no bits");
    CHECK(syscall(NR_WAKE, &words[0], ~0U, 1, FUTEX2_U32) == 0, "futex_wake of nobody");
    list[1].flags = list[0].flags = FUTEX2_U32;
    CHECK(syscall(NR_REQUEUE, list, 0, 1, 1) == 0, "futex_requeue of nobody");
    list[0].value = 7;
    CHECK(syscall(NR_REQUEUE, list, 0, 1, 1) == -1 && errno == EAGAIN, "futex_requeue, another value");
    puts("second generation");
}

static void *wait_for_first(void *unused) {
    (void)unused;
    be(SCHED_FIFO, 50);
    pthread_mutex_lock(&first);
    return NULL;
}
static void hold(void) {
    pthread_t t;
    first = inheriting(PTHREAD_MUTEX_NORMAL, 0, 0);
    CHECK(pthread_mutex_lock(&first) == 0, "lock");
    CHECK(pthread_create(&t, NULL, wait_for_first, NULL) == 0, "pthread_create");
    CHECK(pthread_setname_np(pthread_self(), "holder") == 0, "pthread_setname_np");
    for (volatile long turns = 0;; turns++)
        ;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "hold"))
        hold();
    rounds = argument(argc, argv, 1, 200);
    setvbuf(stdout, NULL, _IOLBF, 0);
    exclusion();
    inheritance();
    refusals();
    timeouts();
    deaths();
    second_generation();
    puts("PASS pi");
    return 0;
}
