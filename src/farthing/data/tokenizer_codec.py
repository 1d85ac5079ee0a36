"""Tokenizer: text to tokens and back, whatever the tokenizer's kind, and never a byte lost on the way."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tokenizers

from farthing.data import tokenizer_json
from farthing.data.tokenizer_words import pieces_of, utf8, words_of
from farthing.errors import UserError

LONG = 1 << 18
"""characters above which a text is encoded in pieces"""

_REMEMBERED_WORDS = 400_000
_REMEMBERED_LENGTH = 256

# Text that any sound tokenizer gives back: every byte value in UTF-8, each plane, and what normalisers like to change.
_PROBES = (
    "".join(map(chr, range(0x100))),
    "".join(chr(point) for point in range(0x100, 0x110000, 0x3F5) if not 0xD800 <= point < 0xE000),
    "  two spaces, \n\n\ta tab\r\nand trailing  ",
    "İstanbul ﬁne ① e\u0301 \u00e9 ΑΣ ß \u3000 \u200b CASE case",
    "word",
)


class Tokenizer:
    """A tokenizer of the `tokenizers` library with special tokens off: whatever a text contains stays text.

    Make one with `build_tokenizer` or `Tokenizer.from_json`.

    Attributes:
        vocab_size: number of tokens, the separator included; ids are 0 to vocab_size - 1.
        separator: id of the token that ends a document; no text encodes to it.
        unknown: id of the token that stands for what the vocabulary lacks; None if nothing is out of vocabulary.
        lossy: None if every text survives encoding and decoding, else what does not, in a few words.
        dtype: the smallest of uint16 and uint32 that holds every id.
    """

    def __init__(self, json_text: str, *, specification: tokenizer_json.Specification) -> None:
        self._json = json_text
        self._library = tokenizer_json.load(specification)
        # The library turns a special token's name inside a text into the token itself unless told not to.
        self._library.encode_special_tokens = True
        separator = self._library.token_to_id(tokenizer_json.separator_of(specification))
        assert separator is not None
        self.separator: int = separator
        self.vocab_size: int = self._library.get_vocab_size(with_added_tokens=True)
        self.dtype: type[np.uint16] | type[np.uint32] = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        self.unknown = tokenizer_json.unknown_of(specification)
        self._pieces = tokenizer_json.byte_level_pieces(specification)
        self._is_bytes = tokenizer_json.is_bytes(specification)
        self._in_words = tokenizer_json.splits_like_gpt2(specification)
        self._words: dict[str, bytes] = {}
        self.lossy = self._find_loss()

    @classmethod
    def from_json(cls, text: str, *, separator: str | None = None, where: str = "tokenizer.json") -> Tokenizer:
        """Load a tokenizer.json of the `tokenizers` library.

        Args:
            text: the file's contents.
            separator: the token that ends a document; None finds it again in what `to_json` gave.
            where: the file's name, for messages.

        Raises:
            UserError: the JSON is invalid or damaged, the separator is not in the vocabulary, or text could hold it.
        """
        try:
            return cls._examined(text, separator, where)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise UserError(f"{where}: a part of it is not of the kind it should be ({error}); it is damaged") from None
        except BaseException as error:
            # A damaged model makes the library panic, which in Python is no Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise UserError(f"{where}: the tokenizers library fails on it ({error}); it is damaged") from None

    @classmethod
    def _examined(cls, text: str, separator: str | None, where: str) -> Tokenizer:
        specification = tokenizer_json.parse(text, where=where)
        if separator is not None:
            tokenizer_json.load(specification, where=where)  # what the library refuses is refused before it is changed
            specification = tokenizer_json.with_separator(specification, separator)
            library = tokenizer_json.load(specification, where=where)
            text = json.dumps(json.loads(library.to_str()), ensure_ascii=False, indent=1)
        made = cls(text, specification=specification)
        name = made.separator_text
        if made._holds_separator(f"{name} {name}{name}"):
            raise UserError(
                f"tokenizer.separator: text that contains {name!r} would end a document; name a token that no text makes"
            )
        return made

    def to_json(self) -> str:
        """The tokenizer as the `tokenizers` library writes it; any program that reads tokenizer.json can load it."""
        return self._json

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json()`, in hexadecimal."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    @property
    def separator_text(self) -> str:
        """The separator as it is written in the vocabulary."""
        return str(self._library.id_to_token(self.separator))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no separator is added, and special tokens written out in it stay text.

        Raises:
            UserError: the text holds half of a surrogate pair, which no UTF-8 file can.
        """
        return self.encode_batch_arrays([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, which is faster."""
        return [array.tolist() for array in self.encode_batch_arrays(texts)]

    def encode_batch_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts at once, as 1-D arrays of `dtype`: the fastest way."""
        arrays: list[np.ndarray] = []
        group: list[str] = []
        size = 0
        for text in texts:
            if size + len(text) > LONG and group:
                arrays += self._encode_group(group)
                group, size = [], 0
            if len(text) > LONG:
                arrays.append(np.concatenate(list(self.encode_long(text))))
            else:
                group.append(text)
                size += len(text)
        return arrays + self._encode_group(group)

    def encode_long(self, text: str) -> Iterator[np.ndarray]:
        """The same tokens as `encode`, piece by piece, in memory bounded by a piece (see `pieces_of`).

        Only tokenizers over bytes or GPT-2's words can be cut; others give the whole text as one piece.
        """
        if self._is_bytes or self._in_words:
            for piece in pieces_of(text, LONG, anywhere=self._is_bytes):
                yield from self._encode_group([piece])
        else:
            yield from self._encode_by_library([text])

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids stand for; separators and other special tokens are nothing.

        A character whose bytes are incomplete becomes U+FFFD.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        numbers = [int(token) for token in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            wrong = next(token for token in numbers if not 0 <= token < self.vocab_size)
            raise UserError(f"token {wrong} is not in the vocabulary: ids are 0 to {self.vocab_size - 1}")
        if self._pieces is None:
            return str(self._library.decode(numbers, skip_special_tokens=True))
        return b"".join([self._pieces[token] for token in numbers]).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for, in the middle of a text; none for special tokens."""
        if not 0 <= token < self.vocab_size:
            raise UserError(f"token {token} is not in the vocabulary: ids are 0 to {self.vocab_size - 1}")
        if self._pieces is not None:
            return self._pieces[token]
        written = str(self._library.id_to_token(token))
        if written.startswith("<0x") and written.endswith(">") and len(written) == 6:
            return bytes.fromhex(written[3:5])
        # After another token, so that a decoder which trims the start of the text leaves it alone.
        return self.decode([token, token])[len(self.decode([token])) :].encode()

    def token_text(self, token: int) -> str:
        """A token for human eyes: its text, with control characters and broken UTF-8 escaped; specials as written."""
        piece = self.token_bytes(token)
        if not piece:
            return str(self._library.id_to_token(token))
        text = piece.decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    def _encode_group(self, texts: list[str]) -> list[np.ndarray]:
        """Encode texts none of which is long, together."""
        if self._is_bytes:
            return [np.frombuffer(utf8(text), dtype=np.uint8).astype(self.dtype) for text in texts]
        if not self._in_words:
            return self._encode_by_library(texts)
        split = [words_of(text) for text in texts]
        tokens_of = self._learn([words for words in split if words is not None])
        slow = [text for text, words in zip(texts, split, strict=True) if words is None]
        rest = iter(self._encode_by_library(slow) if slow else [])
        # A bytearray, so that the array can be written to.
        return [
            next(rest) if words is None else np.frombuffer(bytearray().join(map(tokens_of, words)), self.dtype)
            for words in split
        ]

    def _learn(self, split: list[list[str]]) -> Callable[[str], bytes]:
        """What gives each of these words' tokens, as the bytes of an array; words are remembered between calls."""
        words, known = set().union(*split), self._words
        unseen = sorted(words.difference(known))
        if len(known) + len(unseen) > _REMEMBERED_WORDS:
            # A new table: other threads may still be reading the old one.
            known, unseen = {}, sorted(words)
            self._words = known
        made = self._library.encode_batch_fast(unseen, add_special_tokens=False) if unseen else []
        fresh = {word: self._array(encoding).tobytes() for word, encoding in zip(unseen, made, strict=True)}
        if unseen and len(max(unseen, key=len)) > _REMEMBERED_LENGTH:
            return (known | fresh).__getitem__
        known.update(fresh)
        return known.__getitem__

    def _encode_by_library(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        try:
            return [self._array(made) for made in self._library.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:
            raise UserError(f"the tokenizer cannot encode a text: {error}") from error

    def _array(self, encoding: tokenizers.Encoding) -> np.ndarray:
        return np.array(encoding.ids, dtype=self.dtype)

    def _holds_separator(self, text: str) -> bool:
        try:
            return self.separator in self.encode(text)
        except UserError:
            return False

    def _find_loss(self) -> str | None:
        for probe in _PROBES:
            try:
                back = self.decode(self.encode(probe))
            except UserError as error:
                return str(error)
            if back != probe:
                at = next((i for i, (a, b) in enumerate(zip(probe, back, strict=False)) if a != b), 0)
                return f"{probe[at : at + 12]!r} comes back as {back[at : at + 12]!r}"
        return None
