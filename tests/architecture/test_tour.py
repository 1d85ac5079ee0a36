"""The tour in CONTRIBUTING.md leads to every file, and to none that is gone."""

from __future__ import annotations

import re

from architecture.source import FLOOR_OF, PACKAGE, ROOT, modules

TOUR = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("```\nsrc/farthing/\n")[1].split("```")[0]


def files_in_tour() -> list[tuple[str, int]]:
    """Path and floor of each line; indentation stands for the folder of the line above."""
    found, floor = [], 0
    folders: list[tuple[int, str]] = []
    for line in TOUR.splitlines():
        floor = int(number.group()) if (number := re.match(r" ?\d+", line)) else floor
        entry = re.match(r"[ \d]{2} +((?:\w+/)*)(\w+\.py)", line)
        assert entry, line
        column = entry.start(1)
        folders = [(at, name) for at, name in folders if at < column]
        outer = folders[-1][1] if folders else ""
        at = column
        for name in filter(None, entry[1].split("/")):
            outer += name + "/"
            folders.append((at, outer))
            at += len(name) + 1
        found.append((outer + entry[2], floor))
    return found


def test_every_file_has_its_line() -> None:
    there = {str(module.path.relative_to(PACKAGE).as_posix()) for module in modules() if module.tree.body}
    there = {path for path in there if not path.endswith("__init__.py") and path != "__main__.py"}
    told = [path for path, _ in files_in_tour()]
    assert sorted(told) == sorted(set(told))
    assert set(told) == there


def test_the_floors_are_those_of_the_tests() -> None:
    wrong = [path for path, floor in files_in_tour() if FLOOR_OF[re.split(r"[/.]", path)[0]] != floor]
    assert not wrong


def test_every_path_that_the_text_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"`((?:src|tests|docs|recipes|benchmarks)/[\w./-]*)`", text))
    assert not [path for path in named if not (ROOT / path).exists()]
