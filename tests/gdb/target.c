// A program to be debugged: one thread computes, one waits for a lock that it gets at the end. Its result says whether a debugger
// has left anything behind.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "asleep.h"

volatile long counter;
volatile long *nowhere;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile pid_t waiting;

__attribute__((noinline)) long work(long n) {
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += i * i;
    counter++;
    return sum;
}

__attribute__((noinline)) static void *wait_for_lock(void *arg) {
    waiting = gettid();
    pthread_mutex_lock(&lock);
    pthread_mutex_unlock(&lock);
    return arg;
}

int main(int argc, char **argv) {
    pthread_t thread;
    long rounds = argc > 1 ? atol(argv[1]) : 5, sum = 0;
    pthread_mutex_lock(&lock);
    pthread_create(&thread, NULL, wait_for_lock, NULL);
    wait_until_asleep(&waiting, &lock);
    for (long i = 0; i < rounds; i++)
        sum += work(1000);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    if (argc > 2 && strcmp(argv[2], "crash") == 0)
        *nowhere = sum;
    printf("sum %ld counter %ld\n", sum, counter);
    return 7;
}
