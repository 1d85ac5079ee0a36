"""The package's own source text, parsed: what the architecture tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "farthing"

FLOORS = (
    {"errors", "forms", "section", "storage"},
    {"config", "budget", "events"},
    {"recipe", "rundir"},
    {"sinks", "compare"},
    {"report", "search", "web"},
    {"runtime"},
    {"data", "model", "optim"},
    {"planning", "training", "evals", "export"},
    {"assemble"},
    {"session"},
    {"api"},
    {"serving"},
    {"cli"},
    {"", "__main__"},  # the package itself only hands on what api and cli offer
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


@dataclass(frozen=True)
class Import:
    """One imported name: `import a.b` has no name, `from a import b` has the name b."""

    module: str
    name: str | None
    line: int

    @property
    def full(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Module:
    """A source file: dotted name, path, text and syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The part that floors are given to: `farthing.training.loop` belongs to `training`."""
        return self.name.removeprefix("farthing").lstrip(".").partition(".")[0]

    def where(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"

    def imports(self) -> Iterator[Import]:
        """Every import of the file, wherever it stands, relative ones resolved."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, None, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                if node.level:
                    inside = self.name.split(".") + ([""] if self.path.name == "__init__.py" else [])
                    origin = ".".join([*inside[: -node.level], *([node.module] if node.module else [])])
                yield from (Import(origin, alias.name, node.lineno) for alias in node.names)


@cache
def modules() -> tuple[Module, ...]:
    """All modules of the package, in order of their names."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(("farthing", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        text = path.read_text("utf-8")
        found.append(Module(dotted, path, text, ast.parse(text, str(path))))
    return tuple(found)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{left}.{node.attr}" if (left := dotted(node.value)) else ""
    return ""
