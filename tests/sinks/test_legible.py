"""Nothing that a model or a person wrote can act on the terminal, and numbers read well."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.sinks.legible import duration, legible, memory, money, quantity

ANYTHING = st.text(st.characters(exclude_categories=[]))


@given(ANYTHING, st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]), st.booleans())
def test_no_control_characters_and_always_writable(text: str, encoding: str, lines: bool) -> None:
    shown = legible(text, encoding=encoding, lines=lines)
    shown.encode(encoding)
    allowed = "\n\t" if lines else ""
    assert all(
        character in allowed or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in shown
    )
    assert legible(shown, encoding=encoding, lines=lines) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M"])))
def test_ordinary_text_in_any_script_is_left_alone(text: str) -> None:
    assert legible(text) == text


def test_text_cannot_turn_around_or_overwrite() -> None:
    assert "\u202e" not in legible("abc\u202egnp.exe")
    assert legible("safe\rhidden") == "safe\ufffdhidden"
    assert legible("a\r\nb", lines=True) == "a\nb"
    assert legible("\x1b]52;c;x\x07", encoding="ascii") == "?]52;c;x?"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (245, "4 min 05 s"),
     (3599.6, "1 h 00 min"), (7620, "2 h 07 min"), (273600, "3 d 04 h"), (float("inf"), "?"), (float("nan"), "?")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (937, "937"), (12.345, "12.3"), (999.9996, "1e+03"), (1000, "1.00 k"), (999_499, "999 k"),
     (999_500, "1.00 M"), (4_560_000, "4.56 M"), (27_172_864, "27.2 M"), (1.23e14, "123 T"), (1.2e15, "1.20e15")],
)  # fmt: skip
def test_quantity(number: float, text: str) -> None:
    assert quantity(number) == text


@given(st.floats(1, 9e14))
def test_quantity_keeps_three_digits(number: float) -> None:
    digits, _, prefix = quantity(number).partition(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert float(digits) * scale == pytest.approx(number, rel=0.006)


def test_memory_and_money() -> None:
    assert (memory(512 * 2**20), memory(3 * 2**29)) == ("512 MiB", "1.5 GiB")
    assert (money(0), money(0.0042), money(27.5)) == ("0.00", "0.0042", "27.50")
