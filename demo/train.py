"""Trains the demo model from nothing: corpus, tokenizer, a small Llama, and a last phase that learns to be 4-bit.

Every training sequence is <|bos|> and then a run of whole documents, the last of which may be cut. In half of the
sequences a token sees <|bos|> and its own document only: what a head does with attention that it has no use for, it then
learns to do with <|bos|>, the one token that is always there. Such an attention sink is what large models have, and what
streaming keeps (../docs/streaming.md). The master weights
live in one flat float32 buffer, the model computes with a bfloat16 copy of it; in the last phase that copy is rounded
as the 4-bit file will be, and the gradient found there is applied to the masters (a straight-through estimator).

    python train.py --work build --steps 12000
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.attention import flex_attention

import generate
import model as llama
import tokenizer

CHUNK = 1000
_bpe = None


# --- Corpus ---------------------------------------------------------------------------------------------------------

def start_worker(path):
    global _bpe
    _bpe = Tokenizer.from_file(path)


def encode_chunk(job):
    """One chunk of documents as token ids, document lengths and document hashes."""
    texts = [generate.render(doc) for doc in generate.documents(*job, CHUNK)]
    ids = [e.ids for e in _bpe.encode_batch(texts, add_special_tokens=False)]
    hashes = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in texts]
    return np.concatenate([np.array(i, np.int16) for i in ids]), np.array([len(i) for i in ids]), np.array(hashes, np.uint64)


def corpus(args, path):
    """All training tokens and the starts of the documents; writes the held-out tokens and the counts for baselines."""
    jobs = [(args.seed, i) for i in range(args.documents // CHUNK)]
    with multiprocessing.Pool(args.jobs, start_worker, (str(path),)) as pool:
        ids, lengths, hashes = zip(*pool.imap(encode_chunk, jobs))
        held = pool.map(encode_chunk, [(args.seed + 1, i) for i in range(max(1, args.heldout // CHUNK))])
    ids, lengths, hashes = map(np.concatenate, (ids, lengths, hashes))
    held_ids, held_lengths, held_hashes = map(np.concatenate, zip(*held))
    fresh = ~np.isin(held_hashes, hashes)
    kept = held_ids[np.repeat(fresh, held_lengths)]
    size = llama.CONFIG["vocab_size"]
    sample = ids[:20_000_000].astype(np.int64)
    pairs, counts = np.unique(sample[:-1] * size + sample[1:], return_counts=True)
    np.savez_compressed(args.work / "corpus.npz", heldout=kept, heldout_lengths=held_lengths[fresh],
                        unigram=np.bincount(sample, minlength=size), pairs=pairs.astype(np.int32),
                        pair_counts=counts.astype(np.int32),
                        documents=[len(lengths), len(np.unique(hashes))], tokens=len(ids),
                        heldout_documents=[len(fresh), fresh.sum()])
    print(f"corpus: {len(ids) / 1e6:.1f} M tokens, {len(lengths)} documents ({len(np.unique(hashes))} different); "
          f"held out {len(fresh)}, of which new {fresh.sum()}", flush=True)
    return ids, np.cumsum(lengths) - lengths


# --- Training -------------------------------------------------------------------------------------------------------

class Weights:
    """The flat float32 masters and the model's bfloat16 views; matrices first, the norms after them."""

    def __init__(self, net):
        params = sorted(net.parameters(), key=lambda p: -p.dim())
        matrix = sum(p.numel() for p in params if p.dim() == 2)
        self.flat = torch.cat([p.detach().float().flatten() for p in params])
        self.compute = self.flat.bfloat16()
        self.grads = torch.zeros_like(self.compute)
        at = 0
        for p in params:
            p.data = self.compute[at:at + p.numel()].view(p.shape)
            p.grad = self.grads[at:at + p.numel()].view(p.shape)
            at += p.numel()
        self.matrices, self.norms = (torch.nn.Parameter(part) for part in (self.flat[:matrix], self.flat[matrix:]))
        self.split = matrix

    @torch.no_grad()
    def refresh(self, four_bit):
        """The model's copy of the masters, rounded to what 4 bits can hold if asked."""
        if four_bit:
            self.compute[:self.split].copy_(llama.rounded(self.matrices.view(-1, llama.GROUP)).flatten())
        else:
            self.compute[:self.split].copy_(self.matrices)
        self.compute[self.split:].copy_(self.norms)

    @torch.no_grad()
    def take_grads(self, limit=1.0):
        grads = self.grads.float()
        norm = grads.norm()
        grads *= (limit / (norm + 1e-6)).clamp(max=1.0)
        self.matrices.grad, self.norms.grad = grads[:self.split], grads[self.split:]
        self.grads.zero_()
        return norm


def save(args, net, weights, config):
    weights.refresh(four_bit=False)
    save_file({k: v.detach().clone().contiguous() for k, v in net.state_dict().items()},
              args.work / "model.safetensors", metadata={"format": "pt"})
    (args.work / "config.json").write_text(json.dumps(config, indent=2))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = args.add_argument
    add("--work", type=Path, default=Path("build"), help="where everything is written")
    add("--seed", type=int, default=1)
    add("--documents", type=int, default=1_500_000)
    add("--heldout", type=int, default=3000)
    add("--jobs", type=int, default=os.cpu_count())
    add("--steps", type=int, default=12000)
    add("--batch", type=int, default=128, help="sequences in a step")
    add("--rate", type=float, default=3e-3, help="the highest learning rate")
    add("--alone", type=float, default=0.5, help="the part of the sequences whose documents do not see each other")
    add("--decay", type=float, default=0.1)
    add("--four-bit-from", type=float, default=0.7, help="the part of the training after which weights are rounded")
    add("--max-seconds", type=float, default=520, help="the schedule follows the steps or this clock, whichever is ahead; "
        "inf makes it follow the steps alone")
    add("--layers", type=int, default=llama.CONFIG["num_hidden_layers"])
    args = args.parse_args()
    began = time.time()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = dict(llama.CONFIG, num_hidden_layers=args.layers)
    length = config["max_position_embeddings"]

    path = args.work / "tokenizer.json"
    if not path.exists():
        tokenizer.save(tokenizer.train(args.seed, config["vocab_size"], min(30_000, args.documents)), args.work, length)
    print(f"{time.time() - began:.0f} s: tokenizer", flush=True)
    ids, starts = corpus(args, path)
    print(f"{time.time() - began:.0f} s: corpus", flush=True)
    starts = torch.from_numpy(starts[starts < len(ids) - length])
    ids, starts = torch.from_numpy(ids).to(device), starts.to(device)

    net = llama.Llama(config).to(device)
    net.rope = net.rope.to(device)
    weights = Weights(net)
    print(f"{weights.flat.numel()} parameters", flush=True)
    optimizer = torch.optim.AdamW([dict(params=[weights.matrices], weight_decay=args.decay),
                                   dict(params=[weights.norms], weight_decay=0.0)],
                                  lr=args.rate, betas=(0.9, 0.95), fused=device == "cuda")

    def mask_of(batch, alone):
        """Which tokens see which: all before them, or, where the sequence is `alone`, <|bos|> and their own document."""
        ends = (batch[:, :-1] == tokenizer.END).int()
        document = ends.cumsum(1) - ends
        def sees(b, _, q, k):
            return (q >= k) & ((document[b, q] == document[b, k]) | (k == 0) | ~alone[b])
        if device == "cuda":
            return create_block_mask(sees, len(batch), None, length, length, device=device)
        at = torch.arange(length)
        return sees(torch.arange(len(batch))[:, None, None], None, at[:, None], at)[:, None]

    def loss_of(batch, mask):
        logits = net(batch[:, :-1], mask=mask).float().flatten(0, 1)
        spread = torch.logsumexp(logits, -1)
        right = logits.gather(1, batch[:, 1:].reshape(-1, 1)).squeeze(1)
        return (spread - right).mean(), 1e-4 * spread.square().mean()

    create_block_mask = flex_attention.create_block_mask
    if device == "cuda":
        loss_of, create_block_mask = torch.compile(loss_of), torch.compile(create_block_mask)
    chance = torch.Generator(device).manual_seed(args.seed)
    span = torch.arange(length, device=device)
    bos = torch.full((args.batch, 1), tokenizer.BOS, device=device)
    training, shown, saved = time.time(), time.time(), time.time()
    step, progress, losses = 0, 0.0, []
    while progress < 1:
        progress = min(1.0, max((step + 1) / args.steps, (time.time() - began) / args.max_seconds))
        four_bit = progress >= args.four_bit_from
        warm = min(1.0, (step + 1) / min(300, args.steps / 10))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        weights.refresh(four_bit)
        begin = starts[torch.randint(len(starts), (args.batch,), generator=chance, device=device)]
        batch = torch.cat((bos, ids[begin[:, None] + span].long()), 1)
        alone = torch.rand(args.batch, generator=chance, device=device) < args.alone
        loss, extra = loss_of(batch, mask_of(batch, alone))
        (loss + extra).backward()
        norm = weights.take_grads()
        optimizer.step()
        losses.append(loss.detach())
        step += 1
        if step % 100 == 0 or progress >= 1 or step in (1, 10, 30):
            mean = torch.stack(losses).mean().item()
            rate = len(losses) * args.batch * length / (time.time() - shown)
            print(f"{time.time() - began:.0f} s: step {step} loss {mean:.4f} norm {norm:.2f} progress {progress:.3f} "
                  f"{'4-bit ' if four_bit else ''}{rate / 1e6:.2f} M tokens/s", flush=True)
            losses, shown = [], time.time()
        if time.time() - saved > 60:
            save(args, net, weights, config)
            saved = time.time()
    save(args, net, weights, config)
    facts = dict(steps=step, batch=args.batch, length=length, tokens_seen=step * args.batch * length, seed=args.seed,
                 training_seconds=round(time.time() - training), seconds=round(time.time() - began),
                 parameters=weights.flat.numel(), device=torch.cuda.get_device_name() if device == "cuda" else "CPU")
    (args.work / "training.json").write_text(json.dumps(facts, indent=2))
    print(facts)


if __name__ == "__main__":
    main()
