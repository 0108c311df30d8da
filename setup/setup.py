#!/usr/bin/env python3
"""Prepare a Linux machine to build this crate: `make setup [MLX=cpu|cuda12|cuda13]`.

mlx-sys' own build script builds MLX for macOS. Cargo lets configuration stand in for a build script
(a `[target.<triple>.mlx]` table), so on Linux this program supplies what that table needs, under .mlx/:

    wheels/<variant>   MLX itself, from its PyPI wheel (hashes in setup/mlx-<variant>.txt)
    libmlxc.a          the MLX C API, compiled from the sources inside the mlx-sys crate
    bindings.rs        its Rust declarations, written by bindgen
    cargo.toml         the table, which .cargo/config.toml includes when it exists

Every step is skipped when its result is already there. Standard library only; no root needed.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "setup"
OUT = ROOT / ".mlx"
BINDGEN = "0.72.1"
GLIBC = (2, 35)  # what MLX's manylinux_2_35 wheels are built for


def say(text):
    print(f"setup: {text}", flush=True)


def fail(text):
    sys.exit(f"setup: error: {text}")


def run(*command, **options):
    """Run a command; on failure show what it printed and stop."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        fail(f"`{' '.join(str(c) for c in command[:4])} …` failed with exit code {done.returncode}; its output is above")
    return done.stdout


def check_tools(cxx):
    needed = {
        cxx: "a C++20 compiler (Debian and Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)",
        "ar": "ar, of GNU binutils (Debian and Ubuntu: apt-get install binutils)",
        "cc": "a C compiler (Debian and Ubuntu: apt-get install gcc; Fedora: dnf install gcc)",
        "cargo": "Rust (https://rustup.rs)",
        "rustc": "Rust (https://rustup.rs)",
    }
    for tool, what in needed.items():
        if not shutil.which(tool):
            fail(f"`{tool}` was not found; install {what}")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        fail("Python has no pip; install it (Debian and Ubuntu: apt-get install python3-pip; Fedora: dnf install python3-pip)")
    probe = subprocess.run([cxx, "-std=c++20", "-x", "c++", "-fsyntax-only", "-"], input="#include <concepts>\n", text=True, capture_output=True)
    if probe.returncode != 0:
        fail(f"`{cxx}` cannot compile C++20; install GCC 11 or later, or set CXX to such a compiler")
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        fail(f"MLX's wheels need glibc {GLIBC[0]}.{GLIBC[1]} or later (Debian 12, Ubuntu 22.04); this system has {name or 'another libc'} {version}")


def check_rust():
    needed = re.search(r'^rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    # Outside the project: an older Cargo cannot read its configuration.
    found = re.search(r"[\d.]+", run("cargo", "--version", cwd="/")).group()
    if [int(n) for n in found.split(".")] < [int(n) for n in needed.split(".")]:
        fail(f"Rust {needed} or later is needed, this is {found}; update it (`rustup update`, or https://rustup.rs)")


def stamped(path, *inputs):
    """Whether `path` was made from `inputs` by this very program, and a function that records that it now is."""
    inputs = [Path(__file__).read_text(), *map(str, inputs)]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    stamp = path.with_name(path.name + ".stamp")

    def mark():
        stamp.write_text(key)

    return path.exists() and stamp.exists() and stamp.read_text() == key, mark


def install_wheels(requirements, target):
    done, mark = stamped(target, requirements.read_text())
    if done:
        return target
    shutil.rmtree(target, ignore_errors=True)
    names = re.findall(r"^[\w-]+==[\w.]+", requirements.read_text(), re.M)
    say(f"fetching {', '.join(names)} from PyPI")
    run(sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile",
        "--disable-pip-version-check", "--quiet", "--target", target, "--requirement", requirements)
    mark()
    return target


def mlx_sys_source():
    """Where Cargo keeps the sources of the mlx-sys that Cargo.lock names."""
    run("cargo", "fetch", "--locked", "--target", host_triple(), cwd=ROOT)
    metadata = json.loads(subprocess.check_output(
        ["cargo", "metadata", "--locked", "--offline", "--format-version=1", "--filter-platform", host_triple()], cwd=ROOT))
    package = next(p for p in metadata["packages"] if p["name"] == "mlx-sys")
    return Path(package["manifest_path"]).parent


def host_triple():
    return re.search(r"^host: (.+)$", run("rustc", "-vV"), re.M).group(1)


def compile_c_api(cxx, mlx_c, include):
    archive = OUT / "libmlxc.a"
    compat = [HERE / "compat.h", HERE / "compat.cpp"]
    done, mark = stamped(archive, cxx, mlx_c, *(f.read_text() for f in compat))
    if done:
        return
    sources = sorted((mlx_c / "mlx/c").glob("*.cpp")) + [HERE / "compat.cpp"]
    say(f"compiling the MLX C API ({len(sources)} files, about a minute)")
    objects = OUT / "objects"
    objects.mkdir(exist_ok=True)

    def compile_one(source):
        target = objects / (source.stem + ".o")
        run(cxx, "-std=c++20", "-O2", "-fPIC", "-w", "-include", HERE / "compat.h",
            f"-I{mlx_c}", "-isystem", include, "-c", source, "-o", target)
        return target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compile_one, sources))
    archive.unlink(missing_ok=True)
    run("ar", "rcs", archive, *made)
    shutil.rmtree(objects)
    mark()


def write_bindings(cxx, mlx_c):
    bindings = OUT / "bindings.rs"
    done, mark = stamped(bindings, BINDGEN, mlx_c, (HERE / "bindgen.h").read_text())
    if done:
        return
    libclang = install_wheels(HERE / "libclang.txt", OUT / "libclang")
    bindgen = OUT / "tools/bin/bindgen"
    if not bindgen.exists():
        say(f"building bindgen {BINDGEN} (about a minute)")
        run("cargo", "install", "bindgen-cli", "--version", BINDGEN, "--locked", "--quiet", "--root", OUT / "tools",
            "--target-dir", OUT / "tools/target", cwd=OUT)
        shutil.rmtree(OUT / "tools/target")
    say("writing the Rust bindings")
    # libclang's wheel has no headers of its own: stddef.h and friends come from the compiler.
    builtin = run(cxx, "-print-file-name=include").strip()
    umbrella = OUT / "umbrella.h"
    headers = sorted((mlx_c / "mlx/c").glob("*.h"))
    umbrella.write_text("".join(f'#include "{h}"\n' for h in [HERE / "bindgen.h", *headers]))
    run(bindgen, umbrella, "--output", bindings, "--rust-target", "1.73", "--blocklist-function", "malloc",
        "--blocklist-function", "realloc", "--blocklist-type", "float16_t",
        "--raw-line", "#[repr(C)] #[derive(Debug, Default, Copy, Clone)] pub struct float16_t(pub u16);",
        "--", f"-I{mlx_c}", "-isystem", builtin,
        env={**os.environ, "LIBCLANG_PATH": str(libclang / "clang/native")})
    umbrella.unlink()
    mark()


def write_cargo_config(variant, wheel, mlx_sys):
    lib = wheel / "mlx/lib"
    values = {
        "rustc-link-search": [f"native={OUT}", f"native={lib}"],
        "rustc-link-lib": ["static=mlxc", "dylib=mlx", "dylib=stdc++"],
        "include": f"{wheel / 'mlx/include'}:{mlx_sys / 'src/mlx-c'}",
        "defines": "",
        # Any further key reaches our build.rs as DEP_MLX_<KEY>.
        "rpath": str(lib),
        "variant": variant,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    text = "\n".join([f"[target.{host_triple()}.mlx]", *lines, f"rustc-env = {{ OUT_DIR = {json.dumps(str(OUT))} }}", ""])
    config = OUT / "cargo.toml"
    if not config.exists() or config.read_text() != text:
        config.write_text(text)
        say(f"the crate now builds against MLX for {variant} ({config.relative_to(ROOT)})")


def main():
    parser = argparse.ArgumentParser(description="Prepare a Linux machine to build this crate.")
    parser.add_argument("mlx", nargs="?", choices=["cpu", "cuda12", "cuda13"], help="which MLX to build against (default: the one set up before, else cpu)")
    wanted = parser.parse_args().mlx
    if sys.platform == "darwin":
        return say("nothing to prepare on macOS: `cargo build --release` builds MLX itself")
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        fail(f"MLX has wheels for Linux on x86_64 and aarch64 only; this is {platform.system()} on {platform.machine()}")
    cxx = os.environ.get("CXX", "g++")
    check_tools(cxx)
    check_rust()
    OUT.mkdir(exist_ok=True)
    before = re.search(r'^variant = "(\w+)"', (OUT / "cargo.toml").read_text(), re.M) if (OUT / "cargo.toml").exists() else None
    variant = wanted or (before.group(1) if before else "cpu")
    mlx_sys = mlx_sys_source()
    wheel = install_wheels(HERE / f"mlx-{variant}.txt", OUT / "wheels" / variant)
    compile_c_api(cxx, mlx_sys / "src/mlx-c", wheel / "mlx/include")
    write_bindings(cxx, mlx_sys / "src/mlx-c")
    write_cargo_config(variant, wheel, mlx_sys)


main()
