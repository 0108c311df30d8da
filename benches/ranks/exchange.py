#!/usr/bin/env python3
"""How long MLX takes to gather a token's activations from all ranks, and those of a chunk of a prompt.

    mlx.launch -n 2 benches/ranks/exchange.py [--hidden-size 2048]

Needs Python's mlx (tests/fixtures/requirements.txt). Prints, on rank 0, a line of JSON for each number of tokens: microseconds of one
exchange of bf16 and the rate, medians of 25 chains of exchanges that each wait for the one before, as in a forward pass.
"""

import argparse
import json
import statistics
import time

import mlx.core as mx

parser = argparse.ArgumentParser()
parser.add_argument("--hidden-size", type=int, default=2048)
parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
args = parser.parse_args()
mx.set_default_device(mx.cpu)
group = mx.distributed.init(strict=True)


def chain(x, length):
    n = x.shape[0]
    begun = time.perf_counter()
    for _ in range(length):
        x = mx.distributed.all_gather(x, group=group)[:n]
    mx.eval(x)
    return (time.perf_counter() - begun) / length


for tokens in args.tokens:
    x = mx.zeros((tokens, args.hidden_size), dtype=mx.bfloat16)
    length = max(8, 128 // tokens)
    chain(x, length)
    seconds = statistics.median(chain(x, length) for _ in range(25))
    if group.rank() == 0:
        rate = (group.size() - 1) * x.nbytes * 8 / seconds / 1e9
        print(json.dumps({"ranks": group.size(), "tokens": tokens, "bytes": x.nbytes,
                          "exchange_us": round(seconds * 1e6, 1), "gbit_per_s": round(rate, 2)}), flush=True)
