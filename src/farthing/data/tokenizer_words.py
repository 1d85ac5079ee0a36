"""Words: GPT-2's split of text before byte-pair encoding, and where a long text may be cut without changing it.

The tokenizers library splits with the same expression at 2 MB/s; `re` does it at 30. The two agree wherever a
character's class (letter, number, space, other) is settled, so anything newer is left to the library.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

from farthing.errors import UserError

_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_EMOJI = "\U0001f300-\U0001faff"
_BMP = 0x10000


def words_of(text: str) -> list[str] | None:
    """The words that GPT-2's expression splits `text` into; None if a character is too new for a certain answer."""
    if text.isascii():
        return _ascii_words().findall(text)
    unsettled, words = _unicode_words()
    return None if unsettled.search(text) else words.findall(text)


def roughly_words_of(text: str) -> list[str]:
    """As `words_of`, but unsettled characters count as punctuation: good for counting, not for encoding."""
    return _ascii_words().findall(text) if text.isascii() else _unicode_words()[1].findall(text)


def pieces_of(text: str, size: int, *, anywhere: bool = False) -> Iterator[str]:
    """Cut `text` into pieces of about `size` characters, each encoding on its own as it does in the whole.

    A cut lies where GPT-2's expression splits whatever comes before and after: between a visible character and the
    white space after it, or between a letter and the punctuation after it. Where neither comes within `size`
    characters more (a megabyte without a space), the cut is made anyway, so that memory stays bounded: the
    piece's tokens then differ from the uncut text's at that one place, and still decode to the same text.

    Args:
        text: the text.
        size: characters after which the next cut is looked for.
        anywhere: cut at exactly `size` characters, for encodings without words.
    """
    assert size > 0, size
    start = 0
    while len(text) - start > size:
        safe = None if anywhere else _cuts().search(text, start + size - 1, start + 2 * size)
        end = start + size * (1 if anywhere else 2) if safe is None else safe.start() + 1
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def utf8(text: str) -> bytes:
    """The text's bytes in UTF-8.

    Raises:
        UserError: it holds half of a surrogate pair, which no UTF-8 file can (JSON's escapes can make one).
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of a text is {text[error.start]!r}, half of a surrogate pair, which UTF-8 cannot hold; "
            "repair the file that it comes from"
        ) from error


def _expression(letters: str, numbers: str) -> re.Pattern[str]:
    other = f"[^{_SPACES}{letters}{numbers}]"
    return re.compile(
        f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?{other}+|[{_SPACES}]+(?![^{_SPACES}])|[{_SPACES}]+"
    )


@functools.cache
def _ascii_words() -> re.Pattern[str]:
    return _expression("A-Za-z", "0-9")


@functools.cache
def _cuts() -> re.Pattern[str]:
    letters, numbers, _ = _classes()
    return re.compile(rf"[!-~{letters}{numbers}][ \n\t\r]|[{letters}][!-/:-@\[-`{{-~]")


@functools.cache
def _unicode_words() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds an unsettled character, and the split for all others."""
    letters, numbers, settled = _classes()
    return re.compile(f"[^{settled}]"), _expression(letters, numbers)


@functools.cache
def _classes() -> tuple[str, str, str]:
    """Letters, numbers and all settled characters, as the insides of brackets.

    Settled are those of the basic plane that Unicode 3.2 (2002) knew, with the class they have today, and emoji.
    """
    letters, numbers, settled = [], [], []
    for point in range(_BMP):
        character = chr(point)
        if unicodedata.ucd_3_2_0.category(character) in ("Cn", "Cs"):
            continue
        settled.append(point)
        category = unicodedata.category(character)
        if category[0] == "L":
            letters.append(point)
        elif category[0] == "N":
            numbers.append(point)
    return _ranges(letters), _ranges(numbers), _ranges(settled) + _EMOJI


def _ranges(points: list[int]) -> str:
    starts = [point for before, point in zip([-2, *points], points, strict=False) if point != before + 1]
    ends = [point for point, after in zip(points, [*points[1:], -2], strict=True) if after != point + 1]
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))
