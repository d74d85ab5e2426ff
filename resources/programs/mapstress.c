/* mmap, mprotect and munmap while other threads use the same pages: after the call has returned, no thread on any CPU may
 * still reach the page through an old translation.
 * Usage: mapstress [ROUNDS] [READERS] [PAGES] */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };
/* Far from where the kernel places mappings by itself, so that nobody else's mapping falls into the hole. */
#define PLACE ((void *)0x200000000000)
enum step { WARM, NO_WRITE, GONE, FRESH, STEPS };

static long readers, pages;
static unsigned char *area;
static atomic_long phase;    /* round * STEPS + step, published after the mapping call returned */
static atomic_long answered; /* readers that are done with this phase */
static atomic_int stop;
static _Thread_local sigjmp_buf jump;
static _Thread_local volatile int faults;

static void on_fault(int number) {
    (void)number;
    faults++;
    siglongjmp(jump, 1);
}

/* True when the access faulted. */
static int faults_on(unsigned char *address, int write) {
    faults = 0;
    if (sigsetjmp(jump, 1) == 0) {
        if (write) *(volatile unsigned char *)address = 0xee;
        else (void)*(volatile unsigned char *)address;
    }
    return faults;
}

static void *reader(void *argument_) {
    long number = (long)argument_, seen = -1;
    while (!stop) {
        long now = phase;
        if (now == seen) continue;
        seen = now;
        long round = now / STEPS;
        for (long i = 0; i < pages; i++) {
            long page = (i + number) % pages;
            unsigned char *address = area + page * PAGE;
            switch ((enum step)(now % STEPS)) {
            case WARM: /* fills this CPU's TLB */
                CHECK(*(volatile unsigned char *)address == (unsigned char)(round + page), "page %ld", page);
                break;
            case NO_WRITE:
                CHECK(faults_on(address, 1), "reader %ld wrote to read-only page %ld in round %ld", number, page, round);
                CHECK(*(volatile unsigned char *)address == (unsigned char)(round + page), "page %ld changed", page);
                break;
            case GONE:
                CHECK(faults_on(address, 0), "reader %ld read unmapped page %ld in round %ld", number, page, round);
                break;
            case FRESH: /* mapped anew at the same place: zero, not the old page */
                CHECK(*(volatile unsigned char *)address == 0, "page %ld shows an old page in round %ld", page, round);
                break;
            case STEPS: break;
            }
        }
        atomic_fetch_add(&answered, 1);
    }
    return NULL;
}

static void publish(long round, enum step step) {
    atomic_store(&answered, 0);
    atomic_store(&phase, round * STEPS + step);
    while (atomic_load(&answered) != readers) usleep(200);
}

/* Maps and unmaps areas of its own all the time, so that page tables come and go under the readers. */
static void *churn(void *argument_) {
    unsigned seed = (unsigned)(long)argument_ * 2654435761u + 1;
    long rounds = 0;
    while (!stop) {
        seed = seed * 1664525 + 1013904223;
        size_t size = ((seed >> 8) % 12 + 1) * PAGE;
        unsigned char *own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(own != MAP_FAILED, "mmap of %zu bytes", size);
        for (size_t at = 0; at < size; at += PAGE) {
            CHECK(own[at] == 0, "a fresh page is not zero");
            own[at] = (unsigned char)seed;
        }
        usleep(100);
        for (size_t at = 0; at < size; at += PAGE) CHECK(own[at] == (unsigned char)seed, "a page changed under its owner");
        /* From the middle first, so that the mapping is split. */
        if (size >= 3 * PAGE) CHECK(munmap(own + PAGE, PAGE) == 0, "munmap of the middle");
        CHECK(munmap(own, size) == 0, "munmap");
        rounds++;
    }
    return (void *)rounds;
}

int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 50);
    readers = argument(argc, argv, 2, 3);
    pages = argument(argc, argv, 3, 8);
    CHECK(readers >= 1 && readers <= 32, "READERS 1..32");
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);

    size_t size = (size_t)pages * PAGE;
    area = mmap(PLACE, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(area != MAP_FAILED, "mmap");
    atomic_store(&phase, -1);
    pthread_t thread[33], churner;
    /* Until the first phase is published, -1 counts as seen. */
    for (long i = 0; i < readers; i++) CHECK(pthread_create(&thread[i], NULL, reader, (void *)i) == 0, "reader %ld", i);
    CHECK(pthread_create(&churner, NULL, churn, (void *)1L) == 0, "churner");

    for (long round = 0; round < rounds; round++) {
        for (long page = 0; page < pages; page++) area[page * PAGE] = (unsigned char)(round + page);
        publish(round, WARM);
        CHECK(mprotect(area, size, PROT_READ) == 0, "mprotect");
        publish(round, NO_WRITE);
        CHECK(munmap(area, size) == 0, "munmap");
        publish(round, GONE);
        void *again = mmap(area, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(again == area, "mmap at the same place");
        publish(round, FRESH);
    }
    stop = 1;
    for (long i = 0; i < readers; i++) pthread_join(thread[i], NULL);
    void *churned;
    pthread_join(churner, &churned);
    fprintf(stderr, "churned %ld areas beside it\n", (long)churned);
    printf("PASS mapstress: %ld rounds, %ld readers, %ld pages, no stale translation\n", rounds, readers, pages);
    return 0;
}
