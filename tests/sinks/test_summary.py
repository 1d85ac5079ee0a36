"""The summary tells the score first, is safe, fits, and reads as plain text where there is no terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console as Terminal

from farthing.sinks.summary import Summary, render, show

FULL = Summary(
    run="runs/titles-[b]small\x1b[31m",
    status="finished",
    validation={
        "bits_per_byte": 1.64321,
        "nats_per_token": 3.2121,
        "perplexity": 24.83,
        "nats_per_character": 1.14,
        "tokens": 284_109,
        "bytes": 1_208_330,
        "legacy_titles": 1.2345,
        "legacy_coverage": 0.87,
    },
    spent={"steps": 1240, "tokens": 10_158_080, "epochs": 3.41, "flops": 1.23e14, "seconds": 252.0, "money": 0.0381},
    parameters=4_212_345,
    wall_seconds=281.0,
    references={"xz -9": 1.52, "zstd -19": 1.71, "unigram": 4.93},
    sample="def parse(text):\n\treturn text\x1b]0;owned\x07",
    next_commands=['farthing sample runs/titles-small "def "'],
)


def shown(summary: Summary, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    show(summary, stream=stream)
    stream.seek(0)
    return stream.read()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_everything_is_told(encoding: str) -> None:
    text = shown(FULL, encoding)
    for wanted in (
        "runs/titles-[b]small", "1.6432 bits per byte", "284,109 held-out tokens", "1,208,330", "3.2121 nats per token",
        "perplexity 24.83", "1.1400 nats per character", "1.2345", "87.0%", "4,212,345 parameters", "1,240 steps",
        "10.2 M tokens", "3.41 epochs", "1.23e14 FLOP", "4 min 12 s of training", "4 min 41 s in all", "cost 0.0381",
        "def parse(text):", "farthing sample runs/titles-small",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert not re.search(r" $", text, re.MULTILINE), "no spaces at the ends of lines"


def test_start_up_is_told_with_what_was_long_in_it() -> None:
    stages = {"seconds": 60.4, "text": 1.0, "plan": 4.0, "trial": 5.2, "build": 0.4, "compile": 49.8, "first_step": 0.3}
    assert re.search(
        r"start-up  1 min 00 s, of which trial 5\.2 s, compile 50 s$", shown(replace(FULL, startup=stages)), re.M
    )
    quick = {**stages, "seconds": 2.1, "trial": 0.0, "compile": 0.0}
    assert re.search(r"start-up  2\.1 s$", shown(replace(FULL, startup=quick)), re.M)
    assert "start-up" not in shown(FULL), "a run of an earlier version"


def test_the_score_comes_first_and_stands_among_the_references() -> None:
    text = shown(FULL)
    order = [
        text.index(name) for name in ("bits per byte", "xz -9", "this model", "zstd -19", "unigram", "nats per token")
    ]
    assert order == sorted(order)


def test_bars_are_in_proportion() -> None:
    bars = {line.split()[0]: line.count("━") for line in shown(FULL).splitlines() if "━" in line}
    assert bars["unigram"] == 30
    assert bars["xz"] == round(30 * 1.52 / 4.93)


def test_what_is_missing_is_left_out() -> None:
    bare = replace(
        FULL, validation={}, references={}, sample="", next_commands=(), spent={"steps": 0}, status="preempted"
    )
    text = shown(bare)
    assert "preempted" in text and "0 steps" in text
    for absent in ("bits per byte", "xz", "it writes", "next", "cost", "legacy", "score"):
        assert absent not in text


@pytest.mark.parametrize("width", [30, 44, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits_any_width(width: int, encoding: str) -> None:
    stream = io.StringIO()
    Terminal(file=stream, width=width, markup=False).print(render(FULL, encoding=encoding))
    assert max(len(line) for line in stream.getvalue().splitlines()) <= width
    assert ("━" in stream.getvalue()) == (encoding == "utf-8")


def test_the_edge_of_a_sample_stays_where_a_line_wraps() -> None:
    stream = io.StringIO()
    long = replace(FULL, sample="word " * 40)
    Terminal(file=stream, width=50, markup=False).print(render(long))
    lines = [line for line in stream.getvalue().splitlines() if "word" in line]
    assert len(lines) > 3 and all("│" in line for line in lines)
