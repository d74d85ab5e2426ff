/* Small costs, each as a line "NAME COUNT NS TICKS": per operation, the least of several batches. Under an emulator that counts
 * instructions with the TSC, TICKS is instructions, loop included.
 * Usage: ubench WHAT [COUNT]    syscall | yield | switch | wake | remote | pipe | fault | sleep
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
enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 }; /* musl-gcc has no linux/futex.h */

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

/* As null_calls, so that the difference is the kernel's. */
static void yields(long count) {
    for (long i = 0; i < count; i++) {
        long result = SYS_sched_yield;
        __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
    }
}
static volatile int partner_stop;
static void *yielding(void *unused) {
    while (!partner_stop) yields(1);
    return unused;
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

/* One thread wakes another and waits itself until that wakes it. */
static int turn; /* 0: ours, 1: the partner's, 2: end */
static void wait_while(int value) {
    while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) == value) syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void hand_over(int to) {
    __atomic_store_n(&turn, to, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
static void *answering(void *unused) {
    for (;;) {
        wait_while(0);
        if (turn == 2) return unused;
        hand_over(0);
    }
}
static void hand_overs(long count) {
    for (long i = 0; i < count; i++) {
        hand_over(1);
        wait_while(1);
    }
}

/* From before the call that wakes to the first instruction of the woken one, which tells when that was. */
static volatile uint64_t woken_at;
static void *stamping(void *priority) {
    struct sched_param param = {.sched_priority = (int)(long)priority};
    if (priority) CHECK(syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &param) == 0, "SCHED_FIFO"); /* musl has none */
    hand_over(0);
    for (;;) {
        wait_while(0);
        woken_at = __rdtsc();
        if (turn == 2) return NULL;
        hand_over(0);
    }
}
static void report(const char *name, long count, uint64_t ticks) {
    printf("%s %ld 0 %.1f\n", name, count, (double)ticks);
    fflush(stdout);
}
static void wake_latency(const char *name, long count, int partner_cpu, long priority) {
    pthread_t partner;
    uint64_t least = UINT64_MAX;
    turn = 1;
    CHECK(pthread_create(&partner, NULL, stamping, (void *)priority) == 0, "thread");
    if (partner_cpu >= 0) {
        cpu_set_t other;
        CPU_ZERO(&other);
        CPU_SET(partner_cpu, &other);
        CHECK(pthread_setaffinity_np(partner, sizeof other, &other) == 0, "no CPU %d", partner_cpu);
    }
    wait_while(1);
    for (long i = 0; i < count; i++) {
        if (partner_cpu >= 0) usleep(1000); /* until its CPU idles */
        uint64_t before = __rdtsc();
        hand_over(1);
        wait_while(1);
        if (woken_at - before < least) least = woken_at - before;
    }
    hand_over(2);
    pthread_join(partner, NULL);
    report(name, count, least);
}

/* Two that never give way look at the clock: the gap between the last look of one and the first of the other. Time and who it
 * was are one word, so that a look cut in two by a preemption can only be lost. */
static volatile uint64_t last_look;
static volatile int gaps_left;
static uint64_t least_gap = UINT64_MAX;
static void *looking(void *self) {
    uint64_t me = (uint64_t)(uintptr_t)self, turns = 0;
    while (gaps_left > 0) {
        /* Where one instruction is one nanosecond, a slice can be a whole number of turns: each would end at the same place. */
        if ((++turns & 0xfff) == 0) __asm__ volatile("nop");
        uint64_t last = last_look, now = __rdtsc();
        if ((last & 1) != me) {
            if (now - (last >> 1) < least_gap) least_gap = now - (last >> 1);
            gaps_left--;
        }
        last_look = now << 1 | me;
    }
    return NULL;
}
static void preemptions(long count) {
    pthread_t partner;
    gaps_left = (int)count;
    last_look = __rdtsc() << 1;
    CHECK(pthread_create(&partner, NULL, looking, (void *)1L) == 0, "thread");
    looking((void *)0L);
    pthread_join(partner, NULL);
    report("preempt", count, least_gap);
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
    } else if (!strcmp(what, "switch")) {
        on_one_cpu();
        measure("yield-alone", count, yields);
        CHECK(pthread_create(&partner, NULL, yielding, NULL) == 0, "thread");
        yields(10);
        measure("yield-pair", count, yields);
        partner_stop = 1;
        pthread_join(partner, NULL);
        CHECK(pthread_create(&partner, NULL, answering, NULL) == 0, "thread");
        hand_overs(10);
        measure("wake-pair", count, hand_overs); /* each turn: two wakes, two waits */
        hand_over(2);
        pthread_join(partner, NULL);
        wake_latency("wake-preempts", count, -1, 10);
        preemptions(10);
    } else if (!strcmp(what, "wake")) {
        on_one_cpu();
        wake_latency("wake-preempts", count, -1, 10);
    } else if (!strcmp(what, "remote")) {
        on_one_cpu();
        wake_latency("wake-remote", count, 1, 0);
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
        fprintf(stderr, "usage: ubench syscall|yield|switch|wake|remote|pipe|fault|spin|sleep|idle [COUNT]\n");
        return 2;
    }
    return 0;
}
