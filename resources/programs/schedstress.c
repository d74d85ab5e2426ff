/* The scheduler under load: threads and processes wake each other through futexes, pipes, eventfds and signals, while a thread changes
 * their affinities, policies and nice values and tasks end and are born. Every wake-up carries a number, and sums are checked, so that one
 * that got lost hangs the program and one too many shows.
 * Usage: schedstress [ROUNDS] [RINGS] [MEMBERS] [PROCESSES] [LAPS] [SEED], or schedstress spin
 * Each round starts RINGS rings of MEMBERS threads, and PROCESSES pairs of processes; a token goes LAPS times round each ring, and
 * further until as many changes as there are threads were made to running rings.
 * `spin`: one thread computes until another, which sleeps, stops it. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* From linux/futex.h and linux/sched/types.h, which musl's compiler doesn't see: the kernel's ABI. */
enum { FUTEX_WAIT = 0, FUTEX_WAKE = 1, FUTEX_PRIVATE_FLAG = 128 };
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};
enum { DEADLINE = 6 };

enum way { FUTEX, PIPE, EVENTFD, SIGNAL, WAYS };

/* One member's place in a ring: how it is woken, and what it was given. */
struct member {
    struct ring *ring;
    long number;
    pthread_t thread;
    _Atomic int tid;
    _Atomic uint32_t word; /* FUTEX: how many tokens have come; SIGNAL: the same, taken by sigwaitinfo */
    int in, out;           /* PIPE, EVENTFD (both the same) */
    uint64_t sum, turns;
};

struct ring {
    enum way way;
    long members, laps; /* at least so many */
    struct member *member;
    _Atomic long ready;
    bool over; /* this lap is the last: written by the first member before it passes the token on, read by who has it */
};

static _Atomic int stop;
static _Atomic long changes, refused;
/* As many changes as this round is to see; and laps, in multiples of those asked for, after which it ends without them. */
static _Atomic long wanted;
enum { PATIENCE = 1000 };
static uint64_t seed;

/* xorshift64 (Marsaglia, "Xorshift RNGs", 2003). */
static uint64_t random_word(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Gives the token to a member; `turn` says how many it has had with this one. */
static void give(struct member *to, uint32_t turn) {
    uint64_t one = 1;
    switch (to->ring->way) {
    case FUTEX:
        atomic_store(&to->word, turn);
        futex(&to->word, FUTEX_WAKE, 1);
        break;
    case PIPE:
        CHECK(write(to->out, &turn, sizeof turn) == sizeof turn, "token into the pipe of member %ld", to->number);
        break;
    case EVENTFD:
        CHECK(write(to->out, &one, sizeof one) == sizeof one, "token into the eventfd of member %ld", to->number);
        break;
    default:
        atomic_store(&to->word, turn);
        CHECK(syscall(SYS_tgkill, getpid(), atomic_load(&to->tid), SIGUSR1) == 0, "token as a signal to member %ld", to->number);
    }
}

/* Waits for the token, which must be the `turn`th. */
static void take(struct member *me, uint32_t turn) {
    uint32_t came = turn;
    uint64_t count = 1;
    sigset_t set;
    switch (me->ring->way) {
    case FUTEX:
        while ((came = atomic_load(&me->word)) != turn) {
            CHECK(came == turn - 1, "member %ld at turn %u sees turn %u", me->number, turn, came);
            futex(&me->word, FUTEX_WAIT, came);
        }
        break;
    case PIPE:
        CHECK(read(me->in, &came, sizeof came) == sizeof came, "member %ld reads its pipe", me->number);
        break;
    case EVENTFD:
        CHECK(read(me->in, &count, sizeof count) == sizeof count && count == 1, "member %ld: %llu tokens at once", me->number,
              (unsigned long long)count);
        break;
    default:
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        do {
            errno = 0;
        } while (sigwaitinfo(&set, NULL) != SIGUSR1 && errno == EINTR);
        came = atomic_load(&me->word);
    }
    CHECK(came == turn, "member %ld waits for turn %u and gets %u", me->number, turn, came);
}

static void *run_member(void *argument) {
    struct member *me = argument;
    struct ring *ring = me->ring;
    struct member *next = &ring->member[(me->number + 1) % ring->members];
    atomic_store(&me->tid, (int)syscall(SYS_gettid));
    atomic_fetch_add(&ring->ready, 1);
    bool over = false;
    for (uint32_t turn = 1; !over; turn++) {
        take(me, turn);
        me->sum += turn * (uint64_t)(me->number + 1);
        me->turns = turn;
        if (me->number == 0) ring->over = turn >= ring->laps && (atomic_load(&changes) >= atomic_load(&wanted) || turn >= ring->laps * PATIENCE);
        over = ring->over;
        /* The last member closes the lap; after the last lap the token stays with it. */
        if (me->number + 1 < ring->members) give(next, turn);
        else if (!over) give(next, turn + 1);
    }
    return NULL;
}

static void start_ring(struct ring *ring, enum way way, long members, long laps) {
    *ring = (struct ring){.way = way, .members = members, .laps = laps, .member = calloc((size_t)members, sizeof *ring->member)};
    CHECK(ring->member, "memory");
    for (long i = 0; i < members; i++) {
        struct member *m = &ring->member[i];
        m->ring = ring;
        m->number = i;
        int ends[2];
        if (way == PIPE) {
            CHECK(pipe(ends) == 0, "pipe of member %ld", i);
            m->in = ends[0];
            m->out = ends[1];
        } else if (way == EVENTFD) {
            m->in = m->out = eventfd(0, 0);
            CHECK(m->in >= 0, "eventfd of member %ld", i);
        }
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 32 << 10);
        CHECK(pthread_create(&m->thread, &attributes, run_member, m) == 0, "thread %ld", i);
    }
}

static void end_ring(struct ring *ring) {
    for (long i = 0; i < ring->members; i++) {
        struct member *m = &ring->member[i];
        CHECK(pthread_join(m->thread, NULL) == 0, "join of member %ld", i);
        uint64_t laps = ring->member[0].turns, expected = laps * (laps + 1) / 2 * (uint64_t)(i + 1);
        CHECK(m->turns == laps && m->sum == expected, "ring by way %d, member %ld: sum %llu instead of %llu", ring->way, i, (unsigned long long)m->sum,
              (unsigned long long)expected);
        if (ring->way == PIPE) close(m->out);
        if (ring->way == PIPE || ring->way == EVENTFD) close(m->in);
    }
}

/* Two processes throw a number to and fro; both end with the same sum, the child tells it as its last word. */
struct pair {
    pid_t child;
    int to, from;
    uint64_t sum;
};

static void run_child(int in, int out, long laps) {
    uint64_t number = 0, sum = 0;
    for (long i = 0; i < laps; i++) {
        if (read(in, &number, sizeof number) != sizeof number) _exit(2);
        sum += number;
        number++;
        if (write(out, &number, sizeof number) != sizeof number) _exit(3);
    }
    if (write(out, &sum, sizeof sum) != sizeof sum) _exit(4);
    _exit(0);
}

static void *run_pairs(void *argument) {
    long *plan = argument, pairs = plan[0], laps = plan[1];
    struct pair *pair = calloc((size_t)pairs + 1, sizeof *pair);
    CHECK(pair, "memory");
    for (long i = 0; i < pairs; i++) {
        int there[2], back[2];
        CHECK(pipe(there) == 0 && pipe(back) == 0, "pipes of pair %ld", i);
        pair[i].child = fork();
        CHECK(pair[i].child >= 0, "fork of pair %ld", i);
        if (pair[i].child == 0) run_child(there[0], back[1], laps);
        close(there[0]);
        close(back[1]);
        pair[i].to = there[1];
        pair[i].from = back[0];
    }
    for (long lap = 0; lap < laps; lap++) {
        for (long i = 0; i < pairs; i++) {
            uint64_t number = (uint64_t)(lap * 3 + i);
            CHECK(write(pair[i].to, &number, sizeof number) == sizeof number, "to child %ld", i);
            pair[i].sum += number;
        }
        for (long i = 0; i < pairs; i++) {
            uint64_t number = 0;
            CHECK(read(pair[i].from, &number, sizeof number) == sizeof number, "from child %ld", i);
            CHECK(number == (uint64_t)(lap * 3 + i) + 1, "child %ld answers %llu", i, (unsigned long long)number);
        }
    }
    for (long i = 0; i < pairs; i++) {
        uint64_t sum = 0;
        int status = -1;
        CHECK(read(pair[i].from, &sum, sizeof sum) == sizeof sum && sum == pair[i].sum, "sum of child %ld: %llu", i, (unsigned long long)sum);
        CHECK(waitpid(pair[i].child, &status, 0) == pair[i].child && status == 0, "child %ld ended with %#x", i, (unsigned)status);
        close(pair[i].to);
        close(pair[i].from);
    }
    free(pair);
    return NULL;
}

/* Gives a task another policy, nice value or affinity. Refusals are counted: it may have ended, or ask for more than there is. */
static void change(pid_t tid, uint64_t random) {
    static const struct attributes choices[] = {
        {.policy = SCHED_OTHER, .nice = -10}, {.policy = SCHED_OTHER, .nice = 15}, {.policy = SCHED_BATCH, .nice = 3},
        {.policy = SCHED_IDLE},               {.policy = SCHED_FIFO, .priority = 7}, {.policy = SCHED_RR, .priority = 3},
        {.policy = DEADLINE, .runtime = 1000000, .deadline = 20000000, .period = 20000000},
    };
    long result;
    switch (random % 3) {
    case 0: {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        cpu_set_t set;
        CPU_ZERO(&set);
        for (long cpu = 0; cpu < cpus; cpu++)
            if (random >> (8 + cpu % 32) & 1) CPU_SET((size_t)cpu, &set);
        if (CPU_COUNT(&set) == 0) CPU_SET((size_t)((random >> 40) % (uint64_t)cpus), &set);
        result = sched_setaffinity(tid, sizeof set, &set);
        break;
    }
    case 1:
        result = setpriority(PRIO_PROCESS, (id_t)tid, (int)(random >> 8) % 10);
        break;
    default: {
        struct attributes wanted = choices[(random >> 8) % (sizeof choices / sizeof *choices)];
        wanted.size = sizeof wanted;
        result = syscall(SYS_sched_setattr, tid, &wanted, 0);
    }
    }
    atomic_fetch_add(result == 0 ? &changes : &refused, 1);
}

struct targets {
    struct ring *ring;
    long rings, members;
};

static void *run_changer(void *argument) {
    struct targets *all = argument;
    uint64_t state = seed | 1;
    while (!atomic_load(&stop)) {
        uint64_t random = random_word(&state);
        struct ring *ring = &all->ring[(random >> 3) % (uint64_t)all->rings];
        int tid = atomic_load(&ring->member[(random >> 20) % (uint64_t)all->members].tid);
        if (tid != 0) change(tid, random >> 13);
        struct timespec pause = {.tv_nsec = 200000 + (long)(random % 800000)};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* Threads that live for a moment, one after another. */
static void *live_shortly(void *argument) {
    sched_yield();
    return argument;
}

static void *run_births(void *argument) {
    long *born = argument;
    while (!atomic_load(&stop)) {
        pthread_t thread;
        void *back = NULL;
        CHECK(pthread_create(&thread, NULL, live_shortly, born) == 0, "short-lived thread %ld", *born);
        CHECK(pthread_join(thread, &back) == 0 && back == born, "short-lived thread %ld", *born);
        ++*born;
        struct timespec pause = {.tv_nsec = 500000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* A thread that only computes until another one, which sleeps for a moment, tells it to stop. */
static void *spin(void *argument) {
    unsigned long turns = 0;
    while (!atomic_load(&stop)) turns++;
    *(unsigned long *)argument = turns;
    return argument;
}

static int run_spin(void) {
    pthread_t thread;
    unsigned long turns = 0;
    CHECK(pthread_create(&thread, NULL, spin, &turns) == 0, "thread");
    struct timespec pause = {.tv_nsec = 1000000};
    nanosleep(&pause, NULL);
    atomic_store(&stop, 1);
    CHECK(pthread_join(thread, NULL) == 0, "join");
    printf("PASS schedstress: spin\n");
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "spin") == 0) return run_spin();
    long rounds = argument(argc, argv, 1, 1), rings = argument(argc, argv, 2, 4), members = argument(argc, argv, 3, 8);
    long processes = argument(argc, argv, 4, 4), laps = argument(argc, argv, 5, 5);
    seed = (uint64_t)argument(argc, argv, 6, 1) * 0x9e3779b97f4a7c15;
    CHECK(rings > 0 && members > 1 && laps > 0 && processes >= 0, "usage: schedstress [ROUNDS] [RINGS] [MEMBERS] [PROCESSES] [LAPS] [SEED]");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    struct ring *ring = calloc((size_t)rings, sizeof *ring);
    CHECK(ring, "memory");
    long all_born = 0;
    for (long round = 0; round < rounds; round++) {
        atomic_store(&stop, 0);
        long before = atomic_load(&changes);
        atomic_store(&wanted, before + rings * members);
        pthread_t pairs, changer, births;
        long plan[2] = {processes, laps}, born = 0;
        CHECK(pthread_create(&pairs, NULL, run_pairs, plan) == 0, "pairs");
        for (long i = 0; i < rings; i++) start_ring(&ring[i], (enum way)(i % WAYS), members, laps);
        struct targets targets = {.ring = ring, .rings = rings, .members = members};
        CHECK(pthread_create(&changer, NULL, run_changer, &targets) == 0, "changer");
        CHECK(pthread_create(&births, NULL, run_births, &born) == 0, "births");
        for (long i = 0; i < rings; i++) {
            /* A signal needs the number of the thread that it goes to. */
            while (atomic_load(&ring[i].ready) < members) sched_yield();
            give(&ring[i].member[0], 1);
        }
        CHECK(pthread_join(pairs, NULL) == 0, "join of the pairs");
        for (long i = 0; i < rings; i++) end_ring(&ring[i]);
        atomic_store(&stop, 1);
        CHECK(pthread_join(changer, NULL) == 0 && pthread_join(births, NULL) == 0, "join");
        /* Only now: the changer looks into the rings until its end. */
        for (long i = 0; i < rings; i++) free(ring[i].member);
        CHECK(changes >= wanted, "only %ld of %ld changes were made, %ld were refused", changes - before, wanted - before, refused);
        all_born += born;
        seed += 0x9e3779b97f4a7c15;
    }
    fprintf(stderr, "%ld changes, %ld refused, %ld short-lived threads\n", changes, refused, all_born);
    printf("PASS schedstress: %ld rounds, %ld threads in %ld rings, %ld processes, %ld laps\n", rounds, rings * members, rings, processes, laps);
    return 0;
}
