"""A recipe's text as token files for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from farthing import assemble
from farthing.api.recipes import Overrides, resolve
from farthing.data.token_files import SHARD_TOKENS, write_shards
from farthing.errors import UserError
from farthing.recipe import Recipe
from farthing.sinks.reading import Reading
from farthing.storage import cache_folder, new_folder, write_text

_STEMS = {"train": "train", "validation": "val", "test": "test"}
"""parts of a text, as llm.c calls them"""


@dataclass(frozen=True)
class TokenFiles:
    """What was written.

    Args:
        folder: where it is; the tokenizer.json lies beside the shards.
        tokens: of each part, by its name.
        shards: how many files of each part, by its name.
        vocab_size: tokens of the tokenizer.
    """

    folder: Path
    tokens: dict[str, int]
    shards: dict[str, int]
    vocab_size: int


def export_tokens(
    recipe: str | Recipe,
    overrides: Overrides = (),
    *,
    to: str | Path,
    shard_tokens: int = SHARD_TOKENS,
    quiet: bool = True,
) -> TokenFiles:
    """Write the tokens of a recipe's text as llm.c's shards into a new folder.

    Args:
        recipe: a recipe file, a shipped recipe's name, or a Recipe.
        overrides: of the recipe.
        to: the folder to make; it must not exist.
        shard_tokens: tokens of a shard at most.
        quiet: show no progress.

    Raises:
        UserError: the folder exists, the text cannot be read, or its tokens do not fit; nothing has been written.
    """
    folder, resolved = Path(to), resolve(recipe, overrides)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"--to {to}: exists already; name a folder that does not, or remove it first")
    if shard_tokens < 1:
        raise UserError(f"--shard-tokens {shard_tokens}: must be at least 1")
    with Reading(quiet=quiet) as reading:
        text = assemble.read_text(resolved, directory=Path.cwd(), cache=cache_folder(), report=reading)
        if text.tokenizer.vocab_size > 1 << 16:
            raise UserError(
                f"tokenizer: {text.tokenizer.vocab_size:,} tokens, but llm.c's shards hold 16 bits each; "
                "use one of at most 65,536"
            )
        reading("writing", 0, 0)
        parts = {"train": text.train, "validation": text.validation, "test": text.test}
        there = {name: part for name, part in parts.items() if part is not None}
        try:
            with new_folder(folder, exclusive=True) as new:
                write_text(new / "tokenizer.json", text.tokenizer.to_json())
                written = {
                    name: write_shards(part, new, stem=_STEMS[name], shard_tokens=shard_tokens)
                    for name, part in there.items()
                }
        except OSError as error:
            raise UserError(f"--to {to}: cannot be written: {error.strerror or error}") from None
    return TokenFiles(
        folder,
        tokens={name: len(part.tokens_N) for name, part in there.items()},
        shards={name: len(files) for name, files in written.items()},
        vocab_size=text.tokenizer.vocab_size,
    )
