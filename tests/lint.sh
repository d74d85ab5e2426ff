#!/usr/bin/env bash
# Formatting and lints of everything in the tree; any warning fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all --check
cargo fmt --manifest-path guest-kernel/Cargo.toml --check
rustfmt --edition 2024 --check resources/build/tool.rs resources/programs/*.rs

step "clippy: host crates"
cargo clippy --locked --workspace --all-targets -- -D warnings

# Clippy needs a `core` of its own compiler, and the guest's target may exist for another compiler only. The kernel is no_std
# and checking doesn't link, so it is checked against the host's `core`.
step "clippy: guest kernel"
for features in "" "--features selftest" "--no-default-features --features selftest"; do
    # shellcheck disable=SC2086 # several words
    cargo clippy --locked --release --manifest-path guest-kernel/Cargo.toml --target-dir "$target/guest/clippy" \
        --target "$(rustc -vV | sed -n 's/^host: //p')" $features -- -D warnings
done

step "C: compiler warnings"
for source in resources/programs/*.c tests/bench/*.c; do
    gcc -std=gnu11 -O2 -Wall -Wextra -Werror -pthread -c -o /dev/null "$source"
done

step "shell scripts"
scripts=(.ci/run resources/*.sh tests/*.sh)
for script in "${scripts[@]}"; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck "${scripts[@]}"; fi
echo "lint: clean"
