"""Tokenizers on the terminal: built from a recipe, measured on its validation text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from farthing import assemble, config
from farthing.cli.tables import clean, print_rows
from farthing.data.inspect import inspect
from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError
from farthing.model.cost import count_parameters
from farthing.recipe import Recipe
from farthing.sinks.legible import quantity
from farthing.sinks.reading import Reading
from farthing.sinks.summary import terminal
from farthing.storage import cache_folder


def of_recipe(name: str, overrides: Sequence[str], *, quiet: bool) -> tuple[Tokenizer, dict[str, Any]]:
    """A recipe's tokenizer, and its report on the recipe's validation text."""
    recipe = config.load(Recipe, name, overrides)
    with Reading(quiet=quiet) as reading:
        text = assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=reading)
    tokenizer = text.tokenizer
    report = inspect(
        tokenizer,
        text.validation.texts(),
        d_model=recipe.model.d_model,
        parameters=count_parameters(recipe.model, tokenizer.vocab_size),
    )
    return tokenizer, report.as_dict()


def overrides_of(candidate: str) -> list[str]:
    """`bpe:8192` as recipe overrides.

    Raises:
        UserError: the size is not a whole number.
    """
    kind, colon, size = candidate.partition(":")
    if not colon:
        return [f"tokenizer.kind={kind}"]
    if kind in ("gpt2", "file"):
        return [f"tokenizer.kind={kind}", f"tokenizer.path={size}"]
    if not size.isdigit():
        raise UserError(f"{candidate!r}: write KIND:SIZE, for example bpe:8192")
    return [f"tokenizer.kind={kind}", f"tokenizer.vocab_size={size}"]


def show(found: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """One row a tokenizer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tokenizer")
    for name in ("vocabulary", "bytes/token", "used", "unknown", "median length", "of the model"):
        table.add_column(name, justify="right")
    for name, report in found:
        share = report.get("parameter_share")
        table.add_row(
            name,
            f"{report['vocab_size']:,}",
            f"{report['bytes_per_token']:.3f}",
            f"{report['coverage']:.1%}",
            f"{report['unknown_rate']:.2%}",
            f"{report['length_percentiles']['50']:,}",
            "" if share is None else f"{share:.1%}",
        )
    terminal(sys.stdout).print(table)


def show_one(name: str, report: Mapping[str, Any]) -> None:
    """Everything there is to say of one tokenizer."""
    percentiles = ", ".join(f"{key} %: {value:,}" for key, value in report["length_percentiles"].items())
    rows = [
        ("vocabulary", f"{report['vocab_size']:,} tokens"),
        ("bytes per token", f"{report['bytes_per_token']:.3f}"),
        ("characters per token", f"{report['characters_per_token']:.3f}"),
        ("vocabulary used", f"{report['coverage']:.1%} on {quantity(report['tokens'])} validation tokens"),
        ("unknown", f"{report['unknown_rate']:.3%}"),
        ("document length", percentiles),
        ("most used", _listed(report["most_used"])),
        ("least used", _listed(report["least_used"])),
    ]
    if report.get("parameter_share") is not None:
        rows.append(("of the model", f"{report['parameter_share']:.1%} of its parameters"))
    curve = ", ".join(f"{rank:,}: {count:,}" for rank, count in report["frequency_curve"])
    rows.append(("count at rank", curve))
    print_rows(name, rows)


def _listed(tokens: Sequence[Any]) -> str:
    return "  ".join(clean(f"{token[0]!r} {token[1]:,}") for token in tokens[:12])
