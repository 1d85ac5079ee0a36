"""climb: one change after another on the best so far, kept only where it is better beyond noise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farthing.cli.options import RUNS, Device, Json, Quiet, Runs, add, say_json
from farthing.errors import UserError

if TYPE_CHECKING:
    from farthing.search.climb_asked import Asked
    from farthing.search.climb_record import ClimbFolder, Standing


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    add(
        app,
        climb,
        name="climb",
        short="Try changes one after another, keep what is better beyond noise.",
        example="farthing climb climbs/study-a.toml data.limit=20000",
    )


def climb(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CLIMB [PATH=VALUE]...",
            help="A CLIMB.toml (a file, or a shipped one's name), then settings of its base recipe, or climb.X=VALUE.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The climb's folder in --runs; none: the file's name.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Runs at a time on this machine.")] = 1,
    status: Annotated[
        Path | None, typer.Option("--status", metavar="FOLDER", help="Only say how a climb stands, from its files.")
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Try changes to a recipe one after another, each over several seeds, and keep those that are better beyond noise.

    Ends with the final recipe against the base over fresh seeds. Stopped in any way, the same command goes on.
    """
    from farthing.search.climb import answer
    from farthing.search.climb_record import ClimbFolder

    if status is not None:
        folder = ClimbFolder.open(status)
        standing = folder.read()
        _tell(folder, standing, answer(folder, standing), as_json=as_json, quiet=False)
        return
    if not words:
        raise UserError("which climb? give a CLIMB.toml, for example climbs/study-a.toml")
    if not 1 <= workers <= 1024:
        raise UserError(f"--workers {workers}: should be 1 to 1024")
    from farthing.recipe import Recipe
    from farthing.rundir import check_name
    from farthing.search.climb_asked import read

    asked = read(words[0], Recipe, words[1:])
    called = name if name is not None else asked.path.stem
    check_name(called)
    folder = ClimbFolder(runs / called)
    standing = _carry_out(asked, folder, workers, device, quiet=quiet or as_json)
    _tell(folder, standing, answer(folder, standing), as_json=as_json, quiet=quiet)


def _carry_out(asked: Asked, folder: ClimbFolder, workers: int, device: str, *, quiet: bool) -> Standing:
    import tomli_w

    from farthing import config
    from farthing.search.climb import Climber
    from farthing.search.plans import Planner
    from farthing.sinks.legible import legible

    def say(text: str) -> None:
        if not quiet:
            print(legible(text, encoding=sys.stderr.encoding or "utf-8"), file=sys.stderr, flush=True)

    # What is asked, with the base recipe as it is now: a climb that goes on must be the same climb.
    asks = tomli_w.dumps({"climb": config.to_table(asked.climb), "base": asked.base})
    folder.make(asks)
    with folder.locked(), Planner(folder.path, device) as planner:
        folder.take_over(asks)
        return Climber(asked, folder, planner, say, workers=workers, device=device).run()


def _tell(folder: ClimbFolder, standing: Standing, told: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        say_json(told)
    elif not quiet:
        _print(folder, standing)


def _print(folder: ClimbFolder, standing: Standing) -> None:
    """The ladder, and what the end has shown."""
    from farthing.cli.listing import write
    from farthing.sinks.legible import legible

    for one in standing.decisions:
        grounds = [f"{one.seeds} seeds"] if one.seeds else []
        if one.difference is not None:
            interval = "" if one.low is None else f" ({one.low:+.4f} to {one.high:+.4f})"
            grounds.insert(0, f"{one.difference:+.4f} bits/byte{interval}")
        if one.cost is not None and abs(one.cost - 1) >= 0.005:
            grounds.append(f"{one.cost:.2f} times the cost")
        write(legible(f"{one.outcome + ':':<12} {one.name}" + (f", {', '.join(grounds)}" if grounds else "")))
        write(legible(f"{'':<12} {one.reason}"))
    if standing.ended:
        write(f"{legible(standing.ended)}; kept: {legible(', '.join(standing.kept)) or 'nothing'}")
    if standing.confirmation is not None:
        final, base = standing.confirmation["final"], standing.confirmation["base"]
        verdict = standing.confirmation["verdict"]
        write(
            f"confirmed over {len(standing.confirmation['seeds'])} fresh seeds: final {_mean(final)}, base {_mean(base)}: "
            f"{verdict['verdict']}"
        )
    for removal in standing.ablation:
        if "refused" in removal:
            write(legible(f"without {removal['change']}: refused: {removal['refused']}"))
        else:
            write(legible(f"without {removal['change']}: {_mean(removal['without'])} ({removal['told']})"))
    if standing.held_out is not None:
        parts = [f"{role} {_mean(standing.held_out[role])}" for role in ("final", "base") if role in standing.held_out]
        write(f"on the test text, looked at once: {', '.join(parts)}")
    if folder.final.is_file():
        write(f"train it with: farthing train {legible(str(folder.final))}")


def _mean(summary: dict[str, Any]) -> str:
    if summary["mean"] is None:
        return "no score"
    interval = "" if summary["low"] is None else f" ({summary['low']:.4f} to {summary['high']:.4f})"
    return f"{summary['mean']:.4f}{interval}"
