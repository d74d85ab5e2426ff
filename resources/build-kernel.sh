#!/usr/bin/env bash
# Builds the guest kernel exactly as `cargo build` does and prints the path of its ELF file.
#   resources/build-kernel.sh            the kernel
#   resources/build-kernel.sh selftest   the kernel that runs its in-guest tests (any list of cargo features)
#   resources/build-kernel.sh no-default,selftest    the same without the Linux ABI
# TASKVISOR_GUEST_TARGET_DIR puts the results somewhere else than target/guest.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${TASKVISOR_GUEST_TARGET_DIR:-${CARGO_TARGET_DIR:-$root/target}/guest}
tool=$target/build-tool

# The build script's own modules as a command: compiled in a second, once. Renamed into place, because two may do it at once.
newest=$(ls -t "$root"/resources/build/*.rs | head -n 1)
if [[ ! -x $tool || $newest -nt $tool ]]; then
    mkdir -p "$target"
    RUSTUP_AUTO_INSTALL=0 "${RUSTC:-rustc}" --edition 2024 -Copt-level=1 -o "$tool.$$" "$root/resources/build/tool.rs" >&2
    mv "$tool.$$" "$tool"
fi
exec "$tool" "$root" "${1:-}"
