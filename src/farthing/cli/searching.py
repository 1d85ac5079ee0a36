"""search: many trials of one recipe's variants, within one budget."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farthing.cli.options import RUNS, Device, Json, Quiet, Runs, add, say_json
from farthing.errors import UserError

if TYPE_CHECKING:
    from farthing.search.check import Asked
    from farthing.search.record import Folder, Record, Refused
    from farthing.search.study import Ledger

_ANSWER = ("best", "trials", "refused", "failed", "pruned", "complete", "running", "folder", "ended", "spent",
           "confirmation", "trends", "importance", "left_out", "left_out_because", "notes")  # fmt: skip
STORAGE = "FARTHING_STORAGE"
"""environment variable that may hold the database's URL, which has a password in it"""


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    add(
        app,
        search,
        name="search",
        short="Search for better settings within a budget of trials, FLOPs, minutes or money.",
        example="farthing search searches/study-c.toml search.budget.trials=10",
    )


def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SEARCH.toml [PATH=VALUE]...",
            help="A search (a file, or a shipped one's name), then settings of its base recipe to change, or of the "
            "search itself (search.budget.trials=10).",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The search's folder in --runs; none: the file's name.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Trials at a time on this machine.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help=f"postgresql://USER@HOST/DATABASE, where workers on many machines meet (or {STORAGE} in the environment).",
        ),
    ] = None,
    status: Annotated[
        Path | None, typer.Option("--status", metavar="FOLDER", help="Only say how a search stands, from its files.")
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Try settings around a base recipe, each trial a run of its own, and confirm the best with fresh seeds.

    Stopped in any way, the same command goes on: no finished trial is lost, none is counted twice.
    """
    if status is not None:
        _status(status, as_json=as_json)
        return
    if not words:
        raise UserError("which search? give a SEARCH.toml, for example searches/study-c.toml")
    if workers < 1 or workers > 1024:
        raise UserError(f"--workers {workers}: should be 1 to 1024")
    from farthing.recipe import Recipe
    from farthing.rundir import check_name
    from farthing.search.check import read

    asked = read(words[0], Recipe, words[1:])
    called = name if name is not None else asked.path.stem
    check_name(called)
    found = _carry_out(asked, runs / called, storage or os.environ.get(STORAGE), workers, device, quiet)
    if as_json:
        say_json({key: found[key] for key in _ANSWER})
    elif not quiet:
        _conclude(found)


def _carry_out(asked: Asked, path: Path, storage: str | None, workers: int, device: str, quiet: bool) -> dict[str, Any]:
    from farthing.errors import FarthingError, Preempted
    from farthing.search.conduct import Conductor
    from farthing.search.findings import find
    from farthing.search.plans import Planner
    from farthing.search.record import Folder
    from farthing.search.shared import Shared
    from farthing.search.study import Files

    folder = Folder(path)
    folder.make(asked.as_toml(path))
    screen = Screen(asked, quiet=quiet)

    def work(ledger: Ledger) -> dict[str, Any]:
        folder.note_asked(asked.as_toml(path))
        try:
            with Planner(path, device) as planner:
                conductor = Conductor(asked, folder, ledger, planner, screen, workers=workers, device=device)
                screen.opening(ledger.records())
                ended = conductor.run()
            return find(asked, folder, ledger.records(), ended)
        except Preempted:
            with suppress(FarthingError, OSError):  # what has been found can be reported on; stopping comes first
                find(asked, folder, ledger.records(), "")
            raise
        finally:
            ledger.close()

    if storage is not None:
        return work(Shared(storage, path.name, folder, heartbeat_seconds=asked.search.heartbeat_seconds))
    with folder.locked():
        return work(Files(folder))


class Screen:
    """What a person sees on the way: a line for each thing that happens, on standard error.

    Args:
        asked: the search.
        quiet: show nothing.
    """

    def __init__(self, asked: Asked, *, quiet: bool) -> None:
        self._asked, self._quiet = asked, quiet
        self._refused = 0

    def opening(self, records: Sequence[Record]) -> None:
        """What is about to happen, and what an earlier sitting has done."""
        from farthing.search.account import counts
        from farthing.search.study import History

        history = History(self._asked.space)
        search, done = self._asked.search, counts(history.belong(records))
        names = ", ".join(self._asked.space.dimensions)
        self._say(f"searching {names} by {search.sampler.kind.replace('_', '-')}, up to {_budget(search.budget)}")
        if done["trials"]:
            self._say(f"going on after {done['trials']} trials")
        if because := history.why_left_out(records):
            count = len(history.left_out(records))
            what = f"{count} earlier trial{'s' if count > 1 else ''}"
            self._say(f"left out, but for the cost: {what} that could not be proposed any more: {because}")

    def began(self, record: Record) -> None:
        """A trial or a confirmation run begins or goes on."""
        again = f", attempt {record.attempt}" if record.attempt > 1 else ""
        what = _settings(record) if record.role == "trial" else f"{record.of} with seed {record.seeds[0]}"
        self._say(f"{record.id}{again}: {what}")

    def ended(self, record: Record, records: Sequence[Record]) -> None:
        """It has ended."""
        from farthing.sinks.legible import duration

        took = duration(record.spent.get("seconds", 0.0))
        if record.state == "complete":
            self._say(f"{record.id}: {record.score:.4f} bits/byte, {took}{_rank(record, records)}")
        elif record.state == "pruned":
            self._say(f"{record.id}: pruned at {record.score:.4f} bits/byte, {took} ({record.reason})")
        else:
            self._say(f"{record.id}: {record.state}, {took}: {record.reason}")

    def refused(self, refused: Refused) -> None:
        """A candidate was refused; the first few are told, and then every hundredth."""
        self._refused += 1
        if self._refused <= 3 or self._refused % 100 == 0:
            self._say(f"refused ({self._refused}): {refused.reason}")

    def note(self, text: str) -> None:
        """Something else that a person should know."""
        self._say(text)

    def _say(self, text: str) -> None:
        from farthing.sinks.legible import legible

        if self._quiet:
            return
        with suppress(OSError):  # a terminal that has gone away is no reason to stop
            print(legible(text, encoding=sys.stderr.encoding or "utf-8"), file=sys.stderr, flush=True)


def _rank(record: Record, records: Sequence[Record]) -> str:
    if record.role != "trial" or record.score is None:
        return ""
    others = [one for one in records if one.role == "trial" and one.state == "complete" and one.id != record.id]
    first = min(others, key=lambda one: one.score or 0.0, default=None)
    if first is None or first.score is None or record.score < first.score:
        return " (best so far)"
    return f" (best {first.score:.4f}, {first.id})"


def _settings(record: Record) -> str:
    return " ".join(f"{path}={_brief(value)}" for path, value in record.parameters.items())


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _budget(budget: Any) -> str:
    from farthing.sinks.legible import quantity

    limits = {"trials": budget.trials, "FLOPs": budget.flops, "minutes": budget.minutes, "in money": budget.money}
    return " or ".join(f"{quantity(limit)} {name}" for name, limit in limits.items() if limit is not None)


def _conclude(found: dict[str, Any]) -> None:
    """The end of a search."""
    from farthing.cli.listing import print_columns, write
    from farthing.sinks.legible import legible

    told = f"{found['trials']} trials: {found['complete']} complete, {found['pruned']} pruned, {found['failed']} failed"
    told += f", {found['running']} stopped" if found["running"] else ""
    told += f", {found['left_out']} earlier ones left out" if found["left_out"] else ""
    write(f"{told}; {found['refused']} candidates refused" + (f" ({found['ended']})" if found["ended"] else ""))
    winner = found["best"]
    if winner is None:
        return
    write(f"best: {winner['trial']}, {winner['bits_per_byte']:.4f} bits/byte")
    for path, value in winner["parameters"].items():
        write(f"  {path} = {legible(_brief(value))}")
    if found["confirmation"] is not None:
        _print_confirmation(found["confirmation"], print_columns)
    if "confirmation" in found["notes"]:
        write(found["notes"]["confirmation"])
    for trend in found["trends"]:
        share = found["importance"].get(trend["path"])
        write(legible(trend["words"] + ("" if share is None else f"; importance {share:.0%}")))
    if found["trends"] and "trends" in found["notes"]:
        write(found["notes"]["trends"])
    write(f"train it with: farthing train {winner['recipe']}")


def _print_confirmation(confirmed: dict[str, Any], print_columns: Any) -> None:
    rows = []
    for id, arm in confirmed["arms"].items():
        verdict = confirmed["verdicts"].get(id)
        mean = "failed" if arm["mean"] is None else f"{arm['mean']:.4f}"
        spread = "" if arm["sd"] is None else f"{arm['sd']:.4f}"
        interval = "" if arm["low"] is None else f"{arm['low']:.4f} to {arm['high']:.4f}"
        against = "" if verdict is None else verdict["verdict"]
        rows.append([id, mean, spread, str(arm["n"]), interval, against])
    print_columns(["run", "fresh seeds", "sd", "n", "95 % interval", "against base"], rows)


def _status(path: Path, *, as_json: bool) -> None:
    """How a search stands."""
    from farthing.cli.listing import print_columns, write
    from farthing.search.account import counts
    from farthing.search.record import Folder

    folder = Folder.open(path)
    records = folder.records()
    rows = [
        [one.id, _standing(folder, one), _score(one), _settings(one) or one.reason or f"of {one.of}"] for one in records
    ]
    if as_json:
        told = [
            {"trial": one.id, "state": one.state, "score": one.score, "parameters": one.parameters} for one in records
        ]
        say_json({**counts(records, folder.refused()), "folder": str(path), "each": told})
        return
    done = counts(records, folder.refused())
    write(f"{done['trials']} trials: {done['complete']} complete, {done['running']} running or stopped, "
          f"{done['pruned']} pruned, {done['failed']} failed; {done['refused']} candidates refused")  # fmt: skip
    if rows:
        print_columns(["run", "status", "bits/byte", "settings"], rows)


def _standing(folder: Folder, record: Record) -> str:
    from farthing.search.launch import Watch

    if record.ended:
        return record.state
    run = folder.run(record, next((one for one in record.seeds if str(one) not in record.scores), record.seeds[-1]))
    watch = Watch(run)
    watch.look()
    return f"{'running' if run.is_locked() else 'stopped'}, {watch.progress:.0%}"


def _score(record: Record) -> str:
    return "" if record.score is None else f"{record.score:.4f}"
