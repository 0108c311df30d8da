# `make demo` and `make test` do everything from a fresh clone; `make help` lists the rest.

PROMPT ?= In the beginning the Universe was created.
DIST   := mlx_lm-$(shell uname -s | tr A-Z a-z)-$(shell uname -m)

.PHONY: help setup demo test test-clients test-cuda lint dist man clean

help:
	@echo "make demo    set up, build, and let the demo model answer PROMPT=\"...\""
	@echo "make test    set up and run the test suite"
	@echo "make test-clients  the openai packages, curl and Chromium against mlx_lm serve"
	@echo "make test-cuda  the tests of what NVIDIA GPUs compute; without one they pass, and say so"
	@echo "make setup   fetch MLX and build its C API under .mlx/ [MLX=cpu|cuda12|cuda13]"
	@echo "make lint    formatting, clippy and documentation, warnings as errors"
	@echo "make dist    a tarball that runs without a toolchain, under dist/"
	@echo "make man     man pages, under dist/man/"
	@echo "make clean   remove target/, dist/ and .mlx/"

setup: need-python3 need-cargo
	@python3 setup/setup.py $(MLX)

demo: setup
	cargo build --release --locked
	target/release/mlx_lm --prompt "$(PROMPT)" --verbose

test: setup
	cargo test --locked

# Chromium, Node and npm come from the system. All else is installed below target/ and tests/clients/node_modules/. The programs are
# those that the tests built: `cargo build` would build all of them again, with other features of their dependencies.
test-clients: setup
	tests/clients/install.sh
	cargo test --locked --test suite --no-run
	tests/clients/run.sh

test-cuda: setup
	cargo test --release --locked --lib --test suite cuda
	MLX_LM_TEST_DEVICE=gpu MLX_ENABLE_TF32=0 cargo test --release --locked --test suite fidelity -- --test-threads 1

lint: setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --lib -- -D warnings
	cargo clippy --locked --no-default-features --features cli -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

dist: setup
	cargo build --release --locked
	@setup/dist.sh dist/$(DIST)

man: setup
	cargo build --release --locked
	mkdir -p dist/man
	target/release/mlx_lm man dist/man
	target/release/mlxpack man dist/man
	@ls dist/man

clean:
	rm -rf target dist .mlx

need-python3:
	@command -v python3 >/dev/null || { echo "error: python3 was not found; install Python 3.9 or later with pip (Debian and Ubuntu: apt-get install python3-pip)" >&2; exit 1; }

need-cargo:
	@command -v cargo >/dev/null || { echo "error: cargo was not found; install Rust from https://rustup.rs" >&2; exit 1; }
