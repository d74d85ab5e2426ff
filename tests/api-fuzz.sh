#!/usr/bin/env bash
# Schemathesis against docs/openapi.json on a live guest: what it makes up must get answers as described, and never a defect.
# Needs python3 and the package schemathesis (pip install schemathesis). Usage: tests/api-fuzz.sh [SECONDS [SEED]]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${TASKVISOR_BIN:-$root/target/release/taskvisor}
seconds=${1:-120} seed=${2:-1}

command -v schemathesis >/dev/null || { echo "api-fuzz: no schemathesis; pip install schemathesis" >&2; exit 2; }
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

"$bin" run --vcpus 2 --timeout "$((seconds * 3 + 120))s" --control "$dir/api" -- \
    busybox sh -c 'sleep 100000 & (while :; do sleep 0.01; done) & while :; do sleep 0.1; done' >/dev/null 2>"$dir/vmm" &
pids+=($!)
until "$bin" ctl --control "$dir/api" tasks 2>/dev/null | grep -q sleep; do
    kill -0 "${pids[0]}" || { cat "$dir/vmm" >&2; exit 1; }
    sleep 0.1
done

# Schemathesis speaks TCP; this passes bytes between a port of this machine and the socket, and tells which port.
python3 - "$dir/api" >"$dir/port" <<'PYTHON' &
import socket, sys, threading

def pass_on(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[1])
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pass_on, args=pair, daemon=True).start()
PYTHON
pids+=($!)
until [[ -s $dir/port ]]; do sleep 0.1; done

# What ends, stops or holds the guest would leave nothing to ask.
cd "$dir"
schemathesis run "$root/docs/openapi.json" --url "http://127.0.0.1:$(cat "$dir/port")" \
    --exclude-path /v1/vm/kill --exclude-path /v1/vm/shutdown --exclude-path /v1/vm/pause \
    --exclude-path '/v1/tasks/{id}/signal' --exclude-path '/v1/tasks/{id}/suspend' \
    --phases coverage,fuzzing --max-time "$seconds" --seed "$seed" --request-timeout 30 --continue-on-failure \
    -c not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
"$bin" ctl --control "$dir/api" status | grep -q running
