"""Published studies again at a size for two cores, by our own verbs: which of their findings hold, by which reading.

    python benchmarks/studies.py TITLES.txt                     (about two hours; stopped, the same command goes on)
    python benchmarks/studies.py TITLES.txt --only a,c --workers 2

20,000 titles (10,000 for the long list), seven epochs, models of one to four million parameters, three seeds where seeds
are compared. Studies A and titles are climbs, D is a search, C and E are arms that are compared, and so is final: what the
long list has come to against its base, on 20,000 titles. Runs stay in --runs, so that every verb can look at them again;
what was found goes to benchmarks/results/studies.json, and the reports go to docs/studies/. Each run gets a thread of its
own, so numbers of seconds are not those of a run that has the machine to itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench

from farthing.compare.arms import group
from farthing.compare.runs import gather
from farthing.compare.statistics import compare
from farthing.recipe import Recipe

REPOSITORY = bench.HERE.parent
PAGE = REPOSITORY / "docs" / "studies.md"
SEEDS = "1,2,3"
DIVERGED = 5
"""exit code of a run whose loss ran away, which is a result"""
# Of every arm; what is not here is the study's own.
SMALL = [
    "data.kind=text", "data.path=hn_titles.txt", "data.documents=line", "data.limit=20000", "data.split=shuffle",
    "data.validation=0.1", "tokenizer.kind=bpe", "tokenizer.vocab_size=4000", "model.n_layer=4", "model.n_head=4",
    "model.d_model=128", "model.context_length=64", "train.batch_size=32", "train.precision=auto", "train.threads=1",
    "budget.steps=none", "budget.epochs=7", "evaluate.every=end", "evaluate.legacy=titles", "evaluate.references=false",
    "sample.tokens=20",
]  # fmt: skip
# The rate and dropout of study C's smallest model, for all but SGD.
_C = ["optimizer.lr=2.1e-3", "model.dropout=0.0603"]
# Study E's rates are those of 124 M parameters and 0.5 M tokens a step; SwiGLU's run diverged there, and may here.
_E = ["train.order=shuffled", "schedule.warmup=0.1", "optimizer.weight_decay=0.1"]
ARMS: dict[str, dict[str, list[str]]] = {
    "c": {
        "sgd": ["studies/c-sgd"],
        "adamw": ["studies/c-sam", *_C, "optimizer.sharpness.kind=none"],
        "sam": ["studies/c-sam", *_C],
        "asam": ["studies/c-asam", *_C],
    },
    "e": {
        "baseline": ["studies/e-baseline", *_E],
        "rope-gelu": ["studies/e-rope-gelu", *_E],
        "rope-gqa": ["studies/e-rope-gqa", "model.n_kv_head=2", *_E],
        "swiglu-rmsnorm-gqa-rope": ["studies/e-swiglu-rmsnorm-gqa-rope", "model.n_kv_head=2", *_E],
    },
}
# What the long list came to, on twice the titles: recipes in the folder of runs.
_FOUND = {"base": "titles/asked/base.toml", "end": "titles/final.toml"}
ARMS["final"] = {arm: [recipe, "data.limit=20000", "train.threads=1"] for arm, recipe in _FOUND.items()}
# Three seeds for each change of the ladder; of the long list, a third only where two do not tell, and half of the text.
CLIMBS = {
    "a": ["benchmarks/climbs/study-a.toml"],
    "titles": ["titles", "data.limit=10000", "climb.judge.looks=[2,3]"],
}
SEARCHES = {"d": ["benchmarks/searches/study-d.toml"]}
STUDIES = ("a", "c", "d", "e", "titles", "final")


class Studies:
    """The studies in one folder of runs.

    Args:
        runs: where runs go, relative to the repository, so that reports name no machine's paths.
        workers: runs at a time.
    """

    def __init__(self, runs: str, workers: int) -> None:
        self._runs, self._workers = runs, workers
        self.commands: list[str] = []

    def carry_out(self, study: str) -> dict[str, Any]:
        """Train what is missing and say what came of it; `commands` has what did it."""
        self.commands = []
        return self._arms(study) if study in ARMS else self._folder(study)

    def report(self, study: str, out: Path) -> None:
        """The verb's own report, as Markdown with its figures."""
        where = self._names(study) if study in ARMS else [f"{self._runs}/{_name(study)}"]
        out.parent.mkdir(parents=True, exist_ok=True)
        self._farthing("report", *where, "--markdown", "--out", str(out.relative_to(REPOSITORY)), "--runs", self._runs)
        for picture in out.parent.glob(f"{out.stem}-figures/*.png"):
            picture.unlink()  # the page shows the SVGs, and a repository need not carry both

    def _arms(self, study: str) -> dict[str, Any]:
        def train(arm: str) -> None:
            recipe, *changes = ARMS[study][arm]
            if study == "final":
                recipe = f"{self._runs}/{recipe}"
            else:
                changes = [*SMALL, *changes]
            words = ["train", recipe, *changes, "--seeds", SEEDS, "--name", f"{study}-{arm}", "--runs"]
            self._farthing(*words, self._runs, "--quiet", allowed=(0, DIVERGED))
            for seed in SEEDS.split(",") if study == "final" else ():
                words = ["eval", f"{study}-{arm}-seed{seed}", "--split", "test", "--runs"]
                self._farthing(*words, self._runs, "--quiet", "--json")

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(train, ARMS[study]))
        first = f"{study}-{next(iter(ARMS[study]))}-seed{SEEDS.partition(',')[0]}"
        found = {by: self._compared(self._names(study), first, by) for by in ("bits_per_byte", "legacy_titles")}
        if study == "c":  # what SAM buys is asked of AdamW, not of SGD
            names = [name for name in self._names(study) if not name.startswith("c-sgd")]
            found["against adamw"] = self._compared(names, "c-adamw-seed1", "bits_per_byte")
        return {"compared": found}

    def _compared(self, names: Sequence[str], baseline: str, by: str) -> dict[str, Any]:
        words = ["compare", *names, "--baseline", baseline, "--by", by, "--runs", self._runs, "--json"]
        made = json.loads(self._farthing(*words).splitlines()[-1])
        arms = [{key: one[key] for key in _KEPT if key in one} for one in made["arms"]]
        return {"arms": arms, "verdicts": made["verdicts"], "notes": made["notes"]}

    def _names(self, study: str) -> list[str]:
        return [f"{study}-{arm}-seed{seed}" for arm in ARMS[study] for seed in SEEDS.split(",")]

    def _folder(self, study: str) -> dict[str, Any]:
        verb, asked = ("search", SEARCHES[study]) if study in SEARCHES else ("climb", CLIMBS[study])
        words = [verb, *asked, "evaluate.legacy=titles", "--name", _name(study), "--workers", str(self._workers)]
        out = self._farthing(*words, "--runs", self._runs, "--quiet", "--json")
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        if verb == "climb":
            told["by_reading"] = list(self._by_reading(_name(study)))
        return told

    def _by_reading(self, name: str) -> Iterator[dict[str, Any]]:
        """What each change did to the recipe it was tried on, by both readings, over the seeds that both have."""
        folder = REPOSITORY / self._runs / name
        standing = json.loads((folder / "climb.json").read_text("utf-8"))
        arms = {arm.name: arm for arm in group(gather([str(folder)], runs=folder, recipe=Recipe).runs)[0]}
        for one in standing["decisions"]:
            row = {key: one[key] for key in ("name", "outcome", "reason", "seeds", "cost")}
            if one["arm"] in arms:
                row["legacy_coverage"] = arms[one["arm"]].legacy_coverage
            if one["arm"] in arms and one["against"] in arms:
                for by in ("bits_per_byte", "legacy_titles"):
                    scores = [_common(arms[one[key]].scores(by), one["seeds"]) for key in ("arm", "against")]
                    told = compare(*scores).as_dict()
                    # The climb's own rule decides, which allows for looks and cost; these say what each reading saw.
                    row[by] = {key: told[key] for key in ("difference", "low", "high", "p")}
            yield row

    def _farthing(self, *words: str, allowed: Sequence[int] = (0,)) -> str:
        self.commands.append(" ".join(["farthing", *words]))
        print(self.commands[-1], flush=True)
        command = [sys.executable, "-m", "farthing", *words]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in allowed:
            raise SystemExit(f"{self.commands[-1]}: exit code {done.returncode}")
        return done.stdout


_KEPT = ("arm", "mean", "sd", "n", "low", "high", "legacy_coverage", "held_out", "parameters", "spent")


def _name(study: str) -> str:
    return study if study in ("titles", "final") else f"study-{study}"


def _common(scores: Mapping[int, float | None], seeds: int) -> dict[int, float | None]:
    """Of the first so many seeds, which are the ones that the decision rests on."""
    return {seed: scores[seed] for seed in sorted(scores)[:seeds]}


def _told(value: Mapping[str, Any] | None) -> str:
    """A difference for a person, with its interval and its verdict if there is one."""
    if value is None or value.get("difference") is None:
        return ""
    ends = "" if value["low"] is None else f" ({value['low']:+.3f} to {value['high']:+.3f})"
    verdict = "" if value.get("verdict") is None else f", {value['verdict']}"
    return f"{value['difference']:+.3f}{ends}{verdict}"


def _arms_table(compared: Mapping[str, Any]) -> Iterator[list[str]]:
    readings = [by for by in ("bits_per_byte", "legacy_titles") if by in compared]
    named = {"bits_per_byte": "bits per byte", "legacy_titles": "legacy reading"}
    looked = any(arm.get("held_out") for arm in compared[readings[0]]["arms"])
    head = ["arm", "seeds", *(cell for by in readings for cell in (named[by], "difference")), "PFLOP"]
    yield [*head, "held-out titles"] if looked else head
    for arm in compared[readings[0]]["arms"]:
        cells = []
        for by in readings:
            verdicts = {one["arm"]: one for one in compared[by]["verdicts"]}
            mean = next(one["mean"] for one in compared[by]["arms"] if one["arm"] == arm["arm"])
            cells += ["no score" if mean is None else f"{mean:.4f}", _told(verdicts.get(arm["arm"]))]
        row = [arm["arm"], str(arm["n"]), *cells, f"{arm['spent'].get('flops', 0.0) / 1e15:.3f}"]
        yield [*row, f"{arm['held_out']['mean']:.4f}"] if looked else row


def _ladder_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["change", "outcome", "seeds", "cost", "bits per byte", "legacy reading", "which looks at", "on what grounds"]
    for one in rows:
        cost = "" if one["cost"] is None else f"{one['cost']:.2f}"
        readings = [_told(one.get(by)) for by in ("bits_per_byte", "legacy_titles")]
        seen = "" if one.get("legacy_coverage") is None else f"{one['legacy_coverage']:.0%}"
        yield [one["name"], one["outcome"], str(one["seeds"]), cost, *readings, seen, one["reason"]]


def table(study: str, found: Mapping[str, Any]) -> list[str]:
    """What came of a study, by both readings, as lines of Markdown."""
    if study in ARMS:
        compared = found["compared"]
        lines = _lines(list(_arms_table(compared)))
        if "against adamw" in compared:
            lines += ["", *_lines(list(_arms_table({"bits_per_byte": compared["against adamw"]})))]
        return lines
    if "by_reading" in found:
        return _lines(list(_ladder_table(found["by_reading"])))
    return [f"- {trend['words']}" for trend in found["trends"]]


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def write() -> None:
    """Put the tables, and the commands that made them, into docs/studies.md, between their marks."""
    for study, found in bench.read("studies").get("parts", {}).items():
        begin = f"<!-- {study}: benchmarks/studies.py writes from here -->"
        given = ["<details><summary>Commands</summary>", "", "```", *found["commands"], "```", "", "</details>"]
        bench.put_between(PAGE, begin, "<!-- to here -->", [*table(study, found), "", *given])


def main() -> None:
    """Carry out, print, keep, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", type=Path, help="hn_titles.txt")
    parser.add_argument("--only", default=",".join(STUDIES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="train nothing: put the tables into docs/studies.md")
    parser.add_argument("--runs", default="runs/studies", help="in the repository")
    chosen = parser.parse_args()
    if chosen.write:
        return write()
    here = REPOSITORY / "hn_titles.txt"
    if not here.exists():
        shutil.copyfile(chosen.titles, here)
    steps: Sequence[str] = chosen.only.split(",")
    for study in steps:
        made = Studies(chosen.runs, chosen.workers)
        found = made.carry_out(study)
        made.report(study, REPOSITORY / "docs" / "studies" / f"{_name(study)}.md")
        bench.merge("studies", study, {"commands": made.commands, **found})
        print("\n".join(table(study, found)))


if __name__ == "__main__":
    main()
