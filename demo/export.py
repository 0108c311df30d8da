"""The demo model as a model folder: 4-bit MLX weights, with the config and the tokenizer beside them.

    python export.py --work build                 # quantizes build/ with MLX and writes build/mlx/
    mlxpack pack --input build/mlx --output demo.mlxpack

The tensors are sorted so that each one is aligned.
"""

import argparse
import json
from pathlib import Path

TEXTS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
SIZES = {"U32": 4, "F32": 4, "BF16": 2, "F16": 2}


def read(path):
    """The tensors of a safetensors file as (dtype, shape, bytes)."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[start + t["data_offsets"][0]:start + t["data_offsets"][1]])
            for name, t in header.items()}


def write(path, tensors, align=64):
    header, at, parts = {"__metadata__": {"format": "mlx"}}, 0, []
    for name, (dtype, shape, data) in sorted(tensors.items(), key=lambda item: (-SIZES[item[1][0]], item[0])):
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[at, at + len(data)])
        parts.append(data)
        at += len(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    Path(path).write_bytes(b"".join([len(text).to_bytes(8, "little"), text] + parts))


def quantized(path, group, bits):
    """The tensors of a full-precision file as MLX stores them: matrices packed, norms in bfloat16."""
    import mlx.core as mx
    out = {}
    for name, weight in mx.load(str(path)).items():
        weight = weight.astype(mx.bfloat16)
        if weight.ndim == 2:
            stem = name.removesuffix(".weight")
            parts = mx.quantize(weight, group_size=group, bits=bits)
            out.update({f"{stem}.weight": parts[0], f"{stem}.scales": parts[1], f"{stem}.biases": parts[2]})
        else:
            out[name] = weight
    return {name: ("U32" if t.dtype == mx.uint32 else "BF16", list(t.shape), bytes(memoryview(t if t.dtype == mx.uint32 else t.view(mx.uint16))))
            for name, t in out.items()}


def export(work, folder, group=64, bits=4):
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEXTS:
        text = (work / name).read_text(encoding="utf-8")
        if name == "config.json":
            config = json.loads(text)
            config["quantization"] = dict(group_size=group, bits=bits, mode="affine")
            config["quantization_config"] = config["quantization"]
            text = json.dumps(config, separators=(",", ":"))
        (folder / name).write_text(text, encoding="utf-8")
    write(folder / "model.safetensors", quantized(work / "model.safetensors", group, bits))
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir())} bytes")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--work", type=Path, default=Path("build"))
    args = args.parse_args()
    export(args.work, args.work / "mlx")


if __name__ == "__main__":
    main()
