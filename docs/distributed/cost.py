#!/usr/bin/env python3
"""The tables of docs/distributed.md: what several machines reach, on paper.

    python3 docs/distributed/cost.py [--memory-gb-per-s 200] [--tflops 4] [--latency-us 30 30 30 5]
    python3 docs/distributed/cost.py --check    # what it says of the measurements in measured.json
"""

import argparse
import json
import statistics
from pathlib import Path

# Layers, hidden size, vocabulary, and of the 4-bit weights (4.5 bits each) bytes a decode step reads and weights a prompt multiplies by.
SHAPES = {
    "1B": dict(layers=16, hidden=2048, vocabulary=128256, step_gb=0.695, weights=0.973e9),
    "4B": dict(layers=36, hidden=2560, vocabulary=151936, step_gb=2.26, weights=3.63e9),
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
        for name, shape in ((name, SHAPES[name]) for name in ("1B", "7B", "70B")):
            if phase is decode:
                alone, tokens = shape["step_gb"] / memory_gb_per_s, 1
            else:
                alone, tokens = 2 * shape["weights"] * CHUNK / (tflops * 1e12), CHUNK
            for gbit, latency in zip(NETWORKS, latencies):
                cells = [tokens / phase(shape, n, alone, latency * 1e-6, gbit) for n in MACHINES]
                print(f"| {name} | {gbit} Gbit/s | " + " | ".join(f"{cell:,.{0 if cell >= 100 else 1}f}" for cell in cells) + " |")
        print()


def check():
    """The latency is that with which the first model's decoding comes out right; all else follows."""
    measured = json.loads((Path(__file__).parent / "measured.json").read_text())
    first = measured["bench"][0]
    bytes_of_512 = 2 * SHAPES[first["model"]]["hidden"] * 512
    mean = statistics.mean
    waited = 1 / mean(first["two_ranks"]["decode_tps"]) - 1 / first["one_thread"]["decode_tps"] / 2
    latency = waited / (2 * SHAPES[first["model"]]["layers"] + 2)
    seconds = statistics.median(measured["exchange_us"]["512 tokens"]) * 1e-6
    gbit_per_s = bytes_of_512 * 8 / (seconds - latency) / 1e9
    print(f"latency {latency * 1e6:.0f} us, {gbit_per_s:.1f} Gbit/s\n")
    print("| | computed | measured |\n|---|---:|---:|")
    for row in measured["bench"]:
        shape, one, two, prompt = SHAPES[row["model"]], row["one_thread"], row["two_ranks"], row["prompt"]
        token = decode(shape, 2, 1 / one["decode_tps"], latency, gbit_per_s)
        print(f"| {row['model']}, decode | {1 / token:.1f} | {mean(two['decode_tps']):.1f} |")
        chunk = prefill(shape, 2, prompt / one["prefill_tps"], latency, gbit_per_s, prompt)
        print(f"| {row['model']}, prefill {prompt} | {prompt / chunk:.0f} | {mean(two['prefill_tps']):.0f} |")


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
