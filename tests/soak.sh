#!/usr/bin/env bash
# The stress programs with large sizes, and the kernel's own tests, over and over, on changing numbers of vCPUs. Stops at the first
# failure and prints the command that repeats it.
#   SOAK_MINUTES=10 tests/soak.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

taskvisor=${TASKVISOR_BIN:-target/release/taskvisor}
programs=${CARGO_TARGET_DIR:-target}/guest/programs
end=$((SECONDS + ${SOAK_MINUTES:-10} * 60))
rounds=0

# Runs a command that must succeed.
must() {
    local output status=0
    output=$("$@" </dev/null 2>&1) || status=$?
    if ((status != 0)); then
        printf '%s\nsoak: exit code %d in round %d; again:\n  ' "$output" "$status" "$rounds" >&2
        printf '%q ' "$@" >&2
        echo >&2
        exit 1
    fi
}

run() {
    local vcpus=$1
    shift
    must "$taskvisor" run --vcpus "$vcpus" --memory 512M --timeout 120s -- "$@"
}

# The kernel's own tests: on 8 vCPUs, and with new seeds of chaos. Not on one, whose time would stand still while a test waits for it.
kernel_tests() {
    local kernel vcpus
    kernel=$(TASKVISOR_GUEST_TARGET_DIR="${TASKVISOR_GUEST_TARGET_DIR:-$(realpath -m "${CARGO_TARGET_DIR:-target}")/guest}" resources/build-kernel.sh selftest)
    local flags=(--kernel "$kernel" --log stderr --log-level info --timeout 1200s)
    must "$taskvisor" run --vcpus 8 "${flags[@]}" -- "$programs/musl/hello"
    must "$taskvisor" run --vcpus 2 --memory 128M "${flags[@]}" --cmdline test=soak_a_hundred_thousand_idle_tasks -- "$programs/musl/hello"
    for vcpus in 2 4; do
        ((SECONDS < end)) || return 0
        must "$taskvisor" run --vcpus "$vcpus" "${flags[@]}" --chaos "$RANDOM" -- "$programs/musl/hello"
    done
}

# A run whose every trace record is held against the scheduler's invariants.
trace=$(mktemp --suffix=.jsonl)
trap 'rm -f "$trace"' EXIT
checked() {
    local vcpus=$1 flags=$2
    shift 2
    # shellcheck disable=SC2086 # several flags in one word
    set -- "$taskvisor" run --vcpus "$vcpus" --memory 512M --timeout 300s $flags --trace "$trace" -- "$@"
    local output status=0
    output=$("$@" </dev/null 2>&1) || status=$?
    if ((status == 0)); then
        output=$("$taskvisor" report --complete --grace 2s "$trace" 2>&1) || status=$?
    fi
    if ((status != 0)); then
        cp "$trace" "${trace%.jsonl}-failed.jsonl"
        printf '%s\nsoak: exit code %d in round %d; its trace is %s; again:\n  ' "$output" "$status" "$rounds" \
            "${trace%.jsonl}-failed.jsonl" >&2
        printf '%q ' "$@" >&2
        printf '&& %q report --complete --grace 2s %q\n' "$taskvisor" "$trace" >&2
        exit 1
    fi
}

stress() {
    local policy vcpus seed
    for policy in fair rr count runtime; do
        for vcpus in 1 2 4 8; do
            ((SECONDS < end)) || return 0
            checked "$vcpus" "--policy $policy" "$programs/musl/schedstress" 1 8 32 16 5 "$RANDOM"
        done
    done
    for vcpus in 1 2 4; do
        for _ in 1 2 3 4; do
            ((SECONDS < end)) || return 0
            seed=$((RANDOM << 30 | RANDOM << 15 | RANDOM))
            checked "$vcpus" "--chaos $seed --chaos-rate 16" "$programs/musl/schedstress" 1 4 6 3 3
            checked "$vcpus" "--chaos $seed" "$programs/glibc/forkstorm" 1 4 8
        done
    done
}

# More CPUs than a word of a set has bits, than an xAPIC has ids, and than a byte can number. Their start is what takes time.
crowds() {
    local vcpus
    for vcpus in 72 255 300; do
        ((SECONDS < end)) || return 0
        checked "$vcpus" "" "$programs/musl/schedstress" 1 8 32 16 5 "$RANDOM"
    done
}

while ((SECONDS < end)); do
    stress
    crowds
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
    ((SECONDS >= end)) || kernel_tests
    rounds=$((rounds + 1))
    echo "soak: round $rounds done, $(((end - SECONDS) / 60)) min left"
done
# Breakpoints and steps at random, in guests of a minute each; a failure prints its seed.
for ((minute = 0; minute < ${SOAK_MINUTES:-10}; minute++)); do
    DEBUG_SOAK_SECONDS=60 cargo test --release --locked -q -p taskvisor-tests --test debug_soak -- --nocapture
done
if command -v schemathesis >/dev/null; then
    tests/api-fuzz.sh 40 "$RANDOM"
else
    echo "soak: left out: the API by schemathesis (pip install schemathesis)"
fi
echo "soak: $rounds rounds, all passed"
