#!/usr/bin/env bash
# Installs what is missing beside cargo: as root on a Debian-like system with apt, elsewhere it lists what is missing and how
# to get it, and fails. ALLOW_MISSING=1 goes on without.
#   resources/setup.sh [build] [test] [bench]     what for; default: all
set -euo pipefail

purposes=${*:-build test bench}
missing_packages=()
missing_what=()

# need TEST PACKAGES WHAT
need() {
    if ! eval "$1" >/dev/null 2>&1; then
        # shellcheck disable=SC2206 # a list of package names
        missing_packages+=($2)
        missing_what+=("$3${2:+ (Debian: $2)}")
    fi
}

sysroot_of() { RUSTUP_AUTO_INSTALL=0 "$1" --print sysroot 2>/dev/null; }

# A compiler whose sysroot has the guest's target, or the source of its own library.
guest_compiler() {
    local rustc sysroot
    for rustc in "${RUSTC:-rustc}" /usr/bin/rustc; do
        sysroot=$(sysroot_of "$rustc") || continue
        compgen -G "$sysroot/lib/rustlib/x86_64-unknown-none/lib/libcore-*" && return 0
        [[ -f $sysroot/lib/rustlib/src/rust/library/core/Cargo.toml ]] && return 0
    done
    return 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stock_kernel_dir=$root/target/stock-kernel

# A kernel that nobody here built, for the test that boots one. It is unpacked, not installed: no boot loader is touched.
stock_kernel() { compgen -G "$stock_kernel_dir/vmlinuz-*" || compgen -G '/boot/vmlinuz-*'; }
fetch_stock_kernel() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    mkdir -p "$stock_kernel_dir" && pushd "$stock_kernel_dir" >/dev/null || return 1
    apt-get download -qq "$package" 2>/dev/null &&
        dpkg-deb --fsys-tarfile ./*.deb | tar -x --strip-components=2 --wildcards './boot/vmlinuz-*'
    rm -f ./*.deb
    popd >/dev/null
    stock_kernel >/dev/null
}

# Perfetto's published protobuf definitions, with which a test decodes our traces; used from there, not installed.
perfetto_definitions() { [[ -d $root/target/perfetto/perfetto/protos && -d $root/target/perfetto/google/protobuf ]]; }
fetch_perfetto_definitions() {
    # Later versions may move what the check looks at.
    python3 -m pip install --quiet --disable-pip-version-check --target "$root/target/perfetto" --upgrade 'perfetto==0.59.1' &&
        perfetto_definitions
}

for purpose in $purposes; do
    case $purpose in
    build)
        need 'command -v cargo' 'cargo' 'a Rust toolchain, 1.95 or newer'
        need 'command -v cc && echo "#include <stdio.h>" | cc -E -' 'gcc libc6-dev' 'a C compiler'
        need 'guest_compiler' 'rustc-web rust-web-src' 'a compiler for the guest kernel: or `rustup target add x86_64-unknown-none`'
        need 'command -v musl-gcc' 'musl-tools' 'musl-gcc, for the example programs'
        need 'test -x "$(command -v busybox)" && ! ldd "$(command -v busybox)"' 'busybox-static' 'a static busybox, which the demo runs'
        ;;
    test)
        need 'command -v bash-static' 'bash-static' 'a static bash'
        need 'command -v qemu-system-x86_64' 'qemu-system-x86' 'QEMU, as the check on exact CPU semantics'
        need 'command -v go' 'golang-go' 'Go, for a program with a runtime of its own'
        need 'echo "#include <sqlite3.h>" | cc -E -' 'libsqlite3-dev' "SQLite's static library, for a program with a database"
        need 'command -v c++' 'g++' 'a C++ compiler, which libFuzzer is built with'
        need 'command -v gdb' 'gdb' 'gdb, which the debugger is tested with'
        need 'compgen -c lldb && compgen -c | grep -E "^lldb-(dap|vscode)"' 'lldb' 'lldb with its adapter, the other client'
        need 'command -v hwloc-ls' 'hwloc-nox' 'hwloc, as a judge of topologies'
        need 'command -v chromium || command -v chromium-browser || command -v google-chrome' 'chromium' 'Chromium, which draws the page of a report'
        need 'test -x /usr/sbin/slurmctld && test -x /usr/sbin/slurmd && command -v sbatch' 'slurm-wlm' 'Slurm, to which a sweep is submitted'
        need 'stock_kernel' '' 'a stock Linux kernel image, /boot/vmlinuz-*'
        need 'command -v python3 && python3 -m pip --version' 'python3-pip' 'Python with pip'
        perfetto_definitions || fetch_perfetto_definitions >/dev/null 2>&1 || true
        need 'perfetto_definitions' '' "Perfetto's protobuf definitions (python3 -m pip install --target target/perfetto perfetto)"
        ;;
    bench)
        need 'command -v qemu-system-x86_64' 'qemu-system-x86' 'QEMU, which counts instructions and is the counterpart'
        ;;
    *)
        echo "setup: unknown purpose '$purpose' (build, test, bench)" >&2
        exit 2
        ;;
    esac
done

if ((${#missing_what[@]} == 0)); then
    exit 0
fi
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    mapfile -t packages < <(printf '%s\n' "${missing_packages[@]}" | sed '/^$/d' | sort -u)
    echo "setup: installing $(IFS=,; echo "${missing_what[*]}")"
    export DEBIAN_FRONTEND=noninteractive
    # Package lists may be stale or absent: one update, once.
    apt-get update -qq 2>/dev/null || true
    complete=1
    if ((${#packages[@]} > 0)); then
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || complete=0
    fi
    if [[ $purposes == *test* ]] && ! stock_kernel >/dev/null; then
        fetch_stock_kernel || complete=0
    fi
    if [[ $purposes == *test* ]] && ! perfetto_definitions; then
        fetch_perfetto_definitions || complete=0
    fi
    if ((complete)); then exit 0; fi
    echo "setup: apt-get could not give all of it" >&2
fi
# Without apt the target can still come from rustup. Never in CI, where nothing may be fetched behind the lock files' back.
if ! guest_compiler >/dev/null && [[ -z ${CI:-} ]] && ! command -v apt-get >/dev/null && command -v rustup >/dev/null; then
    rustup target add x86_64-unknown-none && exec "$0" "$@"
fi
echo "setup: missing here:" >&2
printf '  %s\n' "${missing_what[@]}" >&2
if [[ ${ALLOW_MISSING:-0} == 1 ]]; then
    echo "setup: ALLOW_MISSING=1: going on without" >&2
    exit 0
fi
echo "install these, or set ALLOW_MISSING=1 to leave out what needs them" >&2
exit 1
