/* Many threads that wait, for whoever looks at them from outside. Usage: crowd [THREADS [SECONDS]]; they wait so long. */
#include "check.h"
#include <limits.h>
#include <pthread.h>
#include <unistd.h>

static int gate[2];
static pthread_barrier_t all;

static void *wait_for_the_gate(void *unused) {
    char byte;
    pthread_barrier_wait(&all);
    CHECK(read(gate[0], &byte, 1) == 0, "the gate is closed, never written to");
    return unused;
}

int main(int argc, char **argv) {
    long count = argument(argc, argv, 1, 50);
    long seconds = argument(argc, argv, 2, 0);
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    pthread_attr_t attr;
    size_t stack = PTHREAD_STACK_MIN < 16384 ? 16384 : PTHREAD_STACK_MIN;

    CHECK(threads && count > 0 && pipe(gate) == 0, "%ld threads", count);
    CHECK(pthread_barrier_init(&all, NULL, (unsigned)count + 1) == 0, "barrier");
    CHECK(pthread_attr_init(&attr) == 0 && pthread_attr_setstacksize(&attr, stack) == 0, "stacks of %zu bytes", stack);
    for (long i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], &attr, wait_for_the_gate, NULL) == 0, "thread %ld", i);
    pthread_barrier_wait(&all);
    printf("%ld threads wait\n", count);
    fflush(stdout);
    sleep((unsigned)seconds);
    close(gate[1]);
    for (long i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0, "thread %ld", i);
    puts("PASS crowd");
    return 0;
}
