"""Evaluation and sampling speed: Farthing's scorer and generate against transformers' Trainer.evaluate and generate.

    python benchmarks/inference.py                 (about 5 minutes)
    python benchmarks/inference.py --quick         (about 2 minutes)

The 12 M shape with GPT-2's architecture and the same weights on all sides, each in a process of its own, in turn.
Evaluation: a pass over the same validation tokens; ours scores every token once and also keeps the separators' part
apart. (The Trainer's loss reads lower than the others by a T-th: it divides by the first token of each window too, which
it does not score.) Sampling: one text at a time, with the cache, to the end of the context, greedily and at temperature
1; the greedy texts in fp32 must be equal. Everything is fp32 unless it says bf16, which is what a run that trained in bf16
writes its samples in.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import bench
import turns
from shapes import HEADLINE, SHAPES

SHAPE = SHAPES[HEADLINE]

SCORING: dict[str, dict[str, Any]] = {
    "ours-fp32": {"arm": "ours", "evaluate": "fp32"},
    "ours-bf16": {"arm": "ours", "evaluate": "train"},
    "trainer-fp32": {"arm": "trainer"},
    "trainer-bf16": {"arm": "trainer", "bf16": True},
    "plain-fp32": {"arm": "plain"},
}
WRITING: dict[str, dict[str, Any]] = {
    "ours-greedy": {"arm": "ours", "temperature": 0.0},
    "ours-bf16-greedy": {"arm": "ours", "temperature": 0.0, "precision": "bf16"},
    "transformers-greedy": {"arm": "transformers", "temperature": 0.0},
    "ours-sampled": {"arm": "ours", "temperature": 1.0},
    "ours-bf16-sampled": {"arm": "ours", "temperature": 1.0, "precision": "bf16"},
    "transformers-sampled": {"arm": "transformers", "temperature": 1.0},
}


@dataclass(frozen=True)
class Measured:
    """What the sides of one comparison did.

    Args:
        rates: tokens per second by side, over the rounds.
        seconds: seconds of a unit of work by side, round by round.
        answers: what each side said to the question that shows that all did the same work.
    """

    rates: dict[str, dict[str, float]]
    seconds: dict[str, list[float]]
    answers: dict[str, Any]

    def ratio(self, ours: str, other: str) -> dict[str, float]:
        """How many times as fast one of ours is."""
        return bench.ratio(self.seconds[other], self.seconds[ours])


def measure(
    module: str, arms: dict[str, dict[str, Any]], *, question: str, rounds: int, seconds: float, **asked: Any
) -> Measured:
    """Let all arms take turns, and ask each the question at the end."""
    starts = {
        name: {"module": module, "asked": {**arm, **asked, "shape": SHAPE.as_dict()}} for name, arm in arms.items()
    }
    with turns.sides(starts) as there:
        taken = turns.take_turns(there, rounds=rounds, seconds=seconds)
        tokens = {name: side.facts["tokens"] for name, side in there.items()}
        answers = {name: side.ask(question) for name, side in there.items()}
    rates = {name: bench.spread([tokens[name] / once for once in times]) for name, times in taken.items()}
    return Measured(rates, taken, answers)


def show(title: str, rates: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    print(f"\n{title:<24}{'tokens/s':>10}{'least':>9}{'most':>9}")
    for name, rate in rates.items():
        print(f"{name:<24}{rate['median']:>10,.0f}{rate['least']:>9,.0f}{rate['most']:>9,.0f}")
    for name, value in ratios.items():
        print(f"  {name}: {bench.told(value)}")


def evaluation(*, rounds: int, seconds: float, tokens: int) -> dict[str, Any]:
    """The scorer against the Trainer and a plain loop."""
    found = measure("sides.scoring", SCORING, question="loss", rounds=rounds, seconds=seconds, tokens=tokens)
    mine = [name for name in found.rates if name.startswith("ours")]
    others = [name for name in found.rates if name not in mine]
    ratios = {f"{ours} against {other}": found.ratio(ours, other) for ours in mine for other in others}
    show("evaluation", found.rates, ratios)
    print("  nats per token: " + ", ".join(f"{name} {nats:.4f}" for name, nats in found.answers.items()))
    return {"tokens": tokens, "tokens_per_second": found.rates, "nats_per_token": found.answers, "ratios": ratios}


def sampling(*, rounds: int, seconds: float) -> dict[str, Any]:
    """generate against generate."""
    found = measure("sides.writing", WRITING, question="text", rounds=rounds, seconds=seconds)
    ratios = {
        f"{ours}{how} against transformers-{how}": found.ratio(f"{ours}{how}", f"transformers-{how}")
        for how in ("greedy", "sampled")
        for ours in ("ours-", "ours-bf16-")
        if f"transformers-{how}" in found.rates
    }
    equal = found.answers.get("ours-greedy") == found.answers.get("transformers-greedy")
    show("sampling", found.rates, ratios)
    print(f"  greedy texts in fp32 are equal: {'yes' if equal else 'NO'}")
    return {"tokens_per_second": found.rates, "ratios": ratios, "greedy_texts_are_equal": equal}


def main() -> None:
    """Measure both, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least one unit")
    parser.add_argument("--tokens", type=int, default=65_536, help="of the validation text")
    parser.add_argument("--quick", action="store_true", help="3 rounds on 16,384 tokens")
    chosen = parser.parse_args()
    rounds, tokens = (3, 16_384) if chosen.quick else (chosen.rounds, chosen.tokens)
    seconds = 1.0 if chosen.quick else chosen.seconds
    found = {
        "shape": SHAPE.as_dict(),
        "rounds": rounds,
        "evaluation": evaluation(rounds=rounds, seconds=seconds, tokens=tokens),
        "sampling": sampling(rounds=rounds, seconds=seconds),
    }
    bench.write("inference", found)


if __name__ == "__main__":
    main()
