"""What is to be reached, what was measured, and whether it is met: one table from benchmarks/results.

python benchmarks/targets.py            print it
python benchmarks/targets.py --write    and put it into benchmarks/README.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import bench
from shapes import HEADLINE, LARGE_VOCABULARY

README = bench.HERE / "README.md"
BEGIN, END = "<!-- targets.py writes from here -->", "<!-- to here -->"


class Missing(Exception):
    """There is no result to read."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: what is measured.
        target: what is to be reached, in words.
        read: looks it up: (in words, whether it is met).
    """

    what: str
    target: str
    read: Callable[[], tuple[str, bool]]


def results(name: str, *path: str) -> Any:
    """A value of a results file.

    Raises:
        Missing: it has not been measured.
    """
    found: Any = bench.read(name)
    for part in path:
        if part not in found:
            raise Missing
        found = found[part]
    if not found:
        raise Missing
    return found


def speed(rivals: list[str], least: float) -> Callable[[], tuple[str, bool]]:
    """The headline's ratio against the best of some rivals."""

    def read() -> tuple[str, bool]:
        ratios = results("throughput", "parts", HEADLINE, "ratios")
        there = [ratios[f"ours-gelu against {rival}"] for rival in rivals if f"ours-gelu against {rival}" in ratios]
        if not there:
            raise Missing
        worst = min(there, key=lambda ratio: ratio["median"])
        return bench.told(worst), worst["median"] >= least

    return read


def floor() -> tuple[str, bool]:
    """Share of the matrix-product floor."""
    found = results("throughput", "parts", HEADLINE, "ratios", "ours-gelu reaches of floor-bf16")
    return f"{found['median']:.0%} ({found['least']:.0%} to {found['most']:.0%})", found["median"] >= 0.45


def memory(shape: str, most: float) -> Callable[[], tuple[str, bool]]:
    """Our process's peak over that of the Trainer's in fp32."""

    def read() -> tuple[str, bool]:
        sides = results("throughput", "parts", shape, "sides")
        if not {"ours-gelu", "trainer-fp32"} <= sides.keys():
            raise Missing
        mine, theirs = sides["ours-gelu"]["peak_bytes"], sides["trainer-fp32"]["peak_bytes"]
        told = f"{mine / theirs:.2f} ({mine / 2**20:,.0f} of {theirs / 2**20:,.0f} MiB)"
        return told, mine <= most * theirs

    return read


def parity() -> tuple[str, bool]:
    """Whether losses and gradients agree."""
    rows, agrees = results("parity", "rows"), bool(bench.read("parity")["agrees"])
    worst = max(row["gradients_off"]["worst"] for row in rows if row["precision"] == "fp32")
    return f"fp32 gradients differ by {worst:.0e} at most", agrees


def quality(text: str) -> Callable[[], tuple[str, bool]]:
    """How many times shorter the way to the best fp32 rival's final score is."""

    def read() -> tuple[str, bool]:
        rows = [row for row in results("quality", "parts", text, "time_to") if row["rival"].startswith("trainer fp32")]
        if not rows:
            raise Missing
        best = min(rows, key=lambda row: row["bits_per_byte"])
        if best["ratio"] is None:
            return f"{best['bits_per_byte']:.3f} not reached", False
        told = f"{best['ratio']:.1f} (to {best['bits_per_byte']:.3f}: {best['ours_seconds']:.0f} s of {best['seconds']:.0f} s)"
        return told, best["ratio"] >= 5

    return read


def ratio_of(part: str, names: list[str], least: float) -> Callable[[], tuple[str, bool]]:
    """The worst of some ratios of inference.py."""

    def read() -> tuple[str, bool]:
        ratios = results("inference", part, "ratios")
        there = [ratios[name] for name in names if name in ratios]
        if not there:
            raise Missing
        worst = min(there, key=lambda ratio: ratio["median"])
        return bench.told(worst), worst["median"] >= least

    return read


def sampling(precision: str) -> Callable[[], tuple[str, bool]]:
    """The worse of greedy and sampled texts, in one number format of ours against transformers' fp32."""
    names = [f"ours-{precision}{how} against transformers-{how}" for how in ("greedy", "sampled")]
    return ratio_of("sampling", names, 3.0)


def first_step() -> tuple[str, bool]:
    """Seconds from the command to the first step of the default recipe, the text read before."""
    seconds = results("start", "warm_first_step_seconds")
    cold = results("start", "cold", "first_step_seconds")
    return f"{seconds:.0f} s (with an empty cache {cold:.0f} s)", seconds < 20


def auto() -> tuple[str, bool]:
    """How many recipes auto makes slower."""
    parts = results("auto", "parts")
    slower = [name for name, row in parts.items() if row["slower"]]
    least = min(row["times_as_fast"]["median"] for row in parts.values())
    told = f"none slower of {len(parts)}, {least:.2f} times at least" if not slower else f"slower: {', '.join(slower)}"
    return told, not slower and len(parts) >= 12


def gpu(size: str, what: str, least: float) -> Callable[[], tuple[str, bool]]:
    """A number of gpu.py."""

    def read() -> tuple[str, bool]:
        part: Mapping[str, Any] = results("gpu", "parts", size)
        if what == "share":
            share = part["share_of_matmul_rate"]["ours-gelu"]
            return f"{share:.0%}", share >= least
        found = part["ratios"]["ours-gelu against trainer-bf16-compiled"]
        return bench.told(found), found["median"] >= least

    return read


LITGPT = ["litgpt-fp32", "litgpt-bf16-mixed", "litgpt-bf16-true"]
ROWS = [
    Row("tokens/s against the Trainer, fp32", "4.5 times", speed(["trainer-fp32"], 4.5)),
    Row("tokens/s against the Trainer, bf16", "2.5 times", speed(["trainer-bf16"], 2.5)),
    Row("tokens/s against litgpt at its fastest", "2 times", speed(LITGPT, 2.0)),
    Row("same arithmetic as GPT2LMHeadModel", "within tolerance", parity),
    Row("share of the bf16 matrix-product floor", "45 %", floor),
    Row("time to quality, pystdlib", "5 times shorter", quality("pystdlib")),
    Row("time to quality, titles", "5 times shorter", quality("titles")),
    Row("sampling in bf16 against generate", "3 times", sampling("bf16-")),
    Row("sampling in fp32 against generate", "3 times", sampling("")),
    Row(
        "evaluation in bf16 against Trainer.evaluate",
        "4 times",
        ratio_of("evaluation", ["ours-bf16 against trainer-fp32"], 4.0),
    ),
    Row(
        "evaluation in fp32 against Trainer.evaluate",
        "4 times",
        ratio_of("evaluation", ["ours-fp32 against trainer-fp32"], 4.0),
    ),
    Row("peak memory over the Trainer's", "1 at most", memory(HEADLINE, 1.0)),
    Row("peak memory at vocabulary 50,257", "0.5 at most", memory(LARGE_VOCABULARY, 0.5)),
    Row("start to first step, default recipe", "under 20 s", first_step),
    Row("auto against plain fp32 eager, 12 recipes", "never slower", auto),
    Row("GPU, 124M: share of the matrix-product rate", "50 %", gpu("124M", "share", 0.5)),
    Row("GPU, 124M: against the Trainer, compiled", "1.2 times", gpu("124M", "ratio", 1.2)),
    Row("GPU, 350M: share of the matrix-product rate", "50 %", gpu("350M", "share", 0.5)),
    Row("GPU, 350M: against the Trainer, compiled", "1.2 times", gpu("350M", "ratio", 1.2)),
]


def table() -> list[str]:
    """The table's lines, in Markdown."""
    lines = [
        f"| {HEADLINE.replace('/', ', context ')} unless it says otherwise | to reach | measured | met |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        try:
            measured, met = row.read()
            lines.append(f"| {row.what} | {row.target} | {measured} | {'yes' if met else 'no'} |")
        except Missing:
            lines.append(f"| {row.what} | {row.target} | not measured | open |")
    return lines


def main() -> None:
    """Print the table; keep it where people look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    lines = table()
    print("\n".join(lines))
    if parser.parse_args().write:
        bench.put_between(README, BEGIN, END, lines)


if __name__ == "__main__":
    main()
