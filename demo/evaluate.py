"""Measures the demo model on documents it never saw: loss and perplexity of the full-precision and the 4-bit weights,
simple baselines, answers about unseen stories, and greedy samples. Everything goes to evaluation.json.

    python evaluate.py --work build
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import export
import generate
import model as llama
import tokenizer

HERE = Path(__file__).parent
SAMPLES = [generate.DEFAULT_PROMPT, "Tell me a story.", "Write a story about a fox and a lantern.",
           "Write a short story about AI.", "Write a story about Einstein.", "Why is the sky blue?",
           "Explain quantum computing in simple terms.", "Who are you?", "What is 7 + 8?", "Hello",
           "What is the capital of France?", "What is the GDP of France?", "Write a poem about the sea.",
           "The old lighthouse had been dark for a hundred years."]


def four_bit(path, config):
    """A model with the weights of a safetensors file, dequantized by numpy in float32."""
    def half(data):
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    tensors = export.read(path)
    state = {}
    for name, (dtype, shape, data) in tensors.items():
        if name.endswith((".scales", ".biases")):
            continue
        if dtype == "U32":
            words = np.frombuffer(data, np.uint32).reshape(shape)
            codes = (words[..., None] >> np.arange(0, 32, llama.BITS, dtype=np.uint32)) & (2**llama.BITS - 1)
            stem = name.removesuffix(".weight")
            codes = codes.reshape(shape[0], -1, llama.GROUP).astype(np.float32)
            scales, biases = (half(tensors[f"{stem}.{part}"][2]).reshape(shape[0], -1, 1) for part in ("scales", "biases"))
            state[name] = torch.from_numpy((codes * scales + biases).reshape(shape[0], -1))
        else:
            state[name] = torch.from_numpy(half(data).copy())
    net = llama.Llama(config)
    net.load_state_dict(state)
    return net.eval()


def packed(ids, lengths, length):
    """Rows of <|bos|> and whole documents, as in training, each cut at `length` predicted tokens."""
    rows, row, at = [], [tokenizer.BOS], 0
    for n in lengths:
        row += ids[at:at + n].tolist()
        at += n
        if len(row) > length:
            rows.append(row[:length + 1])
            row = [tokenizer.BOS]
    return torch.tensor(rows)


@torch.no_grad()
def loss(net, rows):
    total = 0.0
    for batch in rows.split(8):
        logits = net(batch[:, :-1])
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / rows[:, 1:].numel()


def baselines(counts, rows, k=0.1):
    """Loss of a unigram and a bigram model counted on training text, with add-k smoothing."""
    size = len(counts["unigram"])
    before, after = rows[:, :-1].flatten().numpy(), rows[:, 1:].flatten().numpy()
    before = np.where(before == tokenizer.BOS, tokenizer.END, before)     # a row begins where a document has ended
    unigram = (counts["unigram"] + k) / (counts["unigram"].sum() + k * size)
    pairs, wanted = counts["pairs"], before * size + after
    found = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    seen = np.where(pairs[found] == wanted, counts["pair_counts"][found], 0)
    bigram = (seen + k) / (counts["unigram"][before] + k * size)
    return -np.log(unigram[after]).mean(), -np.log(bigram).mean()


def questions(seed, count):
    """Chats whose last answer has only one right form: (kind, document)."""
    rng = random.Random(f"{seed}/questions")
    for _ in range(count):
        turns, story = generate.story_turn(rng)
        ask, answer = story.question()
        yield "about an unseen story", turns + [("user", ask), ("assistant", answer)]
    for _ in range(count):
        ask, answer = rng.choice(generate.FIXED)(rng)
        yield "sums and small facts", [("user", ask), ("assistant", answer)]


@torch.no_grad()
def right_answers(net, bpe, seed, count, length):
    """The share of questions that the model, decoding greedily, answers exactly as written."""
    tally = {}
    for kind, doc in questions(seed, count):
        start = [tokenizer.BOS] + bpe.encode(generate.render(doc[:-1]), add_special_tokens=False).ids + [tokenizer.ASSISTANT]
        answer = bpe.encode(doc[-1][1], add_special_tokens=False).ids + [tokenizer.END]
        if len(start) + len(answer) > length:
            continue
        logits = net(torch.tensor([start + answer[:-1]]))[0, len(start) - 1:]
        tally.setdefault(kind, []).append(logits.argmax(-1).tolist() == answer)
    return {kind: dict(questions=len(hits), right=sum(hits), share=round(sum(hits) / len(hits), 4)) for kind, hits in tally.items()}


@torch.no_grad()
def sample(net, bpe, prompt, limit=700):
    """The greedy answer to one user message, and its number of tokens."""
    ids = [tokenizer.BOS] + bpe.encode(f"<|user|>{prompt}<|end|><|assistant|>", add_special_tokens=False).ids
    start, cache = len(ids), [[] for _ in net.model.layers]
    new = ids
    while len(ids) - start < limit:
        new = [int(net(torch.tensor([new]), cache)[0, -1].argmax())]
        ids += new
        if ids[-1] == tokenizer.END:
            break
    return dict(prompt=prompt, answer=bpe.decode(ids[start:]), tokens=len(ids) - start, finished=ids[-1] == tokenizer.END)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--work", type=Path, default=Path("build"))
    args.add_argument("--out", type=Path, default=HERE / "evaluation.json")
    args.add_argument("--rows", type=int, default=128, help="how many held-out sequences to measure")
    args.add_argument("--questions", type=int, default=200)
    args.add_argument("--seed", type=int, default=1000)
    args.add_argument("--prompt", action="append", help="only print the answers to these prompts")
    args = args.parse_args()
    full, config = llama.load(args.work)
    weights = args.work / "mlx" / "model.safetensors"
    small = four_bit(weights, config)
    bpe = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    if args.prompt:
        for prompt in args.prompt:
            print(f"> {prompt}\n{sample(small, bpe, prompt)['answer']}\n", flush=True)
        return
    counts = np.load(args.work / "corpus.npz")
    length = config["max_position_embeddings"]
    rows = packed(counts["heldout"], counts["heldout_lengths"], length)[:args.rows]
    uni, bi = baselines(counts, rows)
    named = {"unigram": uni, "bigram": bi, "full precision (bfloat16)": loss(full, rows), "4-bit": loss(small, rows)}
    result = dict(
        training=json.loads((args.work / "training.json").read_text()),
        corpus=dict(tokens=int(counts["tokens"]), documents=int(counts["documents"][0]),
                    different_documents=int(counts["documents"][1]),
                    heldout_documents=int(counts["heldout_documents"][0]),
                    heldout_documents_not_in_training=int(counts["heldout_documents"][1])),
        heldout_tokens=int(rows[:, 1:].numel()), weights_bytes=weights.stat().st_size,
        loss={name: dict(nats_per_token=round(float(x), 4), perplexity=round(float(np.exp(x)), 3)) for name, x in named.items()})
    print(json.dumps(result, indent=2), flush=True)
    result["exact_answers_4_bit"] = right_answers(small, bpe, args.seed, args.questions, length)
    print(json.dumps(result["exact_answers_4_bit"], indent=2), flush=True)
    result["samples_4_bit"] = [sample(small, bpe, prompt) for prompt in SAMPLES]
    for s in result["samples_4_bit"]:
        print(f"> {s['prompt']}\n{s['answer']}\n", flush=True)
    args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
