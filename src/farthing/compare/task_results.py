"""Tasks that were asked in full after training, kept beside the run for its reports and its model card."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from farthing.errors import UserError
from farthing.forms import Form, shaped
from farthing.rundir import RunDir
from farthing.storage import read_json, write_json

VERSION = 1


class _Reading(Form):
    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    chance: float | None
    verdict: str | None


class _Result(Form):
    task: str
    metric: str
    items: int
    of: int
    shots: int
    source: str
    scores: dict[str, _Reading]


class _Kept(Form):
    step: int
    when: str
    result: _Result


class _File(Form):
    version: int
    asked: list[_Kept]


def read_tasks(run: RunDir, *, step: int | None = None) -> list[dict[str, Any]]:
    """What was kept: `{"step", "when", "result"}` each; docs/tasks.md describes a result.

    Args:
        run: whose.
        step: of these weights only; None tells all.

    Raises:
        UserError: the file is damaged or of a newer version.
    """
    if not run.tasks.is_file():
        return []
    try:
        table = read_json(run.tasks)
        shaped(_File, table)
    except (OSError, ValueError) as error:
        raise UserError(f"{run.tasks}: cannot be read: {error}; delete it and ask again") from None
    if table["version"] > VERSION:
        raise UserError(f"{run.tasks}: of version {table['version']}; this farthing reads {VERSION}")
    return [dict(one) for one in table["asked"] if step in (None, one["step"])]


def latest(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a task that was asked twice in the same way the later result."""
    return list({(one["task"], one.get("shots")): one for one in results}.values())


def keep_tasks(run: RunDir, step: int, results: Sequence[dict[str, Any]]) -> None:
    """Keep results, in place of what the same weights came to in the same tasks before.

    Args:
        run: whose.
        step: optimizer steps of the weights that were asked.
        results: of tasks, all of whose questions were asked.

    Raises:
        UserError: as for `read_tasks`.
    """
    same = {(step, one["task"], one["shots"]) for one in results}
    kept = [one for one in read_tasks(run) if (one["step"], one["result"]["task"], one["result"]["shots"]) not in same]
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    kept += [{"step": step, "when": when, "result": one} for one in results]
    write_json(run.tasks, {"version": VERSION, "asked": kept})
