/* The scheduling calls: what they set, show and refuse. One line for each group; every check ends the program if it fails.
 * Usage: sched */
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Linux include/uapi/linux/sched/types.h, sched.h: not in musl. */
struct attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t util_min, util_max;
};
enum { NORMAL = 0, FIFO = 1, RR = 2, BATCH = 3, IDLE = 5, DEADLINE = 6 };
enum { ON_FORK = 0x40000000, FLAG_ON_FORK = 1, KEEP_POLICY = 8, KEEP_PARAMS = 16 };
static const uint64_t MS = 1000000;

static long set_scheduler(int pid, int policy, int priority) {
    return syscall(SYS_sched_setscheduler, pid, policy, &priority);
}
static long get_scheduler(int pid) { return syscall(SYS_sched_getscheduler, pid); }
static long set_param(int priority) { return syscall(SYS_sched_setparam, 0, &priority); }
static int get_param(void) {
    int priority = -1;
    CHECK(syscall(SYS_sched_getparam, 0, &priority) == 0, "sched_getparam");
    return priority;
}
static long set_attr(struct attr a) {
    if (!a.size) a.size = 48;
    return syscall(SYS_sched_setattr, 0, &a, 0);
}
static struct attr get_attr(void) {
    struct attr a = {0};
    CHECK(syscall(SYS_sched_getattr, 0, &a, sizeof a, 0) == 0, "sched_getattr");
    return a;
}
static uint64_t interval(void) {
    struct timespec t;
    CHECK(syscall(SYS_sched_rr_get_interval, 0, &t) == 0, "sched_rr_get_interval");
    return (uint64_t)t.tv_sec * 1000 * MS + (uint64_t)t.tv_nsec;
}
#define FAILS(call, error) CHECK((call) == -1 && errno == (error), "%s: not %s", #call, #error)

static void policies(void) {
    CHECK(get_scheduler(0) == NORMAL && get_param() == 0, "at the start");
    CHECK(set_scheduler(0, FIFO, 10) == 0 && get_scheduler(0) == FIFO && get_param() == 10, "FIFO");
    CHECK(set_param(20) == 0 && get_param() == 20 && interval() == 0, "FIFO 20");
    FAILS(set_param(0), EINVAL);
    FAILS(set_param(100), EINVAL);
    CHECK(set_scheduler(0, RR | ON_FORK, 99) == 0 && get_scheduler(0) == (RR | ON_FORK), "RR, reset on fork");
    CHECK(interval() == 100 * MS, "the slice of RR");
    for (int policy = BATCH; policy <= IDLE; policy += IDLE - BATCH)
        CHECK(set_scheduler(0, policy, 0) == 0 && get_scheduler(0) == policy, "policy %d", policy);
    FAILS(set_scheduler(0, NORMAL, 1), EINVAL);
    FAILS(set_scheduler(0, FIFO, 0), EINVAL);
    FAILS(set_scheduler(0, RR, 100), EINVAL);
    FAILS(set_scheduler(0, 4, 0), EINVAL);
    FAILS(set_scheduler(0, -1, 0), EINVAL);
    FAILS(set_scheduler(0, DEADLINE, 0), EINVAL);
    FAILS(set_scheduler(-1, NORMAL, 0), EINVAL);
    FAILS(set_scheduler(999999, NORMAL, 0), ESRCH);
    FAILS(syscall(SYS_sched_setscheduler, 0, NORMAL, NULL), EINVAL);
    FAILS(syscall(SYS_sched_setscheduler, 0, NORMAL, 8), EFAULT);
    CHECK(sched_get_priority_max(FIFO) == 99 && sched_get_priority_min(RR) == 1, "limits");
    CHECK(sched_get_priority_max(NORMAL) == 0 && sched_get_priority_min(DEADLINE) == 0, "limits of the others");
    FAILS(sched_get_priority_max(77), EINVAL);
    CHECK(set_scheduler(0, NORMAL, 0) == 0, "back to normal");
    puts("policies ok");
}

static void nice_values(void) {
    CHECK(setpriority(PRIO_PROCESS, 0, 7) == 0 && getpriority(PRIO_PROCESS, 0) == 7, "nice 7");
    CHECK(setpriority(PRIO_PROCESS, 0, -100) == 0 && getpriority(PRIO_PROCESS, 0) == -20, "at least -20");
    CHECK(setpriority(PRIO_PROCESS, 0, 100) == 0 && getpriority(PRIO_PROCESS, 0) == 19, "at most 19");
    CHECK(set_scheduler(0, FIFO, 1) == 0 && getpriority(PRIO_PROCESS, 0) == 19, "kept under FIFO");
    CHECK(set_scheduler(0, NORMAL, 0) == 0 && get_attr().nice == 19, "and after");
    CHECK(setpriority(PRIO_PROCESS, 0, 0) == 0, "nice 0");
    FAILS(setpriority(PRIO_PROCESS, 999999, 0), ESRCH);
    FAILS(setpriority(9, 0, 0), EINVAL);
    puts("nice ok");
}

static void attributes(void) {
    struct attr a = get_attr();
    CHECK(a.size == sizeof a && a.policy == NORMAL && a.runtime > 0, "as it is");
    CHECK(set_attr((struct attr){.policy = NORMAL, .nice = 3, .runtime = 20 * MS}) == 0, "a slice of 20 ms");
    a = get_attr();
    CHECK(a.nice == 3, "nice by sched_setattr");
    CHECK(a.runtime == 20 * MS || a.runtime == interval(), "the slice that it asked for, or the policy's own");
    CHECK(set_attr((struct attr){.policy = FIFO, .priority = 30, .flags = FLAG_ON_FORK}) == 0, "FIFO by sched_setattr");
    a = get_attr();
    CHECK(a.policy == FIFO && a.priority == 30 && a.flags == FLAG_ON_FORK, "as it was set");
    CHECK(set_attr((struct attr){.policy = NORMAL, .priority = 31, .flags = KEEP_POLICY}) == 0, "keep the policy");
    CHECK(get_attr().policy == FIFO && get_attr().priority == 31, "kept");
    CHECK(set_attr((struct attr){.policy = RR, .flags = KEEP_PARAMS | FLAG_ON_FORK}) == 0, "keep the parameters");
    a = get_attr(); /* Linux keeps the policy as well */
    CHECK(a.policy == FIFO && a.priority == 31 && a.flags == FLAG_ON_FORK, "kept");
    CHECK(set_attr((struct attr){.policy = NORMAL}) == 0 && get_attr().nice == 0, "back to normal");
    FAILS(set_attr((struct attr){.policy = FIFO}), EINVAL);
    FAILS(set_attr((struct attr){.policy = NORMAL, .flags = 1 << 20}), EINVAL);
    FAILS(set_attr((struct attr){.size = 40}), E2BIG);
    a = (struct attr){.size = 40};
    FAILS(syscall(SYS_sched_setattr, 0, &a, 0), E2BIG);
    CHECK(a.size == sizeof a, "the size that would do");
    struct {
        struct attr known;
        uint64_t unknown;
    } longer = {.known = {.size = sizeof longer}};
    CHECK(syscall(SYS_sched_setattr, 0, &longer, 0) == 0, "a newer version with zeros");
    longer.unknown = 1;
    FAILS(syscall(SYS_sched_setattr, 0, &longer, 0), E2BIG);
    FAILS(syscall(SYS_sched_setattr, 0, NULL, 0), EINVAL);
    FAILS(syscall(SYS_sched_setattr, 0, &a, 1), EINVAL);
    FAILS(syscall(SYS_sched_getattr, 0, &a, 47, 0), EINVAL);
    puts("attributes ok");
}

static void deadlines(void) {
    struct attr a = {.policy = DEADLINE, .runtime = 2 * MS, .deadline = 20 * MS, .period = 40 * MS};
    CHECK(set_attr(a) == 0 && get_scheduler(0) == DEADLINE, "2 ms by 20 ms every 40 ms");
    struct attr b = get_attr();
    CHECK(b.runtime == a.runtime && b.deadline == a.deadline && b.period == a.period, "as it was set");
    FAILS(set_param(0), EINVAL);
    errno = 0;
    CHECK(fork() == -1 && errno == EAGAIN, "a deadline task has no children");
    FAILS(set_attr((struct attr){.policy = DEADLINE, .runtime = 21 * MS, .deadline = 20 * MS, .period = 40 * MS}), EINVAL);
    FAILS(set_attr((struct attr){.policy = DEADLINE, .runtime = 39 * MS, .deadline = 40 * MS, .period = 40 * MS}), EBUSY);
    CHECK(get_attr().runtime == 2 * MS, "nothing has changed");
    /* Much more than one budget: throttled and given new ones, it comes to the end. */
    struct timespec start, now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec < 10000000);
    CHECK(sched_yield() == 0, "yield until the next period");
    CHECK(set_scheduler(0, NORMAL, 0) == 0, "back to normal");
    puts("deadlines ok");
}

static int in_child(int (*check)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) _exit(check());
    int status;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    return status;
}
static int is_fifo_5(void) { return !(get_scheduler(0) == FIFO && get_param() == 5); }
static int is_normal_0(void) { return !(get_scheduler(0) == NORMAL && getpriority(PRIO_PROCESS, 0) == 0); }
static int is_nice_9(void) { return !(get_scheduler(0) == BATCH && getpriority(PRIO_PROCESS, 0) == 9); }

static void children(void) {
    CHECK(set_scheduler(0, FIFO, 5) == 0 && in_child(is_fifo_5) == 0, "a child inherits FIFO");
    CHECK(set_scheduler(0, FIFO | ON_FORK, 5) == 0 && in_child(is_normal_0) == 0, "but not with reset on fork");
    CHECK(set_scheduler(0, BATCH, 0) == 0 && setpriority(PRIO_PROCESS, 0, 9) == 0, "BATCH, nice 9");
    CHECK(in_child(is_nice_9) == 0, "a child inherits BATCH and nice");
    CHECK(set_scheduler(0, NORMAL, 0) == 0 && setpriority(PRIO_PROCESS, 0, 0) == 0, "back to normal");
    puts("children ok");
}

/* Threads on one CPU, started while the first thread holds it as the highest: they must come in the order of their priorities. */
static char order[8];
static int arrived;
static void *arrive(void *letter) {
    order[arrived++] = *(char *)letter; /* one CPU, FIFO: nobody else runs between */
    return NULL;
}
static void by_priority(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0 && set_scheduler(0, FIFO, 50) == 0, "CPU 0, FIFO 50");
    static char letters[] = "cabd";
    static const int priorities[] = {20, 40, 30, 10};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        pthread_attr_t attr;
        struct sched_param param = {.sched_priority = priorities[i]};
        CHECK(pthread_attr_init(&attr) == 0, "attr");
        CHECK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED) == 0, "explicit");
        CHECK(pthread_attr_setschedpolicy(&attr, SCHED_FIFO) == 0, "policy");
        CHECK(pthread_attr_setschedparam(&attr, &param) == 0, "priority");
        CHECK(pthread_create(&threads[i], &attr, arrive, &letters[i]) == 0, "thread");
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(!strcmp(order, "abcd"), "order %s", order);
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_nvcsw > 0, "voluntary switches are counted");
    CHECK(set_scheduler(0, NORMAL, 0) == 0, "back to normal");
    puts("order ok");
}

int main(void) {
    policies();
    nice_values();
    attributes();
    deadlines();
    children();
    by_priority();
    return 0;
}
