/* Small costs, each as a line "NAME COUNT NS TICKS": per operation, the least of several batches. Under an emulator that counts
 * instructions with the TSC, TICKS is instructions, loop included.
 * Usage: ubench WHAT [COUNT]    syscall | yield | pipe | fault | sleep
 *        ubench idle SECONDS | spin MILLIONS [THREADS]      loads without a figure of their own */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

enum { BATCHES = 5 };

static void null_calls(long count) {
    for (long i = 0; i < count; i++) {
        long result = SYS_getppid;
        __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    }
}

static void empty_loop(long count) {
    for (long i = 0; i < count; i++) {
        long result = SYS_getppid;
        __asm__ volatile("nop" : "+a"(result) : : "rcx", "r11", "memory");
    }
}

static volatile int partner_stop;
static void *yielding(void *unused) {
    while (!partner_stop) syscall(SYS_sched_yield);
    return unused;
}
static void yields(long count) {
    for (long i = 0; i < count; i++) syscall(SYS_sched_yield);
}

static int there[2], back[2];
static void *echo(void *unused) {
    char byte;
    while (read(there[0], &byte, 1) == 1)
        if (write(back[1], &byte, 1) != 1) break;
    return unused;
}
static void ping_pong(long count) {
    char byte = 'x';
    for (long i = 0; i < count; i++) CHECK(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "ping-pong");
}

static unsigned char *fresh;
static void touch(long count) {
    for (long i = 0; i < count; i++) fresh[i * 4096] = 1;
}

static void sleeps(long count) {
    struct timespec ms = {.tv_nsec = 1000000};
    for (long i = 0; i < count; i++) nanosleep(&ms, NULL);
}
static void *spin(void *millions) {
    for (long turns = (long)millions * 1000000; turns > 0; turns--) __asm__ volatile("");
    return NULL;
}

static void on_one_cpu(void) {
    cpu_set_t set, one;
    CPU_ZERO(&one);
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0, "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) {
            CPU_SET(cpu, &one);
            break;
        }
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
}

static void measure(const char *name, long count, void (*run)(long)) {
    double least_ns = 1e18, least_ticks = 1e18;
    for (int batch = 0; batch < BATCHES; batch++) {
        if (run == touch) { /* page tables are there, pages are not */
            fresh = mmap(NULL, (size_t)count * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(fresh != MAP_FAILED, "mmap");
        }
        int64_t ns = now_ns(CLOCK_MONOTONIC);
        uint64_t ticks = __rdtsc();
        run(count);
        ticks = __rdtsc() - ticks;
        ns = now_ns(CLOCK_MONOTONIC) - ns;
        if ((double)ns / (double)count < least_ns) least_ns = (double)ns / (double)count;
        if ((double)ticks / (double)count < least_ticks) least_ticks = (double)ticks / (double)count;
        if (run == touch) munmap(fresh, (size_t)count * 4096);
    }
    printf("%s %ld %.1f %.1f\n", name, count, least_ns, least_ticks);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "syscall";
    long count = argument(argc, argv, 2, 200);
    pthread_t partner;
    CHECK(count >= 1, "COUNT 1..");
    if (!strcmp(what, "syscall")) {
        measure("empty", count, empty_loop);
        measure("syscall", count, null_calls);
    } else if (!strcmp(what, "yield")) {
        on_one_cpu(); /* before the partner starts: it inherits the CPU */
        measure("yield-alone", count, yields);
        CHECK(pthread_create(&partner, NULL, yielding, NULL) == 0, "thread");
        yields(10);
        measure("yield-pair", count, yields); /* each turn: two switches and two calls */
        partner_stop = 1;
        pthread_join(partner, NULL);
    } else if (!strcmp(what, "pipe")) {
        CHECK(pipe(there) == 0 && pipe(back) == 0, "pipe");
        CHECK(pthread_create(&partner, NULL, echo, NULL) == 0, "thread");
        measure("pipe-round-trip", count, ping_pong);
        close(there[1]);
        pthread_join(partner, NULL);
    } else if (!strcmp(what, "fault")) {
        measure("minor-fault", count, touch);
    } else if (!strcmp(what, "sleep")) {
        measure("sleep-1ms", count, sleeps);
    } else if (!strcmp(what, "spin")) {
        long threads = argument(argc, argv, 3, 1);
        pthread_t thread[64];
        CHECK(threads >= 1 && threads <= 64, "THREADS 1..64");
        for (long i = 0; i < threads; i++) CHECK(pthread_create(&thread[i], NULL, spin, (void *)count) == 0, "thread %ld", i);
        for (long i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    } else if (!strcmp(what, "idle")) {
        sleep((unsigned)count);
    } else {
        fprintf(stderr, "usage: ubench syscall|yield|pipe|fault|spin|sleep|idle [COUNT]\n");
        return 2;
    }
    return 0;
}
