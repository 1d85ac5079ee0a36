"""No dead knobs: every field of a recipe is read by code, and no section is poured into a call."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from architecture.readers import Knowledge, Reader, knowledge, names_of, owner, reachable
from architecture.source import Module, modules
from farthing.recipe.optimization import Cosine, Wsd
from farthing.section import Section

READ_BY_KIND = {"kind"}
"""Chosen by class or by value; that every kind is handled is what the contract tests prove."""


@cache
def known() -> Knowledge:
    return knowledge()


def fields() -> list[tuple[type[Section], str]]:
    return sorted(
        {(section, name) for section in reachable() for name in section.model_fields if name not in READ_BY_KIND},
        key=lambda pair: (pair[0].__name__, pair[1]),
    )


def test_every_field_is_read() -> None:
    # A field declared on a common base is alive if some member of the family has it read.
    alive = {(owner(section, name), name) for section, name in known().read}
    dead = sorted({f"{owner(s, n).__name__}.{n}" for s, n in fields() if (owner(s, n), n) not in alive})
    assert not dead, f"no code reads {', '.join(dead)}"


def test_no_section_is_poured_into_a_call() -> None:
    assert not known().splats, "write the arguments out: " + ", ".join(known().splats)


def read_by(source: str) -> Knowledge:
    found = Knowledge()
    module = Module("farthing.sample", modules()[0].path, source, ast.parse(source))
    Reader(module, found, names=names_of(module)).visit(module.tree)
    return found


WSD = "from farthing.recipe.optimization import Wsd\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (WSD + "def f(s: Wsd): return s.decay", {(Wsd, "decay")}),
        (WSD + "def f(s: 'Wsd | None'): return s.decay", {(Wsd, "decay")}),
        (WSD + "def f(s):\n match s:\n  case Wsd(decay=d): pass", {(Wsd, "decay")}),
        (WSD + "def f(s):\n match s:\n  case Wsd() as w: w.shape", {(Wsd, "shape")}),
        (WSD + "class A:\n s: Wsd\n def f(self): return self.s.decay", {(Wsd, "decay")}),
        (WSD + "class A:\n def __init__(self, s: Wsd): self.s = s\n def f(self): self.s.decay", {(Wsd, "decay")}),
        ("from farthing.recipe import optimization as o\ndef f(s: o.Cosine): return s.floor", {(Cosine, "floor")}),
        (WSD + "def f(s: Wsd): return s.model_dump(include={'decay'})", {(Wsd, "decay")}),
        (WSD + "Either = Wsd | int\ndef f(s: Either): return s.decay", {(Wsd, "decay")}),
        ("def f(other): return other.decay", set()),
        (WSD + "def f(s: Wsd, other): return other.decay", set()),
    ],
)
def test_the_check_follows_types_not_names(source: str, expected: set[tuple[type[Section], str]]) -> None:
    assert read_by(source).read == expected


@pytest.mark.parametrize("call", ["g(**s.model_dump())", "g(**vars(s))", "g(**dict(s))", "g(**s.__dict__)"])
def test_the_check_finds_splats(call: str) -> None:
    assert read_by(f"{WSD}def f(s: Wsd): {call}").splats
