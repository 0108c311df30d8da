#!/usr/bin/env python3
"""Time llama.cpp through its C API: a prompt, tokens one by one, and one token of each of several sequences per step.

usage: llamacpp.py MODEL.gguf [--prompt 512] [--gen 64] [--threads 2] [--trials 3] [--batch-size 1,2,4,8,16]

`mlx_lm bench --batch-size` measures the same of this program. The library is llama-cpp-python's, built from its source with
AVX-512 and without AMX:

  CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
              -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
  pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
"""
import argparse
import json
import statistics
import time

import llama_cpp


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    for name, default in {"prompt": 512, "gen": 64, "threads": 2, "trials": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-size", default="1,2,4,8,16")
    return parser.parse_args()


class Peer:
    def __init__(self, args, n_seq_max):
        model = llama_cpp.llama_model_load_from_file(args.gguf.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_batch, params.n_ubatch = n_seq_max, 512, 512
        params.n_ctx = n_seq_max * (args.prompt + args.gen + 64)
        params.n_threads = params.n_threads_batch = args.threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)

    def run(self, tokens):
        """Compute (position, sequence) of each token, with logits for the last one of each sequence."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        last = {sequence: i for i, (_, sequence) in enumerate(tokens)}
        for i, (position, sequence) in enumerate(tokens):
            batch.token[i] = (position * 7919 + sequence * 104729) % 30000
            batch.pos[i], batch.n_seq_id[i] = position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = last[sequence] == i
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)
        llama_cpp.llama_batch_free(batch)

    def read(self, n, sequence):
        for first in range(0, n, 512):
            self.run([(i, sequence) for i in range(first, min(first + 512, n))])

    def clear(self):
        llama_cpp.llama_memory_clear(self.memory, True)


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main():
    args = parse()
    sizes = [int(size) for size in args.batch_size.split(",")]

    @llama_cpp.llama_log_callback
    def quiet(*_):
        pass

    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    peer = Peer(args, max(sizes))
    peer.run([(i, 0) for i in range(16)])
    prefill, batch = [], []
    for _ in range(args.trials):
        peer.clear()
        prefill.append(args.prompt / timed(lambda: peer.read(args.prompt, 0)))
    for size in sizes:
        rates = []
        for _ in range(args.trials):
            peer.clear()
            for sequence in range(size):
                peer.read(args.prompt, sequence)
            steps = range(args.prompt, args.prompt + args.gen)
            time_of = timed(lambda: [peer.run([(i, sequence) for sequence in range(size)]) for i in steps])
            rates.append(size * args.gen / time_of)
        batch.append({"batch_size": size, "decode_tps": round(statistics.median(rates), 2)})
    print(json.dumps({"peer": "llama.cpp", "prefill_tps": round(statistics.median(prefill), 2), "batch": batch}))


main()
