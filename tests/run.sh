#!/usr/bin/env bash
# Runs every test of the workspace and closes with one line that counts them all.
# Arguments go to cargo test: tests/run.sh -p taskvisor-tests --test programs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if (($# == 0)); then set -- --workspace; fi
cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
echo
grep -h '^left out: ' "$log" | sort -u || true
awk '/^test result: / { passed += $4; failed += $6; skipped += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$status"
