/* Programs that end badly, one at a time.
 * Usage: bad WAY      null | divide | hlt | ud2 | overflow | memory | forever | spin | abort | exit N | signal N | jump | stack-exec
 *                     call N: the exit code is the error of system call N */
#define _GNU_SOURCE
#include "check.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile long never = -1;

static long overflow(long level) {
    volatile char frame[1024];
    frame[0] = (char)level;
    return level == never ? 0 : overflow(level + 1) + frame[0];
}

/* Touches what it gets, so that promises have to be kept. */
static void eat(void) {
    for (size_t total = 0;; total += 1 << 20) {
        unsigned char *piece = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED) {
            fprintf(stderr, "mmap refused after %zu MiB\n", total >> 20);
            _exit(3);
        }
        for (size_t at = 0; at < 1 << 20; at += 4096) piece[at] = 1;
    }
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "";
    long number = argument(argc, argv, 2, 0);
    printf("about to: %s\n", way);
    fflush(stdout);
    if (!strcmp(way, "null")) {
        volatile int *volatile nowhere = NULL;
        *nowhere = 1;
    } else if (!strcmp(way, "divide")) {
        volatile int zero = 0, seven = 7;
        return seven / zero;
    } else if (!strcmp(way, "hlt")) {
        __asm__ volatile("hlt");
    } else if (!strcmp(way, "ud2")) {
        __asm__ volatile("ud2");
    } else if (!strcmp(way, "overflow")) {
        return (int)overflow(0);
    } else if (!strcmp(way, "memory")) {
        eat();
    } else if (!strcmp(way, "forever")) {
        for (;;) pause();
    } else if (!strcmp(way, "spin")) {
        for (;;) __asm__ volatile("pause");
    } else if (!strcmp(way, "abort")) {
        abort();
    } else if (!strcmp(way, "exit")) {
        _exit((int)number);
    } else if (!strcmp(way, "signal")) {
        raise((int)number);
    } else if (!strcmp(way, "call")) {
        return syscall(number, 0, 0, 0, 0, 0, 0) < 0 ? errno : 0;
    } else if (!strcmp(way, "jump")) {
        ((void (*)(void))0x123456789000)();
    } else if (!strcmp(way, "stack-exec")) {
        volatile unsigned char code[] = {0xc3}; /* ret: harmless if it could run */
        ((void (*)(void))(uintptr_t)code)();
    } else {
        fprintf(stderr, "usage: bad null|divide|hlt|ud2|overflow|memory|forever|spin|abort|exit N|signal N|jump|stack-exec|call N\n");
        return 2;
    }
    printf("still alive\n");
    return 99;
}
