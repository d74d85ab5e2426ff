/* Two threads that take two locks in opposite order, each waiting until the other has its first: they block for ever.
 * For docs/debugging.md, which finds out why. */
#include <pthread.h>
#include <stdio.h>

pthread_mutex_t cups = PTHREAD_MUTEX_INITIALIZER, plates = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both_have_one;

static void *wash_cups(void *arg) {
    pthread_mutex_lock(&cups);
    pthread_barrier_wait(&both_have_one);
    pthread_mutex_lock(&plates);
    return arg;
}

static void *wash_plates(void *arg) {
    pthread_mutex_lock(&plates);
    pthread_barrier_wait(&both_have_one);
    pthread_mutex_lock(&cups);
    return arg;
}

int main(void) {
    pthread_t first, second;
    pthread_barrier_init(&both_have_one, NULL, 2);
    pthread_create(&first, NULL, wash_cups, NULL);
    pthread_create(&second, NULL, wash_plates, NULL);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    puts("washed up");
    return 0;
}
