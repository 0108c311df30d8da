#!/usr/bin/env bash
# What the tests with clients need of the system; root gets it installed where there is apt-get.
set -euo pipefail
packages=()
for program in chromium node npm curl; do
    command -v "$program" >/dev/null || packages+=("${program/#node/nodejs}")
done
[ ${#packages[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: not found: ${packages[*]}; as root: apt-get install ${packages[*]}" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
