#!/usr/bin/env bash
# What the tests with clients need: Chromium, Node, npm and curl of the system, which root gets installed where there is apt-get, and the
# packages that requirements.txt and package-lock.json name. It says what is missing, and is done at once where nothing is.
set -euo pipefail
cd "$(dirname "$0")"/../..
venv=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}/clients")
cd tests/clients
missing() {
    echo "error: the tests with clients need $1" >&2
    exit 1
}

packages=()
for program in chromium node npm curl; do
    command -v "$program" >/dev/null || packages+=("${program/#node/nodejs}")
done
python3 -c "import ensurepip, venv" 2>/dev/null || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
    wanted="${packages[*]}; as root: apt-get install ${packages[*]}"
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || missing "$wanted"
    export DEBIAN_FRONTEND=noninteractive
    patience=(-o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 -o DPkg::Lock::Timeout=60)
    timeout 300 apt-get "${patience[@]}" update -qq || missing "$wanted, and Debian's list of packages could not be read"
    timeout 900 apt-get "${patience[@]}" install -y -qq --no-install-recommends "${packages[@]}" >/dev/null ||
        missing "$wanted, which could not be installed"
fi

timeout 60 chromium --headless --no-sandbox --disable-dev-shm-usage --dump-dom about:blank >/dev/null 2>&1 || missing "a Chromium that starts"
if ! cmp -s requirements.txt "$venv/installed"; then
    python3 -m venv --clear "$venv"
    timeout 300 "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt ||
        missing "the packages of requirements.txt, which could not be installed"
    cp requirements.txt "$venv/installed"
fi
if ! cmp -s package-lock.json node_modules/installed; then
    timeout 300 npm ci --loglevel error --no-fund --no-audit || missing "the packages of package-lock.json, which could not be installed"
    cp package-lock.json node_modules/installed
fi
