#!/usr/bin/env bash
# Takes out one protection after the other and expects the test that guards it to fail.
#   tests/mutants.sh                all of tests/mutants/*.patch
#   tests/mutants.sh 01 13          those whose names start so
# Works in a worktree of HEAD, so what isn't committed is not looked at. Every command must pass there before any patch is
# applied: a test that always fails proves nothing. Exit code 0 only if every mutant was caught.
#
# The head of a patch:
#   bug: PROJECT#NUMBER in a few words        protection: FILE:FUNCTION, what it does
#   run: what must fail, one of
#     loom NAME                 a model of vcpu-sched
#     unit TARGET NAME          a test of vcpu-sched; TARGET: --lib, or --test FILE
#     guest CPUS NAME           an in-guest test (NAME as for test=) under QEMU's tcg
#     program CPUS NAME ARGS    an example program in C, likewise; `taskvisor image` packs it: build both first (`make`), or say
#                               where they are: TASKVISOR=target/release/taskvisor PROGRAMS=target/guest/programs
#   expect: extended regular expression that the output must contain
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD
scratch=$(realpath -m "${CARGO_TARGET_DIR:-target}")/mutants
tree=$scratch/tree
limit=${MUTANT_SECONDS:-90}
mkdir -p "$scratch/log"

cleanup() { git -C "$root" worktree remove --force "$tree" 2>/dev/null || true; }
trap cleanup EXIT
cleanup
git worktree prune
git worktree add --quiet --detach "$tree" HEAD

# The kernel needs to be right here, not fast: a build of this profile takes a fraction of the time. More symbols are left in it.
mkdir -p "$tree/guest-kernel/.cargo"
cat >"$tree/guest-kernel/.cargo/config.toml" <<'TOML'
[profile.release]
opt-level = 2
lto = "off"
codegen-units = 16
incremental = true
TOML
restore() {
    git -C "$tree" checkout --quiet -- .
    git -C "$tree" clean -qfd -- guest-kernel/src vcpu-sched
    sed -i 's/^const SIZE: usize = .*/const SIZE: usize = 1 << 20;/' "$tree/guest-kernel/src/symbols.rs"
}
restore

field() { sed -n "s/^$2: //p;/^--- /q" "$1"; }

# build_kernel [FEATURES]
build_kernel() {
    TASKVISOR_GUEST_TARGET_DIR=$scratch/kernel "$tree/resources/build-kernel.sh" "$@"
}

# run_guest KERNEL CPUS COMMAND_LINE [QEMU'S FLAGS]
run_guest() {
    local kernel=$1 cpus=$2 line=$3 status=0
    shift 3
    timeout "$limit" qemu-system-x86_64 -accel tcg -machine q35 -cpu max -m 256 -smp "$cpus" -nodefaults -no-user-config -display none \
        -no-reboot -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel "$kernel" -append "$line" "$@" || status=$?
    if ((status == 124)); then echo "the guest has not ended after $limit s"; fi
    # isa-debug-exit: (3 << 8 | failures) << 1 | 1, or exit code << 1 | 1, cut to 8 bits.
    return $((status != 1))
}

# Runs the command of a `run:` line. 0: it passed; 1: a test failed; 2: it didn't come to that.
try() {
    local kind=$1 kernel
    shift
    case $kind in
        loom)
            export CARGO_TARGET_DIR=$scratch/loom RUSTFLAGS="--cfg loom"
            cargo test --manifest-path "$tree/Cargo.toml" -p vcpu-sched --lib --release --no-run || return 2
            timeout "$limit" cargo test --manifest-path "$tree/Cargo.toml" -p vcpu-sched --lib --release "$1" | tee "$scratch/log/last" || return 1
            ;;
        unit)
            export CARGO_TARGET_DIR=$scratch/unit
            local name=${*: -1} target=("${@:1:$#-1}")
            cargo test --manifest-path "$tree/Cargo.toml" -p vcpu-sched "${target[@]}" --no-run || return 2
            timeout "$limit" cargo test --manifest-path "$tree/Cargo.toml" -p vcpu-sched "${target[@]}" "$name" | tee "$scratch/log/last" || return 1
            ;;
        guest)
            kernel=$(build_kernel selftest) || return 2
            run_guest "$kernel" "$1" "log_level=info test=$2" || return 1
            return 0
            ;;
        program)
            local cpus=$1 image=$scratch/image
            local program=${PROGRAMS:-$root/target/guest/programs}/musl/$2
            shift 2
            rm -rf "$image"
            "${TASKVISOR:-$root/target/release/taskvisor}" image -o "$image" -- "$program" "$@" || return 2
            kernel=$(build_kernel) || return 2
            run_guest "$kernel" "$cpus" "$(cat "$image/cmdline")" -initrd "$image/archive.cpio" || return 1
            return 0
            ;;
        *)
            echo "unknown kind of command: $kind"
            return 2
            ;;
    esac
    # A name that matches nothing passes, too.
    grep -qE '^test result: ok\. [1-9]' "$scratch/log/last" || return 2
}

patches=()
if (($# == 0)); then
    patches=(tests/mutants/*.patch)
else
    for number in "$@"; do patches+=(tests/mutants/"$number"*.patch); done
fi

mapfile -t commands < <(for patch in "${patches[@]}"; do field "$patch" run; done | sort -u)
for command in "${commands[@]}"; do
    # shellcheck disable=SC2086 # several words
    if ! (try $command) >"$scratch/log/before" 2>&1; then
        cat "$scratch/log/before" >&2
        echo "mutants: '$command' fails without any patch" >&2
        exit 1
    fi
    echo "passes unpatched: $command"
done

survivors=0
printf '%-36s %-9s %s\n' mutant verdict 'what failed'
for patch in "${patches[@]}"; do
    name=$(basename "$patch" .patch)
    log=$scratch/log/$name
    restore
    status=0
    if ! patch -d "$tree" -p1 --fuzz=2 --no-backup-if-mismatch --quiet <"$patch" >"$log" 2>&1; then
        verdict=STALE # no longer applies
    else
        # shellcheck disable=SC2046 # several words
        (try $(field "$patch" run)) >>"$log" 2>&1 || status=$?
        case $status in
            0) verdict=SURVIVED ;;
            1) if grep -qE -- "$(field "$patch" expect)" "$log"; then verdict=caught; else verdict=OTHERWISE; fi ;;
            *) verdict=BROKEN ;; # doesn't build
        esac
    fi
    [[ $verdict == caught ]] || survivors=$((survivors + 1))
    what=$(grep -hE -m1 -- "$(field "$patch" expect)" "$log" || tail -n 1 "$log")
    printf '%-36s %-9s %s\n' "$name" "$verdict" "${what:0:140}"
done
echo "$((${#patches[@]} - survivors)) of ${#patches[@]} mutants caught"
((survivors == 0))
