"""The documents tell the truth: every command in them parses, every event and field is named."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.small import Command
from farthing import config
from farthing.budget import Spent
from farthing.cli import app
from farthing.cli.options import split_words
from farthing.events import EVENTS_VERSION, Event
from farthing.recipe import Recipe

ROOT = Path(__file__).parents[2]
EVENTS = (ROOT / "docs" / "events.md").read_text("utf-8")
KINDS = {event.kind: event for event in Event.__subclasses__()}
DOCUMENTS = [
    "README.md",
    "docs/climb.md",
    "docs/compare.md",
    "docs/events.md",
    "docs/export.md",
    "docs/footguns.md",
    "docs/from-text-to-the-hub.md",
    "docs/tasks.md",
    "docs/harness.md",
    "docs/import.md",
    "docs/reliability.md",
    "docs/search.md",
    "docs/serving.md",
    "docs/publishing.md",
    "docs/report.md",
    "docs/tour.md",
    "docs/yardstick.md",
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def section(kind: str) -> str:
    return EVENTS.split(f"### {kind}\n")[1].split("\n### ")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_and_field_is_described_and_shown(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(KINDS[kind])}
    described = set(re.findall(r"^\| `(\w+)` \|", section(kind).partition("| code |")[0], re.MULTILINE))
    assert described == fields
    (example,) = blocks(section(kind), "json")
    assert example.count("\n") == 1
    shown = json.loads(example)
    assert shown.keys() == fields | {"kind", "time"}
    assert shown["kind"] == kind
    if "spent" in fields:
        assert shown["spent"].keys() == {field.name for field in dataclasses.fields(Spent)}


def test_no_event_is_described_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (\w+)$", EVENTS, re.MULTILINE)) == KINDS.keys()
    assert f"this is version {EVENTS_VERSION}" in EVENTS
    told = EVENTS.split("## spent")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", told, re.MULTILINE)) == {field.name for field in dataclasses.fields(Spent)}


def test_every_code_of_a_notice_is_described() -> None:
    # The server's refusals have codes of their own, which OpenAI's clients know.
    files = [path for path in (ROOT / "src").rglob("*.py") if path.parent.name != "serving"]
    sources = "\n".join(path.read_text("utf-8") for path in files)
    used = set(re.findall(r"(?:\bcode=|_notice\(|\btell, |\btell\(\s*)\"(\w+)\"", sources))
    told = section("notice").split("| code |")[1]
    assert used == set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE))


def test_the_reader_in_the_document_reads(trained: Path) -> None:
    (trained / "reader.py").write_text(
        next(block for block in blocks(EVENTS, "python") if "def read" in block), "utf-8"
    )
    read = runpy.run_path(str(trained / "reader.py"))["read"]
    path = trained / "runs" / "done" / "events.jsonl"
    whole = list(read(path))
    assert whole[0]["kind"] == "started"
    assert whole[-1]["kind"] == "finished"
    for event in whole:
        assert event.keys() == {field.name for field in dataclasses.fields(KINDS[event["kind"]])} | {"kind", "time"}
    path.write_bytes(path.read_bytes()[:-7])
    assert list(read(path)) == whole[:-1]


def commands() -> list[tuple[str, str]]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text("utf-8")
        lines = [line.removeprefix("$ ") for block in blocks(text, r"\w*") for line in block.splitlines()]
        # `farthing resume` in a sentence is a name, not a command.
        inline = [line for line in re.findall(r"`(farthing [^`]+)`", text) if line.count(" ") > 1]
        for line in dict.fromkeys([*lines, *inline]):
            if line.startswith("farthing ") and not re.search(r"\.\.\.|[|\\]|PATH|path=value", line):
                found.append((name, line))
    return found


@pytest.mark.parametrize(("document", "line"), commands(), ids=lambda value: value[:50])
def test_every_command_is_one(document: str, line: str, desk: Path) -> None:
    words = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(app)
    with group.make_context("farthing", list(words), resilient_parsing=True) as context:
        verb, verb_name = group, ""
        while hasattr(verb, "commands"):
            if not words:
                return
            verb_name = words.pop(0)
            if verb_name.startswith("-"):
                return
            assert verb_name in verb.commands, f"{document}: {line}"
            verb = verb.commands[verb_name]
        with verb.make_context(verb_name, list(words), parent=context) as parsed:
            given = parsed.params.get("words")
    if given and verb_name in ("plan", "train", "show", "inspect"):
        recipe, overrides = split_words(given)
        if recipe in config.shipped_recipes():
            config.load(Recipe, recipe, overrides)


def test_the_commands_that_only_look_run(farthing: Command, desk: Path) -> None:
    for document, line in commands():
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "recipe" and len(words) > 1:
            assert farthing(*words).code == 0, f"{document}: {line}"


def test_the_tour_can_be_walked(farthing: Command, desk: Path) -> None:
    """Its commands in its order, and its Python, with a model and a text that are made small."""
    tour = (ROOT / "docs" / "tour.md").read_text("utf-8")
    every = config.flatten(config.load(Recipe, "small.toml"))
    small: dict[str, Any] = {"train.threads": 1, "train.batch_size": 4}
    small |= {path: value for path, value in every.items() if re.match("data|tokenizer|model", path)}
    lines = [line for block in blocks(tour, "") for line in block.splitlines()]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line)[1:]
        extra = [f"{path}={value}" for path, value in small.items() if value is not None]
        done = farthing(*words, *(extra if words[0] in ("plan", "train") else []))
        assert done.code == 0, (line, done.err)
    for name in re.findall(r"^\| `([\w./]+)` \|", tour, re.MULTILINE):
        assert (desk / "runs" / "tour" / name).exists(), name
    for name in re.findall(r"`(src/[\w./]+|tests/\w+|recipes/[\w.]+)`", tour):
        assert (ROOT / name).exists(), name
    (program,) = blocks(tour, "python")
    assert '"budget.steps": 20' in program
    (desk / "program.py").write_text(program.replace('"budget.steps": 20', f'"budget.steps": 20, **{small!r}'), "utf-8")
    (desk / "README.md").write_text("A text of one's own.\n", "utf-8")
    runpy.run_path(str(desk / "program.py"))
