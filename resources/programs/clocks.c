/* Clocks: read by the vDSO and by system call, on every CPU, by several threads; and measured on request.
 * Usage: clocks [READS] [THREADS]   checks that no clock runs backwards, that both ways of reading agree, and what getcpu tells
 *        clocks vdso                writes the vDSO's page to stdout
 *        clocks serve               answers on stdout for each byte on stdin:
 *          r   "read MONOTONIC_NS VIRTUAL_TSC TSC": virtual TSC 0 where the vDSO has none
 *          o   "offset CPU NANOSECONDS UNCERTAINTY" for each CPU but the first, then "offsets": how far its clock is ahead
 *          b   "backwards N": how often one thread that wanders over the CPUs has seen the monotonic clock run backwards so far */
#define _GNU_SOURCE
#include "check.h"
#include <elf.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>
#include <x86intrin.h>

/* A function of the vDSO by its name, found as a C library does it. */
static void *vdso(const char *wanted) {
    const char *base = (const char *)getauxval(AT_SYSINFO_EHDR);
    if (!base)
        return NULL;
    const Elf64_Ehdr *header = (const void *)base;
    const Elf64_Phdr *segments = (const void *)(base + header->e_phoff);
    const Elf64_Dyn *dynamic = NULL;
    const char *strings = NULL;
    const Elf64_Sym *symbols = NULL;
    const uint32_t *hash = NULL;
    for (int i = 0; i < header->e_phnum; i++)
        if (segments[i].p_type == PT_DYNAMIC)
            dynamic = (const void *)(base + segments[i].p_offset);
    for (; dynamic && dynamic->d_tag; dynamic++) {
        const void *at = base + dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_STRTAB)
            strings = at;
        if (dynamic->d_tag == DT_SYMTAB)
            symbols = at;
        if (dynamic->d_tag == DT_HASH)
            hash = at;
    }
    for (uint32_t i = 0; hash && symbols && strings && i < hash[1]; i++)
        if (symbols[i].st_shndx && !strcmp(strings + symbols[i].st_name, wanted))
            return (void *)(base + symbols[i].st_value);
    return NULL;
}

static int64_t by_call(clockid_t clock) {
    struct timespec t;
    syscall(SYS_clock_gettime, clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

static int cpu_list(int *cpus, int room) {
    cpu_set_t set;
    int n = 0;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0, "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE && n < room; cpu++)
        if (CPU_ISSET(cpu, &set))
            cpus[n++] = cpu;
    return n;
}

/* --- checks ------------------------------------------------------------------------------------------------ */

static const clockid_t CLOCKS[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME};
static long reads;
static _Atomic int64_t newest;

/* What one thread has read, all threads must find passed. */
static void *never_backwards(void *unused) {
    (void)unused;
    for (long i = 0; i < reads; i++) {
        int64_t seen = atomic_load(&newest), now = now_ns(CLOCK_MONOTONIC);
        CHECK(now >= seen, "%lld after %lld", (long long)now, (long long)seen);
        while (now > seen && !atomic_compare_exchange_weak(&newest, &seen, now)) {
        }
    }
    return NULL;
}

static void both_ways_agree(void) {
    for (size_t i = 0; i < sizeof CLOCKS / sizeof *CLOCKS; i++)
        for (int round = 0; round < 50; round++) {
            int64_t a = now_ns(CLOCKS[i]), b = by_call(CLOCKS[i]), c = now_ns(CLOCKS[i]);
            CHECK(a <= b && b <= c, "clock %d: %lld, %lld, %lld", CLOCKS[i], (long long)a, (long long)b, (long long)c);
        }
    struct timeval tv;
    int64_t before = now_ns(CLOCK_REALTIME) / 1000;
    CHECK(gettimeofday(&tv, NULL) == 0, "gettimeofday");
    int64_t after = now_ns(CLOCK_REALTIME) / 1000, now = tv.tv_sec * 1000000LL + tv.tv_usec;
    CHECK(before <= now && now <= after, "gettimeofday %lld not in %lld..%lld", (long long)now, (long long)before,
          (long long)after);
    struct timespec resolution;
    CHECK(clock_getres(CLOCK_MONOTONIC, &resolution) == 0 && resolution.tv_nsec == 1, "clock_getres");
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &resolution) == 0, "CPU time");
    CHECK(clock_gettime(77, &resolution) == -1 && errno == EINVAL, "clock 77");
}

static void getcpu_tells_the_cpu(void) {
    int cpus[CPU_SETSIZE], n = cpu_list(cpus, CPU_SETSIZE);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < n; i++) {
            unsigned by_vdso = -1, by_call = -1, node = -1;
            CHECK(pin(cpus[i]) == 0, "pin to %d", cpus[i]);
            long (*getcpu)(unsigned *, unsigned *, void *) = vdso("__vdso_getcpu");
            CHECK(!getcpu || getcpu(&by_vdso, &node, NULL) == 0, "getcpu of the vDSO");
            CHECK(syscall(SYS_getcpu, &by_call, NULL, NULL) == 0, "getcpu");
            CHECK((int)by_call == cpus[i] && (!getcpu || by_vdso == by_call) && sched_getcpu() == cpus[i],
                  "on CPU %d: %u by the vDSO, %u by call", cpus[i], by_vdso, by_call);
        }
}

static int check(int argc, char **argv) {
    reads = argument(argc, argv, 1, 200000);
    long threads = argument(argc, argv, 2, 4);
    pthread_t thread[64];
    CHECK(threads > 0 && threads <= 64, "%ld threads", threads);
    both_ways_agree();
    int64_t start = now_ns(CLOCK_MONOTONIC);
    for (long i = 0; i < threads; i++)
        CHECK(pthread_create(&thread[i], NULL, never_backwards, NULL) == 0, "thread %ld", i);
    for (long i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    fprintf(stderr, "%.1f ns a read\n", (double)(now_ns(CLOCK_MONOTONIC) - start) / (double)(reads * threads));
    getcpu_tells_the_cpu();
    puts("PASS clocks");
    return 0;
}

/* --- answers ----------------------------------------------------------------------------------------------- */

enum { ROUNDS = 300, WARM_UP = 20 };
static _Atomic int turn; /* odd: the other thread's */
static _Atomic int64_t theirs;
static _Atomic int done;

/* Waits for a turn. Yields now and then, for there may be fewer host CPUs than threads. */
static void wait_for(int mine) {
    for (int spins = 1; atomic_load(&turn) != mine; spins++)
        if (spins % 20000 == 0)
            sched_yield();
}

/* Answers each ball with its own clock. */
static void *peer(void *cpu) {
    pin((int)(intptr_t)cpu);
    for (int round = 0; round < ROUNDS; round++) {
        wait_for(2 * round + 1);
        atomic_store(&theirs, now_ns(CLOCK_MONOTONIC));
        atomic_fetch_add(&turn, 1);
    }
    return NULL;
}

/* The sharpest of some rounds: the peer's clock, read between two looks at ours, against the middle of them. */
static void offset_of(int cpu) {
    int64_t best = INT64_MAX, offset = 0;
    pthread_t other;
    atomic_store(&turn, 0);
    CHECK(pthread_create(&other, NULL, peer, (void *)(intptr_t)cpu) == 0, "thread");
    for (int round = 0; round < ROUNDS; round++) {
        int64_t before = now_ns(CLOCK_MONOTONIC);
        atomic_fetch_add(&turn, 1);
        wait_for(2 * round + 2);
        int64_t after = now_ns(CLOCK_MONOTONIC);
        if (round > WARM_UP && after - before < best) {
            best = after - before;
            offset = atomic_load(&theirs) - (before + (after - before) / 2);
        }
    }
    pthread_join(other, NULL);
    printf("offset %d %lld %lld\n", cpu, (long long)offset, (long long)(best / 2 + 1));
}

static _Atomic long backwards;

static void *wander(void *unused) {
    int cpus[CPU_SETSIZE], n = cpu_list(cpus, CPU_SETSIZE);
    (void)unused;
    int64_t last = 0;
    for (int i = 0; !atomic_load(&done); i++) {
        pin(cpus[i % n]);
        for (int round = 0; round < 200; round++) {
            int64_t now = now_ns(CLOCK_MONOTONIC);
            if (now < last)
                atomic_fetch_add(&backwards, 1);
            last = now;
        }
        usleep(1000);
    }
    return NULL;
}

static int serve(void) {
    int cpus[CPU_SETSIZE], n = cpu_list(cpus, CPU_SETSIZE);
    uint64_t (*virtual_tsc)(void) = (uint64_t(*)(void))(uintptr_t)vdso("__vdso_taskvisor_tsc");
    pthread_t wanderer = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    pin(cpus[0]);
    puts("ready");
    for (char what; read(0, &what, 1) == 1;) {
        if (what == 'r') {
            int64_t now = 0;
            uint64_t ticks = 0, raw = 0, best = UINT64_MAX;
            /* The sharpest of some tries: nothing may come between the three. */
            for (int round = 0; round < 20; round++) {
                uint64_t before = __rdtsc();
                int64_t monotonic = now_ns(CLOCK_MONOTONIC);
                uint64_t middle = __rdtsc(), counted = virtual_tsc ? virtual_tsc() : 0, after = __rdtsc();
                if (after - before < best) {
                    best = after - before;
                    now = monotonic;
                    ticks = counted;
                    raw = middle;
                }
            }
            printf("read %lld %llu %llu\n", (long long)now, (unsigned long long)ticks, (unsigned long long)raw);
        } else if (what == 'o') {
            for (int i = 1; i < n; i++)
                offset_of(cpus[i]);
            puts("offsets");
        } else if (what == 'b') {
            if (!wanderer)
                CHECK(pthread_create(&wanderer, NULL, wander, NULL) == 0, "thread");
            printf("backwards %ld\n", atomic_load(&backwards));
        }
    }
    atomic_store(&done, 1);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "vdso"))
        return write(1, (const void *)getauxval(AT_SYSINFO_EHDR), 4096) != 4096;
    return argc > 1 && !strcmp(argv[1], "serve") ? serve() : check(argc, argv);
}
