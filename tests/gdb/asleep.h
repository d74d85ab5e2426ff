// Waiting for a thread to wait, whatever the machine's load.
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/types.h>

// Returns when the thread sleeps on the lock: there is a waiter (glibc: 2 says so), and its state is S (proc_pid_stat(5)).
static void wait_until_asleep(const volatile pid_t *thread, const pthread_mutex_t *lock) {
    char state = 0;
    while (state != 'S') {
        char path[64];
        sched_yield();
        snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)*thread);
        FILE *stat = *thread && __atomic_load_n(&lock->__data.__lock, __ATOMIC_RELAXED) == 2 ? fopen(path, "r") : NULL;
        if (stat == NULL)
            continue;
        if (fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
            state = 0;
        fclose(stat);
    }
}
