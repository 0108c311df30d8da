#!/usr/bin/env python3
"""Print the licences of all that `make dist` packs besides this project's own work: third_party.py LIBRARY...

The crates are those that Cargo links into the programs, their texts are in their sources. Shared libraries are known by
name; one that is not known is an error, as is a crate whose licence has no text. No network; standard library only.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "setup/licenses"
GCC = ("GPL-3.0-or-later WITH GCC-exception-3.1", "GCC, https://gcc.gnu.org", [TEXTS / "GPL-3.0.txt", TEXTS / "GCC-exception-3.1.txt"])
LAPACK = ("BSD-3-Clause", "LAPACK, https://www.netlib.org/lapack", [TEXTS / "LAPACK.txt"])
# Licence, origin and source, texts; by the beginning of the file's name.
LIBRARIES = {
    "libmlx": ("MIT", "MLX, https://github.com/ml-explore/mlx", [*ROOT.glob(".mlx/wheels/cpu/mlx_cpu-*.dist-info/licenses/LICENSE")]),
    "libstdc++": GCC,
    "libgcc_s": GCC,
    "libgfortran": GCC,
    "libquadmath": ("LGPL-2.1-or-later", "GCC, https://gcc.gnu.org", [TEXTS / "LGPL-2.1.txt"]),
    "libblas": LAPACK,
    "liblapack": LAPACK,
}
LICENCE_FILE = re.compile(r"(un)?licen[sc]e|copying|copyright|notice", re.I)


def output(*command):
    return subprocess.check_output(command, cwd=ROOT, text=True)


def library(name):
    known = next((about for start, about in LIBRARIES.items() if re.split(r"[-.]", name)[0] == start), None)
    if not known or not known[2]:
        sys.exit(f"third_party: error: {name}: its licence is not known; add it to {Path(__file__).relative_to(ROOT)}")
    licence, origin, texts = known
    return f"{name}: {licence} ({origin})", texts


def crates():
    # Only this platform's sources are there.
    host = re.search(r"^host: (.+)$", output("rustc", "-vV"), re.M).group(1)
    metadata = output("cargo", "metadata", "--locked", "--offline", "--format-version=1", "--filter-platform", host)
    packages = {(p["name"], p["version"]): p for p in json.loads(metadata)["packages"]}
    linked = output("cargo", "tree", "--locked", "--offline", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}")
    for name, version in sorted({tuple(line.split()[:2]) for line in linked.splitlines() if line}):
        package = packages[name, version.removeprefix("v")]
        if package["source"] is None:
            continue  # this project
        folder = Path(package["manifest_path"]).parent
        texts = sorted(f for f in folder.rglob("*") if f.is_file() and LICENCE_FILE.match(f.name))
        if not any(f.parent == folder for f in texts):
            if "Apache-2.0" not in package["license"]:
                sys.exit(f"third_party: error: {name} {version}: no licence file in {folder}")
            texts.append(ROOT / "LICENSE-APACHE")
        yield f"{name} {version}: {package['license']} ({package['repository']})", texts


def main():
    libraries = [library(Path(path).name) for path in sys.argv[1:]]
    rust = ("Rust's standard library: MIT OR Apache-2.0 (https://github.com/rust-lang/rust)", [ROOT / "LICENSE-APACHE"])
    linked = [rust, *crates()]
    print("This package holds, besides mlx_lm itself, what is listed here. The licences follow.\n")
    print("Libraries, in lib/:", *(about for about, _ in libraries), sep="\n  ")
    print("\nRust crates, in bin/:", *(about for about, _ in linked), sep="\n  ")
    holders = {}  # texts that differ in line breaks alone are one
    for about, texts in libraries + linked:
        for path in texts:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            names = holders.setdefault(" ".join(text.split()), (text, {}))[1]
            names[about.split(": ")[0]] = True  # once, in order
    for text, names in holders.values():
        print(f"\n\n{'=' * 80}\n{', '.join(names)}\n{'=' * 80}\n\n{text}")


main()
