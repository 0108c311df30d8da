#!/usr/bin/env python3
"""Times `mlx_lm convert -q` against mlx-lm's converter, by turns, on Llama-3.2-1B's shapes with random numbers in bf16 (2.47 GB).

usage: convert.py FOLDER [--rounds 3] [--program mlx_lm] [--tokenizer DIR]

FOLDER takes the model and what is made of it, 3.2 GB. Besides both, each round times the least that the disk can do: reading
the model's file and writing as many bytes as the result has, in two threads, to the disk. Needs mlx-lm and the files of any tokenizer.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
    "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
    "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}
BLOCK = 4 << 20


def make(folder, tokenizer):
    shutil.copytree(tokenizer, folder)
    mx.set_default_device(mx.cpu)
    width, inner, key_values = 2048, 8192, 512
    tensors = {"model.embed_tokens.weight": (128256, width), "model.norm.weight": (width,)}
    for i in range(16):
        layer = f"model.layers.{i}"
        for name, shape in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (key_values, width), "self_attn.v_proj": (key_values, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }.items():
            tensors[f"{layer}.{name}.weight"] = shape
    numbers = {name: (mx.random.normal(shape) * 0.02).astype(mx.bfloat16) for name, shape in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), numbers, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def copy(source, target, bytes_out):
    """Read a file whole and write so many bytes, both by halves in two threads, and wait until they are on disk."""
    size = source.stat().st_size
    data = bytearray(BLOCK)
    out = os.open(target, os.O_CREAT | os.O_WRONLY)

    def half(part):
        buffer = bytearray(BLOCK)
        with open(source, "rb", buffering=0) as file:
            file.seek(part * size // 2)
            left = size // 2
            while left > 0:
                left -= file.readinto(buffer) or left
        at, end = part * bytes_out // 2, (part + 1) * bytes_out // 2
        while at < end:
            at += os.pwrite(out, data[: min(BLOCK, end - at)], at)

    threads = [threading.Thread(target=half, args=(part,)) for part in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    os.fsync(out)
    os.close(out)
    os.remove(target)


def timed(work):
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", default="mlx_lm")
    parser.add_argument("--tokenizer", type=Path, default=Path(__file__).parents[2] / "tests/fixtures/tokenizers/byte_level_llama3")
    args = parser.parse_args()
    source, ours, theirs = args.folder / "source", args.folder / "ours", args.folder / "theirs"
    if not source.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        make(source, args.tokenizer)

    def run(command, target):
        shutil.rmtree(target, ignore_errors=True)
        return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    for _ in range(args.rounds):
        fast = run([args.program, "convert", "--model-root", source, "-q", "--output", ours], ours)
        bytes_out = (ours / "model.safetensors").stat().st_size
        slow = run([sys.executable, "-m", "mlx_lm", "convert", "--hf-path", source, "-q", "--mlx-path", theirs], theirs)
        least = timed(lambda: copy(source / "model.safetensors", args.folder / "copy", bytes_out))
        print(json.dumps({"mlx_lm_convert_s": round(fast, 2), "python_s": round(slow, 2), "read_and_write_s": round(least, 2),
            "times_as_fast": round(slow / fast, 1), "share_of_read_and_write": round(least / fast, 2)}), flush=True)


if __name__ == "__main__":
    main()
