"""Preflight: what is wrong with text, tokenizer and budget together, found before anything is spent."""

from __future__ import annotations

from farthing.data.split import TokenSplit
from farthing.errors import UserError
from farthing.recipe.data import TrainedTokenizer

MOST_EPOCHS = 50
"""passes over the same text above which there is a warning"""
UNSEEN_SHARE = 0.1
"""share of the vocabulary that never occurs in the training text above which there is a warning"""

_BYTES = 256

Warning_ = tuple[str, str]
"""A short stable code and a sentence for a person."""


def check_window(train: TokenSplit, validation: TokenSplit, *, context_length: int) -> None:
    """Refuse text too short for one training window.

    Raises:
        UserError: with the tokens there are and the tokens needed.
    """
    needed = context_length + 1
    if len(train.tokens_N) < needed:
        raise UserError(
            f"too little text: the training part has {len(train.tokens_N):,} tokens ({train.bytes:,} bytes in "
            f"{train.documents:,} documents), one window of model.context_length = {context_length} needs {needed:,}; "
            "give more text or a shorter context"
        )
    if not validation.bytes:
        raise UserError(
            f"the validation part has {validation.documents:,} documents and {len(validation.tokens_N):,} tokens, but "
            "not one byte of text: there is nothing to score"
        )


def check_vocabulary(asked: TrainedTokenizer, vocab_size: int) -> None:
    """Refuse a trained vocabulary that the text could not fill.

    Raises:
        UserError: with the largest vocab_size that fits.
    """
    if vocab_size < asked.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {asked.vocab_size}: the training text supports only {vocab_size} tokens; set "
            f"tokenizer.vocab_size = {vocab_size} or less, or give more text"
        )


def unseen_tokens(seen: int, vocab_size: int) -> Warning_ | None:
    """A warning if much of the vocabulary never occurs in the training text: its embeddings will learn nothing.

    The 256 bytes stand in every vocabulary so that no text is without tokens; they may well not occur.
    """
    unseen = max(0, vocab_size - seen - _BYTES)
    share = unseen / vocab_size
    if share <= UNSEEN_SHARE:
        return None
    return (
        "unseen_tokens",
        f"{unseen:,} of {vocab_size:,} tokens of the vocabulary ({share:.0%}) never occur in the training "
        "text; a smaller tokenizer.vocab_size, or one trained on this text, would suit it better",
    )


def leak(name: str, common: int, documents: int, *, most: float) -> Warning_ | None:
    """A warning if held-out documents also stand in the training text: their score flatters."""
    share = common / documents
    if share <= most:
        return None
    return (
        "data_leak",
        f"{common:,} of {documents:,} {name} documents ({share:.1%}) also stand, word for word, in the training text: "
        "its score will look better than it is",
    )


def many_epochs(epochs: float) -> Warning_ | None:
    """A warning if the budget repeats the same text so often that the model can do little but memorise it."""
    if epochs <= MOST_EPOCHS:
        return None
    return (
        "many_epochs",
        f"the budget repeats the training text {epochs:,.1f} times (more than {MOST_EPOCHS}); "
        "more text or a smaller budget would teach more",
    )
