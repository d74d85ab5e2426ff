// Programs to be debugged, by their first argument. Each prints at its end what it has counted, so that whatever a debugger leaves
// behind shows.
#define _GNU_SOURCE
#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "asleep.h"

#define NOINLINE __attribute__((noinline))
#define THREADS 8

volatile long total, hits[THREADS], turns[THREADS], go_on = 1;
volatile double product;
int pattern[16] = {1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987};
char message[32] = "as it was";
char block[1 << 20];
struct point {
    int x, y;
    const char *name;
} place = {3, 4, "here"};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

NOINLINE void hit(long who) {
    __atomic_add_fetch(&hits[who], 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&total, 1, __ATOMIC_RELAXED);
}

NOINLINE void marker(void) { __asm__ volatile("" ::: "memory"); }

// Touches each page of the program, so that it is there to be read.
static int touch(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD)
            continue;
        for (size_t at = 0; at < part->p_memsz; at += 4096)
            (void)*(volatile char *)(info->dlpi_addr + part->p_vaddr + at);
    }
    return 0;
}

// On a page of its own, which is not there until it is called.
#define FAR __attribute__((section(".late"), aligned(65536)))
NOINLINE FAR long late(long n) { return n * 3; }
NOINLINE FAR void behind(void) { __asm__ volatile("" ::: "memory"); }

NOINLINE long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

NOINLINE long sum_to(long n) {
    long sum = 0;
    for (long i = 1; i <= n; i++)
        sum += i;
    return sum;
}

NOINLINE long outer(long n) {
    long first = sum_to(n);
    long second = fib(n);
    return first + second;
}

static long loops;

static void *hitter(void *who) {
    for (long i = 0; i < loops; i++)
        hit((long)who);
    return NULL;
}

static void *spinner(void *who) {
    while (go_on)
        turns[(long)who]++;
    return NULL;
}

static volatile pid_t waiting[THREADS];

static void *waiter(void *who) {
    double x = 1.5, y = 2.25;
    product = x * y * (1 + (who != NULL));
    waiting[(long)who] = gettid();
    pthread_mutex_lock(&lock);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void start(void *(*body)(void *), long n, pthread_t *threads) {
    for (long i = 0; i < n; i++)
        pthread_create(&threads[i], NULL, body, (void *)i);
}

static void join(long n, pthread_t *threads) {
    for (long i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

static volatile long wrong, rounds;

static void *checker(void *who) {
    while (go_on) {
        if (fib(6) != 8 || sum_to(100) != 5050)
            __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        hit((long)who);
        __atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static volatile sig_atomic_t traps, faults;
static sigjmp_buf past;
static void on_trap(int signal) { traps += signal == SIGTRAP; }
static void on_fault(int signal) {
    faults += signal == SIGSEGV;
    siglongjmp(past, 1);
}

static void *last_one(void *unused) {
    for (int i = 0; i < 3; i++)
        hit(0);
    printf("hits %ld\n", hits[0]);
    exit(7);
    return unused;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    long n = argc > 2 ? atol(argv[2]) : 2;
    pthread_t threads[THREADS];
    loops = argc > 3 ? atol(argv[3]) : 3;
    if (!strcmp(mode, "hits")) {
        start(hitter, n, threads);
        join(n, threads);
        printf("total %ld\n", total);
    } else if (!strcmp(mode, "spin")) {
        start(spinner, n, threads);
        marker();
        join(n, threads);
        printf("spun\n");
    } else if (!strcmp(mode, "check")) {
        start(checker, n, threads);
        marker();
        join(n, threads);
        printf("wrong %ld lost %ld\n", wrong, rounds - total);
    } else if (!strcmp(mode, "churn")) {
        for (long round = 0; round < loops; round++) {
            start(hitter, n, threads);
            join(n, threads);
            marker();
        }
        printf("total %ld\n", total);
    } else if (!strcmp(mode, "fork")) {
        hit(0);
        pid_t child = fork();
        long result = 0;
        for (long i = 0; i < 5; i++)
            hit(1);
        result = hits[0] + hits[1];
        if (child == 0)
            _exit((int)result);
        int status = 0;
        waitpid(child, &status, 0);
        printf("mine %ld child's %d\n", result, WEXITSTATUS(status));
    } else if (!strcmp(mode, "exec")) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", argv[0], "hits", "1", "4", (char *)NULL);
            _exit(99);
        }
        int status = 0;
        waitpid(child, &status, 0);
        hit(0);
        printf("child %d mine %ld\n", WEXITSTATUS(status), total);
    } else if (!strcmp(mode, "late")) {
        marker();
        printf("late %ld\n", late(n) + late(n + 1));
        behind();
    } else if (!strcmp(mode, "int3")) {
        signal(SIGTRAP, on_trap);
        for (long i = 0; i < n; i++)
            __asm__ volatile("int3");
        marker();
        printf("traps %d\n", (int)traps);
    } else if (!strcmp(mode, "handled")) {
        struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
        sigaction(SIGSEGV, &action, NULL);
        for (volatile long i = 0; i < n; i++)
            if (sigsetjmp(past, 1) == 0)
                *(volatile int *)16 = 1;
        printf("faults %d\n", (int)faults);
    } else if (!strcmp(mode, "leader")) {
        start(last_one, 1, threads);
        pthread_exit(NULL);
    } else if (!strcmp(mode, "float")) {
        pthread_mutex_lock(&lock);
        start(waiter, 2, threads);
        wait_until_asleep(&waiting[0], &lock);
        wait_until_asleep(&waiting[1], &lock);
        marker();
        pthread_mutex_unlock(&lock);
        join(2, threads);
        printf("product %.3f\n", product);
    } else if (!strcmp(mode, "calls")) {
        memset(block, 0x5a, sizeof block);
        dl_iterate_phdr(touch, NULL);
        marker();
        long first = outer(n - 1);
        printf("outer %ld %s\n", first + outer(n), message);
    } else if (!strcmp(mode, "abort")) {
        abort();
    } else if (!strcmp(mode, "divide")) {
        volatile long zero = 0;
        printf("%ld\n", n / zero);
    } else {
        return 2;
    }
    return 7;
}
