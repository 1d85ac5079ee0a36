"""lm-evaluation-harness on a model of ours: its own code, its own tasks, in this process (extra `[eval]`).

Tasks whose questions are in files on this machine are described in `harness_tasks`; all others are the harness's own,
which fetches their questions from the hub.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing.errors import UserError, first_line, nearest, need
from farthing.evals.forward import Precision
from farthing.model.gpt import GPT

if TYPE_CHECKING:
    from farthing.evals.harness_model import HarnessTokenizer, Report

TASKS = Path(__file__).parent / "harness_tasks"
"""the folder to give lm_eval's --include_path: the same tasks, with local questions, for an exported model"""

_RESAMPLES = 1000
"""for the standard error of a metric that is no mean; the harness's own 100,000 take minutes for LAMBADA"""
_SHOTS_SEED = 1234
"""of the draw of examples: lm_eval's own default"""


@dataclass(frozen=True)
class HarnessScore:
    """A task's (or a group's) scores as lm-evaluation-harness gives them.

    Args:
        task: the harness's name.
        version: of the task; empty where the harness gives none.
        shots: examples before each question.
        questions: how many were asked.
        metrics: acc and the like, by the harness's names; a filter other than none follows after a comma.
        standard_errors: of the metrics that have one.
        samples: the harness's own record of each question: request, log-likelihoods and metrics.
    """

    task: str
    version: str
    shots: int
    questions: int
    metrics: dict[str, float]
    standard_errors: dict[str, float]
    samples: list[dict[str, Any]] = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the samples."""
        return {
            "task": self.task,
            "version": self.version,
            "shots": self.shots,
            "questions": self.questions,
            **self.metrics,
            **{f"{name}_stderr": value for name, value in self.standard_errors.items()},
        }

    def answer_lines(self) -> list[dict[str, Any]]:
        """Every question's answers (log-likelihood and whether it is greedy, or text) and metrics, JSON-ready."""
        return [
            {
                "task": self.task,
                "question": int(sample["doc_id"]),
                "answers": [answer[0] for answer in sample["resps"]],
                **{metric: sample[metric] for metric in sample["metrics"]},
            }
            for sample in self.samples
        ]


def run_harness(
    model: GPT,
    tokenizer: HarnessTokenizer,
    tasks: Sequence[str],
    *,
    device: str,
    precision: Precision = "fp32",
    data: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    report: Report = lambda *_: None,
) -> list[HarnessScore]:
    """Let lm-evaluation-harness evaluate a model.

    Args:
        model: on `device`.
        tokenizer: the model's.
        tasks: the harness's names of tasks and groups.
        device: where the model is.
        precision: number format of the forward pass.
        data: a folder with question files (or one file) for the tasks that `harness_tasks` knows; then nothing is
            fetched for them. None takes all questions from the hub.
        limit: ask only the first so many questions of each task.
        shots: examples before each question, unless a task fixes it; None leaves it to the task.
        report: called with (stage, done, total).

    Raises:
        UserError: the harness is not installed, a task is unknown, its questions are not to be had or not of its kind.
    """
    need("lm_eval", extra="eval", why="--harness")
    if not tasks:
        raise UserError("--harness: name at least one task, such as hellaswag")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: should be at least 1")
    if shots is not None and shots < 0:
        raise UserError(f"--shots {shots}: should be 0 or more")
    report("reading questions", 0, 0)
    from lm_eval.evaluator import evaluate

    from farthing.evals.harness_model import HarnessModel

    with _quiet():
        loaded = _load(list(dict.fromkeys(tasks)), data)
        for name, task in loaded["tasks"].items():
            _prepare(name, task, shots)
    asked = HarnessModel(model, tokenizer, device=device, precision=precision, report=report)
    # Before the harness's own bars are silenced, so that ours stay on the terminal.
    report("scoring", 0, 0)
    with _quiet():
        # Not simple_evaluate, which would seed torch for the whole process and ask pip and git about the machine.
        found = evaluate(lm=asked, task_dict=loaded, limit=limit, bootstrap_iters=_RESAMPLES)
    assert found is not None, "only other ranks of a process group have no results"
    return [_score(name, found) for name in found["results"]]


def harness_version() -> str:
    """The installed harness's version."""
    return str(need("lm_eval", extra="eval", why="--harness").__version__)


def _load(names: Sequence[str], data: Path | None) -> dict[str, Any]:
    """Tasks and groups by name, in the form that the harness's evaluate takes."""
    from lm_eval.tasks import TaskManager

    local = TaskManager(include_defaults=False, include_path=str(TASKS), metadata={"data": str(data)})
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        if data is not None and name in local.all_tasks:
            try:
                found = local.load(name)
            except (OSError, ValueError) as error:
                raise UserError(f"--harness {name}: {first_line(error)}") from error
        else:
            found = _fetch(name, known=local.all_tasks)
        for part, members in found.items():
            loaded[part] |= members
    return loaded


def _fetch(name: str, *, known: Sequence[str]) -> Any:
    """A task of the harness's own, its questions from the hub."""
    manager = _manager(name)
    if name not in manager.all_tasks:
        raise UserError(f"--harness {name}: lm-evaluation-harness has no such task{nearest(name, manager.all_tasks)}")
    try:
        return manager.load(name)
    except Exception as error:  # httpx, datasets, hub and file errors, by version: all of them mean "not fetched"
        offer = f"; or give --data DIR with {name}.jsonl" if name in known else ""
        raise UserError(
            f"--harness {name}: its questions could not be fetched ({type(error).__name__}: {first_line(error)}); "
            f"go online{offer}"
        ) from error


def _manager(name: str) -> Any:
    """What knows a task of the harness's own."""
    import lm_eval.tasks

    # The whole index is more than ten thousand files and takes many seconds; most tasks are in a folder of their name.
    folder = Path(lm_eval.tasks.__file__).parent / name.partition("_")[0]
    if name.isidentifier() and folder.is_dir():
        near = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))
        if name in near.all_subtasks:
            return near
    return lm_eval.tasks.TaskManager()


def _prepare(name: str, task: Any, shots: int | None) -> None:
    """Set the number of examples as lm_eval's command does, and refuse what cannot be asked."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"--harness {name}: would run code that the model writes; use lm_eval on the exported model")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"--harness {name}: asks about pictures or sound; the model reads text alone")
    own = task.get_config("num_fewshot")
    # A task that says 0 means it.
    task.set_config(key="num_fewshot", value=own or 0 if shots is None or own == 0 else shots)
    task.set_fewshot_seed(_SHOTS_SEED)
    wanted, there = task.get_config("num_fewshot"), len(task.eval_docs)
    if task.get_config("custom_dataset") is not None and wanted >= there:
        raise UserError(f"--shots {wanted}: {name} has {there} questions, and needs one more than examples")


def _score(name: str, found: Any) -> HarnessScore:
    """One line of the harness's table."""
    table = found["results"][name]
    numbers = {key: value for key, value in table.items() if "," in key and isinstance(value, int | float)}
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in numbers.items():
        metric, _, filtered = key.partition(",")
        is_error = metric.endswith("_stderr")
        full = metric.removesuffix("_stderr") + ("" if filtered == "none" else f",{filtered}")
        if math.isfinite(value):
            (errors if is_error else metrics)[full] = float(value)
    return HarnessScore(
        task=name,
        version="" if (version := found["versions"].get(name)) is None else str(version),
        shots=int(found["n-shot"].get(name) or 0),
        questions=int(table.get("sample_len") or 0),
        metrics=metrics,
        standard_errors=errors,
        samples=list(found.get("samples", {}).get(name, [])),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's bars, prints, logs and warnings off the terminal, and its pool of processes from starting."""
    logger = logging.getLogger("lm_eval")
    level, alone = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.CRITICAL + 1)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone
