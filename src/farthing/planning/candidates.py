"""What may be tried in a recipe's stead: all that it leaves to auto, that this machine has, and that fits in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from farthing.planning.settings import Counts, Settings, fits, refitted
from farthing.planning.trial import Coordinate
from farthing.recipe import Recipe
from farthing.runtime import hardware
from farthing.runtime.device import Machine, choose_compile, matmul_rate

WORTH_TRYING_BF16 = 0.8
"""Share of fp32's rate of matrix products from which bf16 is tried: it saves memory traffic too."""


def plain_settings(recipe: Recipe, machine: Machine, counts: Counts, start: Settings) -> Settings | None:
    """fp32, eager and fused attention: what a plain training loop does. None if the recipe or the memory rules it out."""
    train = recipe.train
    if train.precision not in ("auto", "fp32") or train.attention not in ("auto", "sdpa"):
        return None
    layout = start.weight_gradient if train.weight_gradient != "auto" else "strided"
    plain = replace(start, precision="fp32", attention="sdpa", weight_gradient=layout, compile=False)
    if not fits(recipe, machine, counts, plain):
        plain = refitted(recipe, machine, counts, plain)
    return plain if fits(recipe, machine, counts, plain) else None


def coordinates(recipe: Recipe, machine: Machine, counts: Counts) -> list[Coordinate]:
    """The respects in which settings may be bettered, the most telling first; what is pinned is none."""
    train, on_cpu = recipe.train, machine.device == "cpu"
    found: list[Callable[[Settings], Iterator[Settings]]] = []
    if train.precision == "auto" and on_cpu:
        found.append(_precisions)
    if train.attention == "auto" and on_cpu:
        found.append(_attentions)
    if train.weight_gradient == "auto" and on_cpu:
        found.append(_weight_gradients)
    if machine.device == "cuda":
        found.append(_cuda_graphs)
    if train.micro_batch == "auto":
        found.append(lambda best: _micro_batches(best, recipe.train.batch_size))
    if train.threads == "auto" and on_cpu:
        found.append(_thread_counts)

    def fitting(coordinate: Callable[[Settings], Iterator[Settings]]) -> Coordinate:
        return lambda best: (one for one in coordinate(best) if fits(recipe, machine, counts, one))

    return [fitting(coordinate) for coordinate in found]


def compiled(recipe: Recipe, machine: Machine, best: Settings) -> Settings | None:
    """The same settings compiled, if the recipe leaves that open and torch.compile works here."""
    if recipe.train.compile != "auto" or not choose_compile("on", machine, predicted_seconds=None).value:
        return None
    return replace(best, compile=True)


def safer(settings: Settings) -> Iterator[Settings]:
    """What to fall back on where settings do not compute what plain fp32 does, the smallest change first."""
    eager = replace(settings, compile=False, cuda_graphs=False)
    for changed in (
        replace(eager, weight_gradient="strided"),
        replace(eager, attention="sdpa", weight_gradient="strided"),
        replace(eager, precision="fp32", weight_gradient="strided"),
        replace(eager, precision="fp32", attention="sdpa", weight_gradient="strided"),
    ):
        if changed != settings:
            yield changed


def _precisions(best: Settings) -> Iterator[Settings]:
    # The way back is plain fp32, which is raced first of all.
    if best.precision == "fp32" and matmul_rate("bf16", "cpu") >= WORTH_TRYING_BF16 * matmul_rate("fp32", "cpu"):
        yield replace(best, precision="bf16")


def _attentions(best: Settings) -> Iterator[Settings]:
    yield replace(best, attention="math" if best.attention == "sdpa" else "sdpa")


def _weight_gradients(best: Settings) -> Iterator[Settings]:
    if best.precision != "fp32":
        yield replace(best, weight_gradient="copied" if best.weight_gradient == "strided" else "strided")


def _cuda_graphs(best: Settings) -> Iterator[Settings]:
    """The same kernels; where a recipe has something that cannot be replayed, they run plain and gain nothing."""
    if not best.cuda_graphs:
        yield replace(best, cuda_graphs=True)


def _micro_batches(best: Settings, batch_size: int) -> Iterator[Settings]:
    """Half as many sequences at once: fewer activations may stay in the caches."""
    if best.micro_batch > 1:
        accumulation = -(-batch_size // -(-best.micro_batch // 2))
        yield replace(best, micro_batch=-(-batch_size // accumulation), accumulation=accumulation)


def _thread_counts(best: Settings) -> Iterator[Settings]:
    """All hardware threads, and where a container allows a part of a core more, the whole cores alone."""
    if os.environ.get("OMP_NUM_THREADS") or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        return
    limit = hardware.cpu_limit()
    counts = {hardware.usable_cores(), hardware.logical_cores() if limit is None else max(1, int(limit))}
    for count in sorted(counts - {best.threads}):
        yield replace(best, threads=count)
