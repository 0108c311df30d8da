"""The table and the plot of docs/convert.md, from perplexity.jsonl: python3 plot.py > table.md (and writes perplexity.svg)."""

import json
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 320, 70, 20, 30, 50
ROWS = [json.loads(line) for line in (HERE / "perplexity.jsonl").read_text().splitlines()]


def table():
    print("| Weights | Bits on average | Loss, nats per token | Perplexity | Against bfloat16 |\n| --- | ---: | ---: | ---: | ---: |")
    best = ROWS[0]["perplexity"]
    for row in ROWS:
        name = "bfloat16" if row["bits"] == 16 else f"{row['bits']} bits"
        share = f"{(row['perplexity'] / best - 1) * 100:+.1f} %" if row["bits"] != 16 else ""
        print(f"| {name} | {row['bits_per_weight']:.3f} | {row['loss']:.4f} | {row['perplexity']:.2f} | {share} |")


def plot():
    rows = sorted((row for row in ROWS if row["bits"] != 16), key=lambda row: row["bits"])
    top = 90
    x = lambda bits: LEFT + (bits - 1.5) / 7 * (WIDTH - LEFT - RIGHT)
    y = lambda value: TOP + (1 - (value - 30) / (top - 30)) * (HEIGHT - TOP - BOTTOM)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for value in range(30, top + 1, 10):
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    full = y(ROWS[0]["perplexity"])
    out.append(f'<path d="M{LEFT} {full:.1f}H{WIDTH - RIGHT}" stroke="#c0392b" stroke-dasharray="5 4"/>'
               f'<text x="{WIDTH - RIGHT}" y="{full + 16:.1f}" text-anchor="end" fill="#c0392b">bfloat16</text>')
    points = [(x(row["bits"]), y(row["perplexity"])) for row in rows]
    out.append('<path fill="none" stroke="#2471a3" stroke-width="2" d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) + '"/>')
    for row, (a, b) in zip(rows, points):
        out.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="#2471a3"/>'
                   f'<text x="{a:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{row["bits"]}</text>'
                   f'<text x="{a + 6:.1f}" y="{b - 8:.1f}" fill="#2471a3">{row["perplexity"]:.2f}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">bits of a weight, groups of 64</text>'
               f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">perplexity</text></svg>')
    (HERE / "perplexity.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    table()
    plot()
