"""HellaSwag's questions by Farthing's own scorer, against lm-evaluation-harness on the same model exported.

    python benchmarks/tasks.py ../shared/data/hellaswag_val.jsonl                           (about 14 minutes)
    python benchmarks/tasks.py ../shared/data/hellaswag_val.jsonl --limit 50 --only turn    (about 2 minutes)

The 12 M shape (vocabulary 4,096 from Python's own sources, GPT-2's architecture) with context 256 and initial weights:
what is measured is how long questions take, not what is known. The export is GPT2LMHeadModel with the same weights, which
`lm_eval --model hf` loads by itself, with batches of one (its default) and of 16. Each side is a process of its own; they
take turns over some questions from all over the file, and ours also answers all of them once, which is the number that
a user waits for. A unit of work begins with the question file and ends with the scores.
"""

from __future__ import annotations

import argparse
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
import turns
from shapes import HEADLINE, SHAPES

SHAPE = replace(SHAPES[HEADLINE], context=256)


def write_export(folder: Path) -> Path:
    """The model that our side asks, as a folder of transformers': weights and tokenizer."""
    import tokenizers
    from shapes import GPT2_ARCHITECTURE
    from transformers import PreTrainedTokenizerFast
    from weights import gpt2_with

    from farthing import config
    from farthing.model.gpt import build_model
    from farthing.recipe import Recipe

    asked = [*SHAPE.recipe(), *GPT2_ARCHITECTURE]
    recipe, tokenizer = config.load(Recipe, "default", asked), bench.read_text(asked).tokenizer
    weights = build_model(recipe.model, SHAPE.vocab_size, seed=recipe.seed).state_dict()
    gpt2_with(weights, SHAPE).save_pretrained(folder)
    end = tokenizer.separator_text
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end).save_pretrained(folder)
    return folder


def write_part(questions: Path, limit: int, folder: Path) -> Path:
    """So many questions from all over a file, as a file that every side finds by its name."""
    lines = [line for line in questions.read_text("utf-8").split("\n") if line.strip()]
    part = folder / "hellaswag.jsonl"
    part.write_text("\n".join(lines[:: max(1, len(lines) // limit)][:limit]) + "\n", "utf-8")
    return part


def starts(questions: Path, warm_up: Path, export: Path | None) -> dict[str, dict[str, Any]]:
    """What each side is started with; without an export, ours alone."""
    ours = {"task": "hellaswag", "data": str(questions), "warm_up": str(warm_up), "shape": SHAPE.as_dict()}
    found: dict[str, dict[str, Any]] = {
        "ours-fp32": {"module": "sides.asking", "asked": ours},
        "ours-bf16": {"module": "sides.asking", "asked": {**ours, "bf16": True}},
    }
    if export is not None:
        theirs = {"task": "hellaswag", "data": str(questions.parent), "export": str(export)}
        for size in (1, 16):
            asked = {**theirs, "batch_size": size}
            found[f"harness-{size}"] = {"module": "sides.harness", "asked": asked}
    return found


def in_turn(questions: Path, export: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a question on each side, ours against the others, and whether all say the same."""
    with turns.sides(starts(questions, questions, export)) as there:
        taken = turns.take_turns(there, rounds=rounds, seconds=0)
        counts = {name: side.facts["questions"] for name, side in there.items()}
        answers = {name: side.ask("log_likelihoods") for name, side in there.items()}
        scores = {name: side.ask("scores") for name, side in there.items()}
    rates = {name: bench.spread([counts[name] / once for once in times]) for name, times in taken.items()}
    rivals = [name for name in taken if name.startswith("harness")]
    ratios = {f"ours-fp32 against {name}": bench.ratio(taken[name], taken["ours-fp32"]) for name in rivals}
    differences = {
        name: max(abs(a - b) for one, other in zip(answers["ours-fp32"], answers[name], strict=True)
                  for a, b in zip(one, other, strict=True))
        for name in rivals
    }  # fmt: skip
    return {
        "questions": counts["ours-fp32"],
        "questions_per_second": rates,
        "ratios": ratios,
        "largest_difference_nats": differences,
        "scores": scores,
    }


def whole(questions: Path, part: Path) -> dict[str, Any]:
    """How long all questions take us, in fp32 and in bf16, each after a pass over a part that is not counted."""
    found = {}
    for name, start in starts(questions, part, None).items():
        with turns.sides({name: start}) as there:
            found[name] = {"questions": there[name].facts["questions"], "seconds": there[name].go(1)}
    return found


def tell_turns(found: dict[str, Any]) -> None:
    """Rates, ratios and how far the answers lie apart."""
    print(f"{found['questions']} questions in turn{'questions/s':>18}{'least':>9}{'most':>9}")
    for name, rate in found["questions_per_second"].items():
        print(f"{name:<24}{rate['median']:>14,.1f}{rate['least']:>9,.1f}{rate['most']:>9,.1f}")
    for name, value in found["ratios"].items():
        print(f"  {name}: {bench.told(value)}")
    for name, value in found["largest_difference_nats"].items():
        print(f"  largest difference from {name}: {value:.2g} nats")


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="hellaswag_val.jsonl")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=500, help="questions that sides take turns over")
    parser.add_argument("--only", default="turn,all", help="sides in turn over some questions, ours over all of them")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        part = write_part(chosen.questions, chosen.limit, Path(folder))
        if "turn" in chosen.only:
            export = write_export(Path(folder) / "export")
            in_turns = {"shape": SHAPE.as_dict(), **in_turn(part, export, chosen.rounds)}
            tell_turns(in_turns)
            bench.merge("tasks", "turn", in_turns)
        if "all" in chosen.only:
            every = whole(chosen.questions.absolute(), part)
            for name, one in every.items():
                print(f"all {one['questions']:,} questions, {name}: {one['seconds']:.0f} s")
            bench.merge("tasks", "all", {"shape": SHAPE.as_dict(), **every})


if __name__ == "__main__":
    main()
