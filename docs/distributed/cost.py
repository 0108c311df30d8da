#!/usr/bin/env python3
"""The tables of docs/distributed.md: what several machines reach, on paper.

    python3 docs/distributed/cost.py [--memory-gb-per-s 200] [--tflops 4] [--latency-us 30 30 30 5]
    python3 docs/distributed/cost.py --check    # what it says of the measurements in measured.json
"""

import argparse
import json
from pathlib import Path

# Layers, hidden size, vocabulary, and of the 4-bit weights (4.5 bits each) bytes a decode step reads and weights a prompt multiplies by.
SHAPES = {
    "1B": dict(layers=16, hidden=2048, vocabulary=128256, step_gb=0.695, weights=0.973e9),
    "7B": dict(layers=32, hidden=4096, vocabulary=32000, step_gb=4.0, weights=6.98e9),
    "70B": dict(layers=80, hidden=8192, vocabulary=128256, step_gb=39.1, weights=68.5e9),
}
NETWORKS = [1, 10, 25, 400]  # Gbit/s
MACHINES = [1, 2, 4, 8, 16]
CHUNK = 512  # tokens of a prompt that are read at once


def gather(own_bytes, machines, latency, gbit_per_s):
    """Seconds until each machine has what every machine has of so many bytes: neighbours pass it on, P - 1 times."""
    return (machines - 1) * (latency + own_bytes * 8 / (gbit_per_s * 1e9))


def decode(shape, machines, seconds_alone, latency, gbit_per_s):
    """Seconds for a token: a share of the work, a sum after the embedding and two for each block, and the logits' columns."""
    sums = (2 * shape["layers"] + 1) * gather(2 * shape["hidden"], machines, latency, gbit_per_s)
    columns = gather(2 * shape["vocabulary"] / machines, machines, latency, gbit_per_s)
    return seconds_alone / machines + sums + columns


def prefill(shape, machines, seconds_alone, latency, gbit_per_s, tokens=CHUNK):
    """Seconds for a chunk of a prompt, whose last token alone has logits."""
    sums = (2 * shape["layers"] + 1) * gather(2 * shape["hidden"] * tokens, machines, latency, gbit_per_s)
    return seconds_alone / machines + sums


def tables(memory_gb_per_s, tflops, latencies):
    for title, phase in ("Decode", decode), (f"Prefill, {CHUNK} tokens", prefill):
        print(f"{title}, tokens per second:\n")
        print("| | network | " + " | ".join(f"{n} machine{'s' * (n > 1)}" for n in MACHINES) + " |")
        print("|---|---|" + "---:|" * len(MACHINES))
        for name, shape in SHAPES.items():
            if phase is decode:
                alone, tokens = shape["step_gb"] / memory_gb_per_s, 1
            else:
                alone, tokens = 2 * shape["weights"] * CHUNK / (tflops * 1e12), CHUNK
            for gbit, latency in zip(NETWORKS, latencies):
                cells = [tokens / phase(shape, n, alone, latency * 1e-6, gbit) for n in MACHINES]
                print(f"| {name} | {gbit} Gbit/s | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")
        print()


def check():
    measured = json.loads((Path(__file__).parent / "measured.json").read_text())
    shape = SHAPES["1B"]
    one = measured["one_rank_one_thread"]
    exchange = {row["tokens"]: row["exchange_us"] * 1e-6 for row in measured["exchanges"]}
    sums = 2 * shape["layers"] + 1
    print("| | computed | measured |\n|---|---:|---:|")
    predicted = 1 / (1 / one["decode_tps"] / 2 + (sums + 1) * exchange[1])
    print(f"| decode, tokens per second | {predicted:.1f} | {measured['two_ranks']['decode_tps']:.1f} |")
    predicted = CHUNK / (CHUNK / one["prefill_tps"] / 2 + sums * exchange[CHUNK])
    print(f"| prefill {CHUNK} | {predicted:.0f} | {measured['two_ranks']['prefill_tps']:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-gb-per-s", type=float, default=200)
    parser.add_argument("--tflops", type=float, default=4)
    parser.add_argument("--latency-us", type=float, nargs=4, default=[30, 30, 30, 5], help="of one exchange between neighbours")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        check()
    else:
        tables(args.memory_gb_per_s, args.tflops, args.latency_us)
