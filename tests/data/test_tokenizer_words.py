"""Words: our split is the library's, for every character it claims to know; cuts never change an encoding."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from farthing.data.tokenizer_words import pieces_of, roughly_words_of, words_of

LIBRARY = pre_tokenizers.ByteLevel(add_prefix_space=False)

# Characters that meet at the seams of GPT-2's expression, and some of every script, plane and kind of space.
SEAMS = st.text(alphabet="aZé我ñ09²Ⅷ.,'-_@ \n\t\r\x0b\x1c\x85\xa0\u2003\u200b\u3000。！🙂\u0301strevmld", max_size=30)
ANYTHING = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


def by_library(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in LIBRARY.pre_tokenize_str(text)]


@given(st.one_of(SEAMS, ANYTHING))
@example("we've  said\n\n 'twas 12 o'clock...   \n")
def test_words_are_those_of_the_library(text: str) -> None:
    words = words_of(text)
    assert words is None or words == by_library(text)
    assert words is not None or not text.isascii()
    assert "".join(roughly_words_of(text)) == text


def test_every_known_character_has_the_class_that_the_library_gives_it() -> None:
    # Each character stands beside a letter, a number, a mark and a line's end, and joins one of them or none.
    known = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000 and words_of(chr(p)) is not None]
    assert len(known) > 45_000
    for start in range(0, len(known), 1000):
        text = "".join(f"a{c}1{c}.{c}\n{c}" for c in known[start : start + 1000])
        assert words_of(text) == by_library(text)


def test_common_scripts_are_known() -> None:
    for text in (
        "naïve café — “quoted”…",
        "Привет, мир",
        "你好，世界。",
        "こんにちは",
        "안녕하세요",
        "مرحبا",
        "नमस्ते",
        "🎉🚀",
        "αβγ €5",
    ):
        assert words_of(text) is not None, text
    assert words_of("\U00010d40") is None  # a digit of Unicode 16: settled nowhere yet


@given(st.one_of(SEAMS, ANYTHING, st.text("ab .\n", max_size=200)), st.integers(1, 12))
def test_pieces_are_the_text_and_a_safe_cut_leaves_every_word_whole(text: str, size: int) -> None:
    pieces = list(pieces_of(text, size))
    assert "".join(pieces) == text
    assert all(pieces) or pieces == [""]
    # A piece longer than its limit was cut where no safe place came in time; everywhere else words must survive.
    if all(len(piece) < 3 * size for piece in pieces) and not any(len(piece) == 2 * size for piece in pieces):
        assert [word for piece in pieces for word in by_library(piece)] == by_library(text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50), st.integers(1, 9))
def test_pieces_anywhere_have_exactly_their_size(text: str, size: int) -> None:
    pieces = list(pieces_of(text, size, anywhere=True))
    assert "".join(pieces) == text
    assert all(len(piece) == size for piece in pieces[:-1])


def test_pieces_stay_bounded_where_nothing_is_safe() -> None:
    pieces = list(pieces_of("x" * 10_000, 100))
    assert max(map(len, pieces)) <= 200
    prose = "It was the best of times, it was the worst of times.\n" * 200
    assert max(map(len, pieces_of(prose, 100))) <= 110
    assert all(re.match(r"\s|[,.]", piece) for piece in list(pieces_of(prose, 100))[1:])
