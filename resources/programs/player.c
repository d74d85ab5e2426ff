/* Plays a small plan for the scheduler: tasks that only compute and start together, each until it has had its CPU time, or all
 * until the first of them has. Prints what CPU time each was accounted for, in the order in which they finished.
 * Usage: player first|all TASK...     TASK: normal:NICE:MS | fifo:PRIORITY:MS | rr:PRIORITY:MS
 * A line for each task: "TASK-NUMBER CPU-NS" */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_TASKS = 64, TOP = 99 };

struct task {
    pthread_t thread;
    int policy, value; /* nice or priority */
    int64_t amount, used;
    sem_t gate;
};
static struct task tasks[MAX_TASKS];
static int order[MAX_TASKS];
static atomic_int finished;
static atomic_bool stop;
static bool until_first;
static sem_t ready;

/* musl's own sched_setscheduler is a stub; the kernel's call is of one thread. */
static void set_policy(int policy, int priority) {
    struct sched_param param = {.sched_priority = priority};
    CHECK(syscall(SYS_sched_setscheduler, 0, policy, &param) == 0, "policy %d, priority %d", policy, priority);
}

/* A few milliseconds, so that the call between two of them doesn't count. */
static void compute(void) {
    for (long turns = 5000000; turns > 0; turns--) __asm__ volatile("");
}

static void *play(void *argument) {
    struct task *task = argument;
    CHECK(sem_post(&ready) == 0 && sem_wait(&task->gate) == 0, "the start");
    if (task->policy == SCHED_OTHER) CHECK(setpriority(PRIO_PROCESS, 0, task->value) == 0, "nice %d", task->value);
    set_policy(task->policy, task->policy == SCHED_OTHER ? 0 : task->value);
    int64_t start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    do {
        compute();
        task->used = now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
    } while (task->used < task->amount && !atomic_load(&stop));
    if (until_first) atomic_store(&stop, true);
    order[atomic_fetch_add(&finished, 1)] = (int)(task - tasks);
    return NULL;
}

static void read_task(struct task *task, const char *text) {
    char name[8];
    long ms;
    CHECK(sscanf(text, "%7[a-z]:%d:%ld", name, &task->value, &ms) == 3, "'%s' is no task", text);
    task->policy = strcmp(name, "fifo") == 0 ? SCHED_FIFO : strcmp(name, "rr") == 0 ? SCHED_RR : SCHED_OTHER;
    CHECK(task->policy != SCHED_OTHER || strcmp(name, "normal") == 0, "'%s' is no class", name);
    task->amount = ms * 1000000;
    CHECK(sem_init(&task->gate, 0, 0) == 0, "semaphore");
}

int main(int argc, char **argv) {
    int count = argc - 2;
    CHECK(count > 0 && count <= MAX_TASKS, "usage: player first|all TASK...");
    until_first = strcmp(argv[1], "first") == 0;
    CHECK(until_first || strcmp(argv[1], "all") == 0, "'%s': first or all", argv[1]);
    CHECK(sem_init(&ready, 0, 0) == 0, "semaphore");
    /* The threads inherit it: none computes before all have been let go, and this one is never among those that wait for a CPU. */
    set_policy(SCHED_FIFO, TOP);
    for (int i = 0; i < count; i++) {
        read_task(&tasks[i], argv[i + 2]);
        CHECK(pthread_create(&tasks[i].thread, NULL, play, &tasks[i]) == 0, "thread %d", i);
    }
    for (int i = 0; i < count; i++) CHECK(sem_wait(&ready) == 0, "ready");
    for (int i = 0; i < count; i++) CHECK(sem_post(&tasks[i].gate) == 0, "gate");
    for (int i = 0; i < count; i++) CHECK(pthread_join(tasks[i].thread, NULL) == 0, "join");
    for (int i = 0; i < count; i++) printf("%d %lld\n", order[i], (long long)tasks[order[i]].used);
    return 0;
}
