#!/usr/bin/env bash
# The stress programs with large sizes, over and over, on changing numbers of vCPUs. Stops at the first failure and prints the
# command that repeats it.
#   SOAK_MINUTES=10 tests/soak.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

taskvisor=${TASKVISOR_BIN:-target/release/taskvisor}
programs=${CARGO_TARGET_DIR:-target}/guest/programs
end=$((SECONDS + ${SOAK_MINUTES:-10} * 60))
rounds=0

run() {
    local vcpus=$1
    shift
    local command=("$taskvisor" run --vcpus "$vcpus" --memory 512M --timeout 120s -- "$@")
    local output status=0
    output=$("${command[@]}" </dev/null 2>&1) || status=$?
    if ((status != 0)); then
        printf '%s\nsoak: exit code %d in round %d; again:\n  ' "$output" "$status" "$rounds" >&2
        printf '%q ' "${command[@]}" >&2
        echo >&2
        exit 1
    fi
}

while ((SECONDS < end)); do
    for vcpus in 1 2 3 4 8; do
        for libc in musl glibc; do
            run "$vcpus" "$programs/$libc/fpu" 12 100
            run "$vcpus" "$programs/$libc/forkstorm" 5 12 32
            run "$vcpus" "$programs/$libc/mapstress" 60 6 8
            run "$vcpus" "$programs/$libc/signals"
            run "$vcpus" "$programs/$libc/timers" 2 8
        done
        run "$vcpus" "$programs/rust/pool" 8 5000
    done
    rounds=$((rounds + 1))
    echo "soak: round $rounds done, $(((end - SECONDS) / 60)) min left"
done
echo "soak: $rounds rounds, all passed"
