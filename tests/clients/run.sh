#!/usr/bin/env bash
# What clients see of a running server: the openai packages for Python and JavaScript, curl, and the page in Chromium.
# Called by `make test-clients`, with the programs built. Everything is installed here or under target/.
set -euo pipefail
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-../../target}
bin=$(realpath "$target/${PROFILE:-release}")
work=$(mktemp -d)
server=
end() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

venv=$target/clients
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
npm ci --silent --no-fund --no-audit

# start ARGS…: a server at a free port, in $url.
start() {
    "$bin/mlx_lm" serve --port 0 "$@" 2>"$work/said" &
    server=$!
    for _ in $(seq 200); do
        url=$(sed -n 's/^listening at \(http:[^,]*\),.*/\1/p' "$work/said")
        [ -z "$url" ] || return 0
        sleep 0.1
    done
    cat "$work/said" >&2
    return 1
}
# The server ends by itself when it is told to.
stop() {
    kill "$server"
    wait "$server"
    server=
}

"$bin/mlxpack" extract ../../demo/demo.mlxpack "$work/tools" 2>/dev/null
cp template.jinja "$work/tools/chat_template.jinja"
echo secret >"$work/keys"
start --api-key-file "$work/keys" --model-root ../../demo/demo.mlxpack --model-root "$work/tools"
"$venv/bin/python" client.py "$url" secret
node client.mjs "$url" secret

ask='{"messages": [{"role": "user", "content": "What colour is the sky?"}], "stream": true}'
curl -sSN -H "Authorization: Bearer secret" "$url/v1/chat/completions" -d "$ask" >"$work/stream"
grep -q '^data: \[DONE\]$' "$work/stream" && grep -q '" blue"' "$work/stream"
test "$(curl -s -o /dev/null -w '%{http_code}' "$url/v1/chat/completions" -d "$ask")" = 401
echo "curl: ok"
stop

start
node browser.mjs "$url"
stop
