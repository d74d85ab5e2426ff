/* Runs one of perf's scheduler benchmarks (tools/perf/bench of Linux) without perf: only what they need of it is here.
 * Usage: sched-bench messaging|pipe [OPTIONS as of `perf bench sched`] */
#include <perf/bench/bench.h>
#include <stdio.h>
#include <string.h>
#include <subcmd/exec-cmd.h>
#include <subcmd/subcmd-config.h>

int bench_format = BENCH_FORMAT_DEFAULT;
unsigned int bench_repeat = 1;

int main(int argc, const char **argv) {
    exec_cmd_init("perf", "", "", "");
    if (argc > 1 && !strcmp(argv[1], "messaging")) return bench_sched_messaging(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "pipe")) return bench_sched_pipe(argc - 1, argv + 1);
    fprintf(stderr, "usage: sched-bench messaging|pipe [OPTIONS]\n");
    return 2;
}
