"""The titles benchmark, small: SGD, AdamW, adaptive SAM and titles-best on the same titles, model size and epochs.

    python benchmarks/titles.py TITLES.txt [--seeds 1,2,3] [--limit 20000] [--arms sgd,adamw,best]

All arms share data, split, tokenizer size, width, depth and seven epochs; what differs is what each recipe is about.
"adamw, twice the epochs" has the operations that R-Drop's second pass costs titles-best.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import bench

SMALL = [
    "data.split=shuffle",
    "tokenizer.vocab_size=4000",
    "model.n_layer=4",
    "model.n_head=4",
    "model.d_model=192",
    "model.context_length=128",
    "train.batch_size=16",
    "train.precision=auto",
    "evaluate.every=end",
    "checkpoint.every=end",
    "sample.tokens=0",
]
ARMS = {
    "sgd (titles-baseline)": ["titles-baseline", "train.batch_size=16"],
    "adamw (studies/a1)": ["studies/a1"],
    "adamw, twice the epochs": ["studies/a1", "budget.epochs=14"],
    "adaptive SAM (studies/c-smaller)": ["studies/c-smaller"],
    "titles-best": ["titles-best"],
}


def main() -> None:
    """Train every arm with every seed; print and keep the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--arms", default="", help="only the arms whose names hold one of these words, comma-separated")
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    rows = []
    print(f"{'arm':<34}{'bits/byte':>12}{'sd':>9}{'nats/char':>11}{'legacy':>9}{'minutes':>9}{'PFLOP':>8}")
    with tempfile.TemporaryDirectory() as runs:
        words = [word for word in chosen.arms.split(",") if word]
        for arm, (recipe, *more) in ARMS.items():
            if words and not any(word in arm for word in words):
                continue
            found = []
            for seed in seeds:
                asked = [*SMALL, *more, f"seed={seed}", f"data.path={chosen.titles.absolute()}",
                         f"data.limit={chosen.limit}"]  # fmt: skip
                if chosen.threads:
                    asked.append(f"train.threads={chosen.threads}")
                name = f"{list(ARMS).index(arm)}-{seed}"
                _, result = bench.farthing("train", recipe, *asked, "--runs", runs, "--name", name)
                found.append(result)
            bits = [result["validation"]["bits_per_byte"] for result in found]
            row = {
                "arm": arm,
                "recipe": recipe,
                "overrides": [*SMALL, *more],
                "seeds": seeds,
                "bits_per_byte": bits,
                "nats_per_character": [result["validation"]["nats_per_character"] for result in found],
                "legacy_titles": [result["validation"]["legacy_titles"] for result in found],
                "legacy_coverage": found[0]["validation"]["legacy_coverage"],
                "parameters": found[0]["parameters"],
                "seconds": [result["spent"]["seconds"] for result in found],
                "flops": found[0]["spent"]["flops"],
                "tokens": found[0]["spent"]["tokens"],
            }
            rows.append(row)
            spread = statistics.stdev(bits) if len(bits) > 1 else float("nan")
            print(
                f"{arm:<34}{statistics.mean(bits):>12.4f}{spread:>9.4f}"
                f"{statistics.mean(row['nats_per_character']):>11.4f}{statistics.mean(row['legacy_titles']):>9.4f}"
                f"{statistics.mean(row['seconds']) / 60:>9.1f}{row['flops'] / 1e15:>8.3f}",
                flush=True,
            )
    bench.write("titles", {"titles": chosen.titles.name, "limit": chosen.limit, "rows": rows})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
