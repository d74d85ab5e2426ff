#!/usr/bin/env bash
# Builds perf's scheduler benchmarks as one static program from Debian's package of the Linux source, which is downloaded (139 MB)
# unless it is in the cache already; nothing is installed. Prints the program's path.
#   build.sh CACHE_DIR        LINUX_SOURCE=linux-source-X.Y chooses another package
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=${LINUX_SOURCE:-linux-source-6.1}
mkdir -p "$1"
cache=$(cd "$1" && pwd)
tools=$cache/$package/tools
program=$cache/sched-bench

if [[ ! -f $tools/perf/bench/sched-messaging.c ]]; then
    cd "$cache"
    command -v apt-get >/dev/null || { echo "needs apt-get, for the package $package" >&2; exit 1; }
    apt-get download -qq "$package" >&2
    # The source is an archive inside the package; only what is built is taken out, for which all of it must be read once.
    dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO "./usr/src/$package.tar.xz" |
        tar -xJ --wildcards "$package/tools/perf/bench/sched-messaging.c" "$package/tools/perf/bench/sched-pipe.c" \
            "$package/tools/perf/bench/bench.h" "$package/tools/lib/subcmd/*" "$package/tools/lib/*.c" \
            "$package/tools/include/*"
    rm -f "$package"_*.deb
fi

if [[ ! -x $program || $here/main.c -nt $program ]]; then
    cd "$tools"
    gcc -O2 -w -static -pthread -D_GNU_SOURCE -DHAVE_EVENTFD_SUPPORT -DHAVE_PTHREAD_ATTR_SETAFFINITY_NP \
        -Iinclude -Ilib -I. -Iperf -include stdbool.h -o "$program" "$here/main.c" \
        perf/bench/sched-messaging.c perf/bench/sched-pipe.c lib/subcmd/*.c lib/string.c lib/str_error_r.c lib/ctype.c
fi
echo "$program"
