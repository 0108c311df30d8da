"""The table and the plot of docs/streaming.md, from perplexity.jsonl: python3 plot.py > table.md (and writes loss.svg)."""

import json
import math
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
ROWS = [  # name in perplexity.jsonl, what it is
    ("dense", "dense, nothing evicted"),
    ("sinks0", "window, no sinks"),
    ("recompute", "window re-computed for each token"),
    ("sinks1", "1 sink"),
    ("sinks2", "2 sinks"),
    ("sinks4", "4 sinks"),
    ("sinks8", "8 sinks"),
    ("evict1", "4 sinks, evictions of 1 %"),
    ("evict50", "4 sinks, evictions of 50 %"),
    ("c64sinks0", "context 64, no sinks"),
    ("c64sinks4", "context 64, 4 sinks"),
    ("c1024sinks0", "context 1024, no sinks"),
    ("c1024sinks4", "context 1024, 4 sinks"),
]
CURVES = [("dense", "#c0392b"), ("sinks0", "#e67e22"), ("recompute", "#8e44ad"), ("sinks1", "#27ae60"), ("sinks4", "#2471a3")]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 840, 420, 70, 20, 280, 50


def load():
    done, buckets = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for line in (HERE / "perplexity.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["event"] == "done":
            done[row["name"]].append(row)
        elif row["tokens"] == 1024:
            buckets[row["name"]][row["first"]].append(row["loss"])
    return done, buckets


def table(done):
    print("| Past | Loss, three texts | Mean | Perplexity |\n| --- | --- | ---: | ---: |")
    for name, what in ROWS:
        losses = [row["loss"] for row in sorted(done[name], key=lambda row: row["seed"])]
        mean = sum(losses) / len(losses)
        print(f"| {what} | {', '.join(f'{loss:.4f}' for loss in losses)} | {mean:.4f} | {math.exp(mean):.3f} |")


def plot(buckets):
    last = max(first for curve in buckets.values() for first in curve)
    x = lambda first: LEFT + (first + 512) / (last + 1024) * (WIDTH - LEFT - RIGHT)
    y = lambda loss: TOP + (1 - (math.log10(loss) + 1) / 2) * (HEIGHT - TOP - BOTTOM)  # 0.1 to 10
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for loss in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        out.append(f'<path d="M{LEFT} {y(loss):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>')
    for position in range(0, last + 1024, 5000):
        out.append(f'<text x="{x(position - 512):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{position}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">position in the text, tokens</text>'
               f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">loss, nats per token</text>')
    for i, (name, colour) in enumerate(CURVES):
        points = " ".join(f"{x(first):.1f},{y(sum(losses) / len(losses)):.1f}" for first, losses in sorted(buckets[name].items()))
        row = TOP + 20 + 22 * i
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                   f'<path d="M{WIDTH - RIGHT + 12} {row}h22" stroke="{colour}" stroke-width="3"/>'
                   f'<text x="{WIDTH - RIGHT + 40}" y="{row + 4}">{dict(ROWS)[name]}</text>')
    (HERE / "loss.svg").write_text("\n".join(out + ["</svg>\n"]))


if __name__ == "__main__":
    finished, curves = load()
    table(finished)
    plot(curves)
