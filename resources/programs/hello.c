/* The smallest useful program: arguments and environment arrive, an exit code goes back.
 * Usage: hello [CODE] */
#include "check.h"
#include <unistd.h>

int main(int argc, char **argv) {
    printf("hello from pid %s, %d argument(s)\n", getpid() > 0 ? "positive" : "odd", argc - 1);
    for (int i = 1; i < argc; i++) printf("  argv[%d] = %s\n", i, argv[i]);
    return (int)argument(argc, argv, 1, 0);
}
