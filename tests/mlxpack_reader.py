"""A reader of .mlxpack files, written from the specification in src/mlxpack/mod.rs alone.

    python3 mlxpack_reader.py PACK DIRECTORY

Compares every file of the pack with the directory and prints their names; exits with 1 at the first difference.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

PIECE = 16 << 20


def check(right, problem):
    if not right:
        sys.exit(f"mlxpack_reader: {problem}")


def names_are_safe(names):
    part = r"(?!(con|prn|aux|nul|com[1-9]|lpt[1-9])(\.|/|$))[ !#-)+-.0-9;=@A-Z[\]^-{}~]{1,200}(?<![. ])(?<!\.mlxpack-partial)"
    for name in names:
        check(len(name) <= 1024 and re.fullmatch(f"{part}(/{part})*", name, re.I | re.A), f"bad name {name!r}")
    lower = [name.lower() for name in names]
    check(len(set(lower)) == len(names) <= 10_000, "two files of one name, or too many files")
    folders = {name[:i] for name in lower for i, c in enumerate(name) if c == "/"}
    check(not folders & set(lower), "a file is a folder too")


def read_header(file, size):
    start = file.read(56)
    check(start[:8] == b"\x89MLXP\r\n\x1a", "not a pack")
    version, length = (int.from_bytes(start[at:at + 8], "little") for at in (8, 16))
    check(version == 1, f"version {version}")
    check(length <= 100_000_000 and 56 + length <= size, "header too long")
    header = file.read(length)
    check(hashlib.sha256(start[:24] + header).digest() == start[24:], "header is damaged")
    return json.loads(header)["files"], 56 + length


def data_start(file, entry):
    """Where the tensor data of a safetensors file begins, within the pack."""
    if not entry["name"].endswith(".safetensors"):
        return entry["offset"]
    file.seek(entry["offset"])
    return entry["offset"] + 8 + int.from_bytes(file.read(8), "little")


def main(pack, directory):
    size = Path(pack).stat().st_size
    with open(pack, "rb") as file:
        entries, end = read_header(file, size)
        names_are_safe([entry["name"] for entry in entries])
        for entry in entries:
            name, offset, length = entry["name"], entry["offset"], entry["length"]
            check(0 <= offset - end < 4096, f"{name} is misplaced")
            check(data_start(file, entry) % 4096 == 0, f"{name} is not aligned")
            file.seek(end)
            check(file.read(offset - end) == bytes(offset - end), f"bytes before {name} are not zero")
            hashes = []
            with open(Path(directory) / name, "rb") as original:
                for at in range(0, length, PIECE):
                    piece = file.read(min(PIECE, length - at))
                    check(piece == original.read(len(piece)), f"{name} differs from {original.name} after byte {at}")
                    hashes.append(hashlib.sha256(piece).hexdigest())
                check(original.read(1) == b"", f"{original.name} is longer than what was packed")
            check(hashes == entry["sha256"], f"{name} has other hashes")
            end = offset + length
            print(name)
        check(end == size, "bytes after the last file")


if __name__ == "__main__":
    main(*sys.argv[1:])
