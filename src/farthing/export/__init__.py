"""What comes out of a run: folders that other people's programs load, proven equal before they are kept.

Each format is a module with a `write(folder, made, *, dtype)`, a Writer: huggingface, llmc, gguf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from farthing.errors import UserError
from farthing.storage import new_folder

if TYPE_CHECKING:
    from torch import Tensor

    from farthing.data.tokenizer_codec import Tokenizer
    from farthing.recipe.model import Model
    from farthing.recipe.running import Sample

Dtype = Literal["fp32", "bf16"]
"""number format of exported weights"""


@dataclass(frozen=True)
class Exportable:
    """A trained model as every format's writer takes it.

    Args:
        section: the recipe's [model].
        vocab_size: rows of the token embedding.
        weights: fp32 on the CPU, under the names of `GPT`'s state dictionary, averaged where the run averages them; a
            tied head has none of its own.
        tokenizer: the run's.
        sample: the recipe's [sample], from which others learn how to draw.
        texts: documents to compare on, from the run's validation text; empty where that can no longer be read.
        name: the run's.
        step: optimizer steps that the weights have seen.
    """

    section: Model
    vocab_size: int
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    sample: Sample
    texts: Sequence[str]
    name: str
    step: int

    @property
    def separator(self) -> int:
        """The token that ends a document."""
        return self.tokenizer.separator


@dataclass(frozen=True)
class Written:
    """What a writer made of a model.

    Args:
        form: the class or format that reads it, for example LlamaForCausalLM.
        notes: what its reader has to know, a sentence each.
        proof: how it was compared with the original, JSON-ready (differences, tokens compared).
        remote_code: whether loading it runs code that lies in the folder.
    """

    form: str
    notes: tuple[str, ...] = ()
    proof: Mapping[str, Any] = field(default_factory=dict)
    remote_code: bool = False


class Writer(Protocol):
    """Fills an empty folder with a model in one format, and proves that what it wrote reads back the same.

    Raises:
        UserError: the format cannot hold this model; one line, before anything is written.
        FarthingError: what was written does not read back the same.
    """

    def __call__(self, folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
        """Write `made` into `folder`."""


def export(
    target: Path,
    made: Exportable,
    write: Writer,
    *,
    dtype: Dtype,
    complete: Callable[[Path, Written], None] = lambda folder, written: None,
) -> Written:
    """Write a model into a new folder, which is complete or not there.

    Args:
        target: the folder to make.
        made: the model.
        write: of the format that is asked for.
        dtype: number format of the weights.
        complete: adds what else belongs into the folder, once its weights are proven: the model card.

    Raises:
        UserError: the folder exists or cannot be written, or the tokenizer's vocabulary is not that of the weights.
        FarthingError: the writer's proof failed; nothing is left of the folder.
    """
    refuse_existing(target)
    rows = made.weights["embed.weight"].shape[0]
    if not rows == made.vocab_size == made.tokenizer.vocab_size:
        raise UserError(
            f"{target}: not exported: the tokenizer has {made.tokenizer.vocab_size:,} tokens, the weights' embedding "
            f"{rows:,} rows; put back the tokenizer that the model was trained with"
        )
    try:
        with new_folder(target, exclusive=True) as folder:
            written = write(folder, made, dtype=dtype)
            complete(folder, written)
    except FileExistsError:
        if target.parent.is_dir():
            raise _exists(target) from None
        raise UserError(f"{target}: cannot be written: {target.parent} is a file") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
    return written


def refuse_existing(target: Path) -> None:
    """Refuse a target that exists, whatever it is: nothing that was there before is ever replaced.

    Raises:
        UserError: it exists.
    """
    if target.exists() or target.is_symlink():
        raise _exists(target)


def _exists(target: Path) -> UserError:
    return UserError(f"{target}: exists already; name a folder that does not, or remove it first")
