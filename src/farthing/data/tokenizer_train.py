"""Training tokenizers: the sample they learn from, byte-pair encoding, and how a vocabulary becomes a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from farthing.data import tokenizer_json
from farthing.data.tokenizer_words import pieces_of, roughly_words_of, utf8
from farthing.errors import UserError

SEPARATOR = "<eos>"
"""the separator of the tokenizers trained here, written so that no text can make it"""

Texts = Callable[[], Iterator[str]]

_PIECE = 1 << 16
_LONGEST_WORD = 64
_MOST_BYTES = 1_000_000_000
_MOST_WORDS = 1_000_000


def sample(texts: Texts, sample_bytes: int) -> Iterator[str]:
    """A part of the text of at most `sample_bytes`, drawn evenly over it, in pieces; all of it where it is smaller.

    The texts are read twice. Text with more than a million different words (base64, genomes) gives a smaller
    sample, since a trainer's memory grows with these.

    Args:
        texts: yields the documents' text; each call starts anew.
        sample_bytes: the most UTF-8 bytes to yield.

    Raises:
        UserError: there is no text, or half a surrogate pair in it.
    """
    total, wanted = 0, min(sample_bytes, _MOST_BYTES)
    words: set[str] = set()
    for piece in _pieces(texts):
        total += len(utf8(piece))
        if len(words) < _MOST_WORDS:
            words.update(roughly_words_of(piece))
            if len(words) >= _MOST_WORDS:
                wanted = min(wanted, total)
    if total == 0:
        raise UserError("tokenizer: there is no text to train on; the training documents are empty")
    return _draw(texts, wanted, total)


def _draw(texts: Texts, wanted: int, total: int) -> Iterator[str]:
    seen = taken = 0
    first = ""
    for piece in _pieces(texts):
        first = first or piece
        size = len(utf8(piece))
        seen += size
        # Taken when half of it lies within the share due by now, so that what is taken never falls behind or ahead.
        if total <= wanted or (taken + size <= wanted and (2 * taken + size) * total <= 2 * wanted * seen):
            taken += size
            yield piece
    if not taken:
        yield first[: max(1, wanted // 4)]  # a character has at most four bytes


def _pieces(texts: Texts) -> Iterator[str]:
    for text in texts():
        yield from pieces_of(text, _PIECE)


def train_bpe(texts: Iterator[str], *, vocab_size: int) -> str:
    """Learn byte-pair encoding over bytes, within GPT-2's words (Sennrich et al. 2016, Radford et al. 2019).

    Pairs that occur once are not merged and no token is longer than 64 bytes, so that the vocabulary is smaller than
    asked for where the text supports no more.

    Args:
        texts: what to learn from.
        vocab_size: most tokens, the 256 bytes and the separator included.

    Returns:
        The contents of a tokenizer.json.
    """
    tokenizer = Tokenizer(models.BPE())
    # A word of a megabyte would cost its square, so that a trainer sees it in parts.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.FixedLength(_LONGEST_WORD)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(tokenizer_json.byte_alphabet()),
        max_token_length=_LONGEST_WORD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return assemble(model)


def byte_tokenizer() -> str:
    """A tokenizer.json whose tokens are the 256 bytes, each its own number, and the separator."""
    return assemble({"type": "BPE", "vocab": tokenizer_json.byte_alphabet(), "merges": []})


def assemble(model: tokenizer_json.Specification, *, separator: str = SEPARATOR) -> str:
    """A tokenizer.json over bytes with GPT-2's words: its model, and the separator as the last token if it is new."""
    vocabulary = model["vocab"]
    number = vocabulary.get(separator, len(vocabulary)) if isinstance(vocabulary, dict) else len(vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [tokenizer_json.special_token(separator, number)],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        },
        ensure_ascii=False,
    )
