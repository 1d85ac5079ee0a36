"""Tokenizers on the terminal: built from a recipe, measured on its validation text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from farthing import assemble, config
from farthing.cli.tables import clean, print_columns, print_rows
from farthing.data.inspect import TokenizerReport, TokenUse, compare, inspect
from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError
from farthing.model.cost import count_parameters
from farthing.recipe import Recipe
from farthing.session import check_writable
from farthing.sinks.reading import Reading
from farthing.storage import cache_folder, read_json


def of_recipe(name: str, overrides: Sequence[str], *, quiet: bool) -> tuple[Tokenizer, TokenizerReport]:
    """A recipe's tokenizer, and its report on the recipe's validation text."""
    recipe = config.load(Recipe, name, overrides)
    with Reading(quiet=quiet) as reading:
        text = assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=reading)
        reading("measuring the tokenizer", 0, 0)
        report = inspect(
            text.tokenizer,
            text.validation.texts(),
            d_model=recipe.model.d_model,
            parameters=count_parameters(recipe.model, text.tokenizer.vocab_size),
        )
    return text.tokenizer, report


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        UserError: it is a folder or is there already, or its folder is not there or cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"--to {path}: is a folder; name a file")
    if path.exists():
        raise UserError(f"--to {path}: exists and is not overwritten; name another file, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"--to {path}: no such folder as {path.parent}")
    check_writable(path.parent)


def overrides_of(candidate: str) -> list[str]:
    """`bpe:8192` as recipe overrides.

    Raises:
        UserError: the size is not a whole number.
    """
    kind, colon, size = candidate.partition(":")
    if not colon:
        return [f"tokenizer.kind={kind}"]
    if kind in ("gpt2", "file"):
        return [f"tokenizer.kind={kind}", f"tokenizer.path={size}", *_separator(kind, size)]
    if not size.isdigit():
        raise UserError(f"{candidate!r}: write KIND:SIZE, for example bpe:8192")
    return [f"tokenizer.kind={kind}", f"tokenizer.vocab_size={size}"]


def _separator(kind: str, path: str) -> list[str]:
    """The separator of a tokenizer.json as an override, where it has just one special token to take for it."""
    try:
        special = [token["content"] for token in read_json(Path(path))["added_tokens"] if token["special"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [f"tokenizer.separator={special[0]}"] if kind == "file" and len(special) == 1 else []


def usage(path: Path) -> str:
    """The overrides that use a tokenizer file, as a person types them."""
    return " ".join(shlex.quote(one) for one in overrides_of(f"file:{path}"))


def show(found: Mapping[str, TokenizerReport]) -> None:
    """One row a tokenizer."""
    names = ("tokenizer", "vocabulary", "bytes/token", "used", "unigram", "tokens/doc", "of model")
    rows = [
        (
            row["name"],
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['coverage']:.1%}",
            f"{row['unigram_bits_per_byte']:.3f}",
            f"{row['median_length']:,}",
            "" if row["parameter_share"] is None else f"{row['parameter_share']:.1%}",
        )
        for row in compare(found)
    ]
    print_columns(names, rows)
    for name, report in found.items():
        if report.unknown_rate:
            print(clean(f"note: {name} does not know {report.unknown_rate:.2%} of the tokens"))
        if report.lossy:
            print(clean(f"note: {name} loses text: {report.lossy}"))


def show_one(name: str, report: TokenizerReport) -> None:
    """Everything there is to say of one tokenizer."""
    lengths = ", ".join(f"{length:,} ({share} %)" for share, length in report.length_percentiles)
    used = f"{report.tokens_seen:,} tokens ({report.coverage:.1%}) on this text"
    rows = [
        ("vocabulary", f"{report.vocab_size:,} tokens"),
        ("used", used),
        ("text", f"{report.tokens:,} tokens, {report.bytes:,} bytes, {report.documents:,} documents (validation)"),
        ("bytes per token", f"{report.bytes_per_token:.3f}"),
        ("characters per token", f"{report.characters_per_token:.3f}"),
        ("unigram model", f"{report.unigram_bits_per_byte:.3f} bits per byte: what token frequencies alone give"),
        ("unknown", f"{report.unknown_rate:.3%} of the tokens"),
        ("lossless", "yes" if report.lossy is None else f"no: {report.lossy}"),
        ("tokens a document", f"at most {lengths}"),
        ("most used", _listed(report.most_used)),
        ("least used", _listed(report.least_used)),
    ]
    if report.parameter_share is not None:
        rows.append(("of the model", f"{report.parameter_share:.1%} of the recipe's parameters"))
    rows.append(("count at rank", ", ".join(f"{rank:,}: {count:,}" for rank, count in report.frequency_curve)))
    print_rows(name, rows)


def _listed(tokens: Sequence[TokenUse]) -> str:
    return "  ".join(f"{token.text!r} {token.count:,}" for token in tokens[:12])
