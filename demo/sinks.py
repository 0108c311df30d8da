"""Where the demo model's attention goes: the share that queries give to the first token of a text, to the other
<|end|> tokens, and to themselves, by layer. One JSON object on stdout.

    python sinks.py --work build --text stream.txt

The weights are those of build/mlx, in float32. Queries are the last half of the model's context.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import evaluate
import model as llama
import tokenizer

shares = []


def attention(q, k, v, is_causal):
    """As torch's, noting the weights."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
    shares.append(weights)
    return weights @ v


@torch.no_grad()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--work", type=Path, default=Path("build"))
    args.add_argument("--text", type=Path, required=True)
    args = args.parse_args()
    config = json.loads((args.work / "config.json").read_text())
    net = evaluate.four_bit(args.work / "mlx" / "model.safetensors", config)
    bpe = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    length = config["max_position_embeddings"]
    ids = [tokenizer.BOS] + bpe.encode(args.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    ids = torch.tensor(ids[:length])
    F.scaled_dot_product_attention = attention
    net(ids[None])
    ends = ids == tokenizer.END
    late = slice(length // 2, None)
    mean = lambda x: round(x.mean().item(), 4)
    layers = [dict(first=mean(w[..., late, 0]), ends=mean(w[..., late, ends].sum(-1)),
                   itself=mean(w.diagonal(dim1=-2, dim2=-1)[..., late]),
                   most_of_a_head_on_first=round(w[..., late, 0].mean((0, -1)).max().item(), 4)) for w in shares]
    total = torch.stack(shares)
    print(json.dumps(dict(tokens=len(ids), ends=int(ends.sum()), first=mean(total[..., late, 0]),
                          end_tokens=mean(total[..., late, ends].sum(-1)), by_layer=layers), indent=2))


if __name__ == "__main__":
    main()
