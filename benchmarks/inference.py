"""Evaluation and sampling speed: Farthing's scorer and generate against transformers' Trainer.evaluate and generate.

    python benchmarks/inference.py                 (about 5 minutes)
    python benchmarks/inference.py --quick         (about 2 minutes)

The 12 M shape with GPT-2's architecture and the same weights on all sides, each in a process of its own, in turn.
Evaluation: a pass over the same validation tokens; ours scores every token once and also keeps the separators' part
apart. Sampling: one text at a time, with the cache, to the end of the context, greedily and at temperature 1 (the greedy
texts must be equal). Everything is fp32 unless it says bf16.
"""

from __future__ import annotations

import argparse
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
    "transformers-greedy": {"arm": "transformers", "temperature": 0.0},
    "ours-sampled": {"arm": "ours", "temperature": 1.0},
    "transformers-sampled": {"arm": "transformers", "temperature": 1.0},
}


def measure(module: str, arms: dict[str, dict[str, Any]], *, question: str, rounds: int, seconds: float, **asked: Any):
    """Tokens per second of each arm, what each answers to a question, and seconds per unit by round."""
    starts = {
        name: {"module": module, "asked": {**arm, **asked, "shape": SHAPE.as_dict()}} for name, arm in arms.items()
    }
    with turns.sides(starts) as there:
        taken = turns.take_turns(there, rounds=rounds, seconds=seconds)
        answers = {name: side.ask(question) for name, side in there.items()}
        rates = {
            name: bench.spread([there[name].facts["tokens"] / once for once in times]) for name, times in taken.items()
        }
    return rates, answers, taken


def show(title: str, rates: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    print(f"\n{title:<24}{'tokens/s':>10}{'least':>9}{'most':>9}")
    for name, rate in rates.items():
        print(f"{name:<24}{rate['median']:>10,.0f}{rate['least']:>9,.0f}{rate['most']:>9,.0f}")
    for name, value in ratios.items():
        print(f"  {name}: {bench.told(value)}")


def evaluation(*, rounds: int, seconds: float, tokens: int) -> dict[str, Any]:
    """The scorer against the Trainer and a plain loop."""
    rates, losses, taken = measure(
        "sides.scoring", SCORING, question="loss", rounds=rounds, seconds=seconds, tokens=tokens
    )
    pairs = [(ours, other) for ours in taken if ours.startswith("ours") for other in taken if "ours" not in other]
    ratios = {f"{ours} against {other}": bench.ratio(taken[other], taken[ours]) for ours, other in pairs}
    show("evaluation", rates, ratios)
    return {"tokens": tokens, "tokens_per_second": rates, "nats_per_token": losses, "ratios": ratios}


def sampling(*, rounds: int, seconds: float) -> dict[str, Any]:
    """generate against generate."""
    rates, texts, taken = measure("sides.writing", WRITING, question="text", rounds=rounds, seconds=seconds)
    ratios = {
        f"ours-{how} against transformers-{how}": bench.ratio(taken[f"transformers-{how}"], taken[f"ours-{how}"])
        for how in ("greedy", "sampled")
        if {f"ours-{how}", f"transformers-{how}"} <= taken.keys()
    }
    equal = texts.get("ours-greedy") == texts.get("transformers-greedy")
    show("sampling", rates, ratios)
    print(f"  greedy texts are equal: {'yes' if equal else 'NO'}")
    return {"tokens_per_second": rates, "ratios": ratios, "greedy_texts_are_equal": equal}


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
