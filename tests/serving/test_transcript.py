"""What is let out of a text: whole characters, nothing of a stop string, the same however tokens cut it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from farthing.serving.transcript import Part, Transcript

LETTERS = "ab€"


def cut_by_characters(text: str, stops: list[str]) -> str | None:
    """The text before the stop string that is complete first, found one character after the other."""
    for end in range(1, len(text) + 1):
        ends = [stop for stop in stops if text[:end].endswith(stop)]
        if ends:
            return text[: end - max(map(len, ends))]
    return None


def written(pieces: list[bytes], stops: list[str]) -> tuple[list[Part[int]], bool]:
    transcript: Transcript[int] = Transcript(pieces.__getitem__, stops)
    parts = []
    for token in range(len(pieces)):
        parts.append(transcript.drawn(token, token))
        if transcript.stopped:
            break
    return [*parts, transcript.end()], transcript.stopped


@given(
    text=st.text(LETTERS, max_size=30),
    cuts=st.sets(st.integers(0, 90)),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4),
)
def test_a_text_ends_before_the_first_complete_stop_however_it_is_cut(
    text: str, cuts: set[int], stops: list[str]
) -> None:
    encoded = text.encode()
    at = [0, *sorted(cut for cut in cuts if 0 < cut < len(encoded)), len(encoded)]
    pieces = [encoded[first:last] for first, last in pairwise(at)]
    parts, stopped = written(pieces, stops)
    expected = cut_by_characters(text, stops)
    assert stopped == (expected is not None)
    assert "".join(part.text for part in parts) == (text if expected is None else expected)
    # Each token is marked once, in order, where it begins; those of the stop string are not.
    marks = [mark for part in parts for mark in part.marks]
    assert [token for _, token in marks] == list(range(len(marks)))
    for offset, token in marks:
        assert offset == len(encoded[: at[token]].decode("utf-8", "ignore"))
    if expected is None:
        assert len(marks) == len(pieces)
    else:
        assert all(offset < len(expected) for offset, _ in marks)


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    transcript: Transcript[int] = Transcript([b"one ", b"s", b"t", b"ep, ", b"sto", b"p!"].__getitem__, ["stop"])
    assert [transcript.drawn(token).text for token in range(6)] == ["one ", "", "", "step, ", "", ""]
    assert transcript.stopped
    assert transcript.end() == Part("")


def test_broken_bytes_become_replacement_characters() -> None:
    parts, _ = written([b"a\xff", b"\xe2\x82", b"b", b"\xe2"], [])
    assert "".join(part.text for part in parts) == "a\ufffd\ufffdb\ufffd"
    assert [mark for part in parts for mark in part.marks] == [(0, 0), (2, 1), (2, 2), (4, 3)]


def test_a_prompt_that_is_repeated_ends_nothing() -> None:
    transcript: Transcript[int] = Transcript([b"stop", b" and ", b"stop"].__getitem__, ["stop"])
    assert transcript.given(0, 7) == Part("stop", ((0, 7),))
    assert transcript.drawn(1).text == " and "
    assert transcript.drawn(2).text == ""
    assert transcript.stopped
