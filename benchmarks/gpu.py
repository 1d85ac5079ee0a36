"""On one GPU: GPT-2 124M and 350M at context 1024 in bf16 against transformers' Trainer, and the titles benchmark.

    python benchmarks/gpu.py                               both sizes (about ten minutes, most of it compiling)
    python benchmarks/gpu.py --titles hn_titles.txt        also the titles benchmark at full size, three seeds an arm

Tokens/s of our step with the settings that auto picks for an hour's run, of transformers' GPT2LMHeadModel by its Trainer
with torch_compile and SDPA, and of the matrix products alone; in turn, each in a process of its own on the same GPU.
The share of the machine is 6 N + attention operations a token over the matrix-product rate measured in the same run.
Without a CUDA device it says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bench
import torch
import turns
from shapes import OURS, Shape
from throughput import ratios

SIZES = {
    "124M": Shape("124M/1024", n_layer=12, n_head=12, d_model=768, vocab_size=50257, context=1024, batch=32),
    "350M": Shape("350M/1024", n_layer=24, n_head=16, d_model=1024, vocab_size=50257, context=1024, batch=16),
}
MINUTES = 60.0
TITLES = ["studies/a8", "titles-best"]
TITLES_DATA = ["data.split=shuffle", "data.limit=100000", "checkpoint.every=end", "sample.tokens=0"]
"""100,000 titles drawn by the split's own shuffle, as the benchmark has it"""


def starts(shape: Shape, tokens: Path) -> dict[str, dict[str, Any]]:
    """The sides of one size."""
    common = {"device": "cuda", "minutes": MINUTES, "shape": shape.as_dict(), "tokens": str(tokens)}
    theirs = {"precision": "bf16", "arguments": {"torch_compile": True}, "config": {"attn_implementation": "sdpa"}}
    return {
        "ours-gelu": {"module": "sides.ours", "asked": {**common, "overrides": [*shape.recipe(), *OURS["gelu"]]}},
        "ours-default": {"module": "sides.ours", "asked": {**common, "overrides": [*shape.recipe(), *OURS["default"]]}},
        "trainer-bf16-compiled": {"module": "sides.trainer", "asked": {**common, **theirs}},
        "floor-bf16": {"module": "sides.floor", "asked": {**common, "precision": "bf16"}},
    }


def measure(shape: Shape, *, rounds: int, seconds: float) -> dict[str, Any]:
    """One size: tokens/s, the share of the matrix-product rate, memory on the device."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = bench.token_file(shape, Path(folder))
        with turns.sides(starts(shape, tokens)) as there:
            taken = turns.take_turns(there, rounds=rounds, seconds=seconds)
            facts = {name: side.facts for name, side in there.items()}
            peaks = {name: side.ask("device_peak_bytes") for name, side in there.items() if "floor" not in name}
    ours = facts["ours-gelu"]
    rates = {name: bench.spread([shape.tokens / once for once in times]) for name, times in taken.items()}
    shares = {
        name: rate["median"] * facts[name]["flops_per_token"] / ours["matmul_flops"]
        for name, rate in rates.items()
        if name.startswith("ours")
    }
    return {
        "gpu": torch.cuda.get_device_name(),
        "shape": shape.as_dict(),
        "tokens_per_second": rates,
        "matmul_flops": ours["matmul_flops"],
        "share_of_matmul_rate": shares,
        "ratios": ratios(taken),
        "device_peak_bytes": peaks,
        "settings": {name: row["settings"] for name, row in facts.items() if "settings" in row},
    }


def titles(path: Path, *, seeds: list[int]) -> list[dict[str, Any]]:
    """The titles benchmark at full size: each arm with every seed, its yardsticks and seconds."""
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        for arm in TITLES:
            found = []
            for seed in seeds:
                given = [arm, *TITLES_DATA, f"seed={seed}", f"data.path={path.absolute()}"]
                name = f"{arm.replace('/', '-')}-{seed}"
                _, result = bench.farthing("train", *given, "--device", "cuda", "--runs", runs, "--name", name)
                found.append(result)
            bits = [result["validation"]["bits_per_byte"] for result in found]
            rows.append(
                {
                    "arm": arm,
                    "seeds": seeds,
                    "bits_per_byte": bits,
                    "nats_per_character": [result["validation"]["nats_per_character"] for result in found],
                    "legacy_titles": [result["validation"].get("legacy_titles") for result in found],
                    "legacy_coverage": found[0]["validation"].get("legacy_coverage"),
                    "parameters": found[0]["parameters"],
                    "seconds": [result["spent"]["seconds"] for result in found],
                    "wall_seconds": [result["wall_seconds"] for result in found],
                }
            )
            print(f"{arm:<16} bits per byte {statistics.mean(bits):.4f}  {rows[-1]['seconds']}", flush=True)
    return rows


def main() -> None:
    """Measure what was asked for, if there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="empty: none")
    parser.add_argument("--titles", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured, and the GPU rows of benchmarks/README.md stay open")
        return
    for size in filter(None, chosen.sizes.split(",")):
        result = measure(SIZES[size], rounds=chosen.rounds, seconds=chosen.seconds)
        for name, rate in result["tokens_per_second"].items():
            share = result["share_of_matmul_rate"].get(name)
            told = "" if share is None else f"  {share:.0%} of {result['matmul_flops'] / 1e12:,.0f} TFLOP/s"
            print(f"{size} {name:<24}{rate['median']:>12,.0f} tokens/s{told}")
        for name, value in result["ratios"].items():
            print(f"  {name}: {bench.told(value)}")
        bench.merge("gpu", size, result)
    if chosen.titles is not None:
        rows = titles(chosen.titles, seeds=[int(seed) for seed in chosen.seeds.split(",")])
        bench.merge("gpu", "titles", {"gpu": torch.cuda.get_device_name(), "rows": rows})


if __name__ == "__main__":
    main()
