/* Parallel prime sieve: user time only, so N vCPUs should be nearly N times as fast.
 * Usage: primes [LIMIT] [THREADS] [ROUNDS]
 * Threads take segments from one counter; each sieves its segment in its own first-level cache. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { SEGMENT = 32768 };

static long limit;
static unsigned base[6000]; /* 3,401 primes lie below the square root of 10^9 */
static int bases;
static atomic_long next_segment;
static atomic_long found;

/* Primes up to sqrt(limit), by trial division: a few thousand at most. */
static void find_bases(void) {
    for (unsigned n = 2; (long)n * n <= limit; n++) {
        int prime = 1;
        for (int i = 0; i < bases && base[i] * base[i] <= n; i++)
            if (n % base[i] == 0) { prime = 0; break; }
        if (prime) base[bases++] = n;
    }
}

static void *worker(void *unused) {
    (void)unused;
    char composite[SEGMENT];
    long mine = 0;
    for (;;) {
        long low = atomic_fetch_add(&next_segment, 1) * SEGMENT;
        if (low > limit) break;
        long high = low + SEGMENT - 1 < limit ? low + SEGMENT - 1 : limit;
        memset(composite, 0, sizeof composite);
        for (int i = 0; i < bases; i++) {
            long p = base[i], first = p * p;
            if (first > high) break;
            if (first < low) first = (low + p - 1) / p * p;
            for (long n = first; n <= high; n += p) composite[n - low] = 1;
        }
        for (long n = low < 2 ? 2 : low; n <= high; n++) mine += !composite[n - low];
    }
    atomic_fetch_add(&found, mine);
    return NULL;
}

int main(int argc, char **argv) {
    limit = argument(argc, argv, 1, 20000000);
    long threads = argument(argc, argv, 2, 2), rounds = argument(argc, argv, 3, 1);
    CHECK(limit >= 2 && limit <= 1000000000 && threads >= 1 && threads <= 64, "LIMIT 2..10^9, THREADS 1..64");
    find_bases();

    int64_t start = now_ns(CLOCK_MONOTONIC);
    for (long round = 0; round < rounds; round++) {
        pthread_t thread[64];
        atomic_store(&next_segment, 0);
        atomic_store(&found, 0);
        for (long i = 0; i < threads; i++) CHECK(pthread_create(&thread[i], NULL, worker, NULL) == 0, "thread %ld", i);
        for (long i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    }
    fprintf(stderr, "elapsed_ms %.1f\n", (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e6);

    static const struct { long limit, primes; } known[] = {
        {100, 25}, {1000000, 78498}, {10000000, 664579}, {20000000, 1270607}, {100000000, 5761455}, {1000000000, 50847534},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].limit == limit) CHECK(known[i].primes == found, "%ld primes, should be %ld", found, known[i].primes);
    printf("PASS primes: %ld primes up to %ld\n", found, limit);
    return 0;
}
