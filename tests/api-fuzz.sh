#!/usr/bin/env bash
# Schemathesis against docs/openapi.json on a live guest: what it makes up must get answers as described, and never a defect.
# Needs python3 and the package schemathesis (pip install schemathesis). Usage: tests/api-fuzz.sh [EXAMPLES [SEED]]
# EXAMPLES: at most so many made-up requests for each operation, besides those that cover its description. Two rounds: with made-up
# identifiers, of which most name nothing, and with those of a task, a program and a vCPU that exist.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${TASKVISOR_BIN:-$root/target/release/taskvisor}
examples=${1:-20} seed=${2:-1}

command -v schemathesis >/dev/null || { echo "api-fuzz: no schemathesis; pip install schemathesis" >&2; exit 2; }
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

"$bin" run --vcpus 2 --timeout 3600s --control "$dir/api" -- \
    /bin/busybox sh -c 'sleep 100000 & (while :; do sleep 0.01; done) & while :; do sleep 0.1; done' >/dev/null 2>"$dir/vmm" &
pids+=($!)
until "$bin" ctl --control "$dir/api" tasks 2>/dev/null | grep -q sleep; do
    kill -0 "${pids[0]}" || { cat "$dir/vmm" >&2; exit 1; }
    sleep 0.1
done

# Schemathesis speaks TCP; this passes bytes between a port of this machine and the socket, and tells which port.
python3 - "$dir/api" >"$dir/port" <<'PYTHON' &
import contextlib, socket, sys, threading

def pass_on(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone: so is the other.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

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

# round CONFIGURATION
round() {
    # What ends, stops or holds the guest would leave nothing to ask.
    schemathesis --config-file "$1" run "$root/docs/openapi.json" --url "http://127.0.0.1:$(cat "$dir/port")" \
        --exclude-path /v1/vm/kill --exclude-path /v1/vm/shutdown --exclude-path /v1/vm/pause \
        --exclude-path '/v1/tasks/{id}/signal' --exclude-path '/v1/tasks/{id}/suspend' \
        --phases coverage,fuzzing --max-examples "$examples" --seed "$seed" --request-timeout 30 --continue-on-failure --warnings off \
        -c not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
    "$bin" ctl --control "$dir/api" status | grep -q running
}

cd "$dir"
touch made-up.toml
round made-up.toml

# A program that has ended: what it wrote can be read to its end at once.
process=$("$bin" ctl --control "$dir/api" --json spawn --streams attached /bin/busybox true | grep -o '"process": *[0-9]*' | grep -o '[0-9]*$')
task=$("$bin" ctl --control "$dir/api" --json tasks | python3 -c '
import json, sys
print(next(task["id"] for task in json.load(sys.stdin) if task["name"] == "sleep"))')
echo "parameters = { id = $task, index = 0, process = $process }" >existing.toml
round existing.toml
