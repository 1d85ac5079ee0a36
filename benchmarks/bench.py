"""What every benchmark shares: the machine's description, child processes, turns, ratios, and where results go."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shapes import LARGEST_TRAINED, Shape, padded_tokenizer

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_LOAD_AT_START = os.getloadavg()


def machine() -> dict[str, Any]:
    """The machine, so that a number can be read for what it is."""
    import torch

    from farthing.runtime import hardware

    return {
        "cpu": hardware.cpu_name(),
        "physical_cores": hardware.physical_cores(),
        "memory_gib": round(hardware.memory_total() / 2**30, 1),
        "instruction_sets": list(hardware.instruction_sets()),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        # Of the moment the script began: what else the machine was doing, not what the benchmark did.
        "load_average": [round(load, 2) for load in _LOAD_AT_START],
    }


def run(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> tuple[float, int, str]:
    """Run a child process: (seconds, peak resident bytes, standard output); its failure is ours."""
    start = time.monotonic()
    child = subprocess.Popen(
        list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    out, err = child.communicate()
    seconds = time.monotonic() - start
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {child.returncode}\n{err[-2000:]}")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, out


def farthing(*words: str, env: Mapping[str, str] | None = None) -> tuple[float, dict[str, Any]]:
    """Run the command with --json: (seconds, its JSON)."""
    seconds, _, out = run([sys.executable, "-m", "farthing", *words, "--json"], env=env)
    return seconds, json.loads(out.splitlines()[-1])


def read_text(overrides: Sequence[str]) -> Any:
    """The default recipe's text with some overrides (farthing's Prepared), from the cache where it has been read before."""
    from farthing import assemble, config
    from farthing.recipe import Recipe
    from farthing.storage import cache_folder

    recipe = config.load(Recipe, "default", list(overrides))
    return assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=lambda *_: None)


def prepare_tokenizer(shape: Shape) -> None:
    """Make the tokenizer that a shape's recipe names, where that is a file: a trained one and unused tokens."""
    path = padded_tokenizer(shape.vocab_size)
    if shape.vocab_size <= LARGEST_TRAINED or path.is_file():
        return
    table = json.loads(read_text([f"tokenizer.vocab_size={LARGEST_TRAINED}"]).tokenizer.to_json())
    vocabulary = table["model"]["vocab"]
    vocabulary |= {f"<|unused-{number}|>": number for number in range(LARGEST_TRAINED, shape.vocab_size)}
    path.write_text(json.dumps(table), "utf-8")


def token_file(shape: Shape, folder: Path) -> Path:
    """The default recipe's training text as a shape's recipe tokenises it, as a file that any side can map."""
    import numpy as np

    prepare_tokenizer(shape)
    path = folder / "tokens.npy"
    np.save(path, np.asarray(read_text(shape.recipe()).train.tokens_N))
    return path


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each contender's call returns, round by round: A B C, A B C, so that what slows one slows the others."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            found[name].append(contender())
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """The ratio of two sides that took turns: median, least and most over the rounds."""
    return spread([above / below for above, below in zip(numerator, denominator, strict=True)])


def told(ratio: Mapping[str, float]) -> str:
    """A ratio for a person: 4.52 (4.31 to 4.60)."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def read(name: str) -> dict[str, Any]:
    """What a benchmark has kept, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def write(name: str, results: Mapping[str, Any]) -> None:
    """Keep a benchmark's results with its command and machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**_stamp(), **results}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {path.relative_to(HERE.parent)}", flush=True)


def merge(name: str, part: str, results: Mapping[str, Any]) -> None:
    """Keep one part of a benchmark that may be run in parts: {"parts": {part: results with command and machine}}."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {"parts": {**read(name).get("parts", {}), part: {**_stamp(), **results}}}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{part}: written to {path.relative_to(HERE.parent)}", flush=True)


def put_between(page: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Replace what a page has between two marks."""
    before, found, rest = page.read_text("utf-8").partition(f"{begin}\n")
    _, also, after = rest.partition(end)
    assert found and also, f"{page}: no {begin}"
    page.write_text(before + found + "\n".join(lines) + f"\n{also}{after}", "utf-8")


def _stamp() -> dict[str, Any]:
    # Of a file its name alone: where it lay on this machine is nobody's business.
    words = [Path(word).name if os.sep in word and Path(word).exists() else word for word in sys.argv[1:]]
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(words)}".strip()
    return {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
