#!/usr/bin/env bash
# Runs programs that nobody here wrote, and a few of our own, in a guest with two vCPUs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

taskvisor=${TASKVISOR_BIN:-target/release/taskvisor}
programs=${CARGO_TARGET_DIR:-target}/guest/programs
busybox=$(command -v busybox)
failed=0

# show TITLE ARGS...: prints the command, runs it, tells the exit code when it isn't 0.
show() {
    local title=$1 status=0
    shift
    printf '\n--- %s\n$ taskvisor run --vcpus 2 %s\n' "$title" "$(pretty "$@")"
    "$taskvisor" run --vcpus 2 --timeout 60s "$@" </dev/null || status=$?
    if ((status != ${expect:-0})); then
        echo "exit code $status, expected ${expect:-0}"
        failed=1
    elif ((status != 0)); then
        echo "exit code $status, as it should be"
    fi
}

# Quotes only what needs it, and names programs by their last part.
pretty() {
    local word words=()
    for word in "$@"; do
        if [[ $word == /*/* || $word == target/* ]]; then word=${word##*/}; fi
        if [[ $word == *[\ \|\$\;\&\']* ]]; then word="'$word'"; fi
        words+=("$word")
    done
    echo "${words[*]}"
}

echo "Static Linux programs as tasks of a small guest kernel, under Taskvisor on /dev/kvm, two vCPUs."
show "busybox, as Debian ships it: three processes and two pipes" -- "$busybox" sh -c 'seq 1 20000 | sort -rn | md5sum'
if bash=$(command -v bash-static); then
    # shellcheck disable=SC2016 # expanded by the guest's bash
    show "bash, as Debian ships it: subshells, a trap, arithmetic" -- "$bash" -c \
        'trap "echo trap ran" EXIT; for i in 1 2 3; do (echo "subshell $i: $((i * i * 1111))"); done; echo "$((7 * 6)) on $MACHTYPE"'
fi
show "threads: a sieve on both vCPUs (C, musl)" -- "$programs/musl/primes" 20000000 2 4
show "threads: mutexes, condition variables, channels (Rust)" -- "$programs/rust/pool" 4 500
show "vector registers under preemption and migration (C, glibc)" -- "$programs/glibc/fpu" 4 20
show "fork, copy-on-write, pipes (C, musl)" -- "$programs/musl/forkstorm" 2 4 16
expect=139 show "a program that dereferences null" -- "$programs/musl/bad" null
exit "$failed"
