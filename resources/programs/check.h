/* What every example program shares: one verdict line, arguments with defaults, a clock.
 *
 * stdout is the same on every machine, so that a run in the guest can be compared with a run on the host byte for byte;
 * measured figures go to stderr. Exit code: 0 passed, 1 failed.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <stdint.h>
#include <time.h>

/* Ends the program with a FAIL line that says where and what. */
#define CHECK(condition, ...)                                            \
    do {                                                                 \
        if (!(condition)) {                                              \
            int saved_errno = errno;                                     \
            printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #condition);  \
            printf(__VA_ARGS__);                                         \
            printf(" (errno %d: %s)\n", saved_errno, strerror(saved_errno)); \
            fflush(stdout);                                              \
            _exit(1);                                                    \
        }                                                                \
    } while (0)

static inline long argument(int argc, char **argv, int index, long otherwise) {
    return index < argc ? strtol(argv[index], NULL, 0) : otherwise;
}

static inline int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

#endif
