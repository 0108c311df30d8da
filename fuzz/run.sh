#!/usr/bin/env bash
# fuzz/run.sh TARGET [ARGUMENT…]: a fuzz target (reader, reply, requests) with arguments of libFuzzer, after `make setup`. The compiler is
# asked for the coverage that cargo-fuzz asks for, which the stable one gives too; only sanitizers need a nightly one.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
target=$(realpath -m "${CARGO_TARGET_DIR:-target}/fuzz")
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
CARGO_TARGET_DIR=$target RUSTFLAGS="--cfg fuzzing ${coverage//$'\n'/}" \
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target "$host" --bin "$name"
mkdir -p "$target/corpus/$name"
exec "$target/$host/release/$name" -artifact_prefix="$target/" "$@" "$target/corpus/$name"
