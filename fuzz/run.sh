#!/usr/bin/env bash
# Builds the fuzz targets and runs each for a while: fuzz/run.sh [SECONDS [TARGET...]]
# It is what cargo-fuzz does, without its nightly compiler: coverage counters are in the stable one (the address sanitizer isn't, and there is little for it to find
# in code without unsafe). Inputs that found something new are kept in target/fuzz-corpus/, one that fails in target/fuzz-artifacts/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:-60}
shift || true
if (($# == 0)); then
    mapfile -t targets < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' Cargo.toml)
else
    targets=("$@")
fi

target_dir=$(realpath -m "${CARGO_TARGET_DIR:-../target}")
CARGO_TARGET_DIR=$target_dir RUSTC_WRAPPER=$PWD/rustc-instrumented ${CARGO:-cargo} build --locked --bins

failed=0
for target in "${targets[@]}"; do
    corpus=$target_dir/fuzz-corpus/$target artifacts=$target_dir/fuzz-artifacts/$target
    mkdir -p "$corpus" "$artifacts"
    seeds=()
    if [[ -d seeds/$target ]]; then seeds=("seeds/$target"); fi
    if [[ $target == scripts ]]; then seeds=(../resources/scripts); fi
    program=$target_dir/debug/fuzz_$target
    log=$artifacts/log
    if "$program" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=2048 -verbosity=1 -print_final_stats=1 \
        -artifact_prefix="$artifacts/" "$corpus" "${seeds[@]}" >"$log" 2>&1; then
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, nothing found"
    else
        failed=1
        tail -n 40 "$log"
        echo "$target: an input fails; again: $program FILE, with the file named above"
    fi
done
exit $failed
