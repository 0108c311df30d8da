#!/usr/bin/env bash
# What clients see of a running server: the openai packages for Python and JavaScript, curl, and the page in Chromium.
# Called by `make test-clients`, with the programs built and what install.sh installs.
set -euo pipefail
cd "$(dirname "$0")"/../..
target=$(realpath "${CARGO_TARGET_DIR:-target}")
cd tests/clients
bin=$target/debug
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
work=$(mktemp -d)
server=
end() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

# start ARGS…: a server at a free port, in $url.
start() {
    "$bin/mlx_lm" serve --port 0 "$@" 2>"$work/said" &
    server=$!
    for _ in $(seq 600); do
        url=$(sed -n 's/^listening at \(http:[^,]*\),.*/\1/p' "$work/said")
        [ -z "$url" ] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    echo "error: the server does not listen" >&2
    cat "$work/said" >&2
    return 1
}
# The server ends by itself when it is told to.
stop() {
    kill "$server"
    wait "$server"
    server=
}
SECONDS=0
passed() {
    echo "$1: ok, after $SECONDS s"
}

"$bin/mlxpack" extract ../../demo/demo.mlxpack "$work/tools" 2>/dev/null
cp template.jinja "$work/tools/chat_template.jinja"
echo secret >"$work/keys"
start --api-key-file "$work/keys" --model-root ../../demo/demo.mlxpack --model-root "$work/tools"
timeout 300 "$target/clients/bin/python" client.py "$url" secret
passed "the openai package for Python"
timeout 300 node client.mjs "$url" secret
passed "the openai package for JavaScript"

ask='{"messages": [{"role": "user", "content": "What colour is the sky?"}], "stream": true}'
curl -sSN --max-time 120 -H "Authorization: Bearer secret" "$url/v1/chat/completions" -d "$ask" >"$work/stream"
grep -q '^data: \[DONE\]$' "$work/stream" && grep -q '" blue"' "$work/stream"
test "$(curl -s --max-time 120 -o /dev/null -w '%{http_code}' "$url/v1/chat/completions" -d "$ask")" = 401
passed "curl"
stop

start
CHROMIUM=$(command -v chromium) timeout 600 node browser.mjs "$url"
passed "the page in Chromium"
stop
