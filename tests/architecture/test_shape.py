"""How large a file and a function may grow, and what they may be called."""

from __future__ import annotations

import ast

from architecture.source import modules

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
LONGER_FOR_A_REASON: dict[str, str] = {}
"""`farthing.module.function` -> why it reads better whole."""
NAMELESS = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "stuff"}


def test_no_file_is_too_long() -> None:
    long = {module.name: count for module in modules() if (count := len(module.text.splitlines())) > MOST_LINES}
    assert not long, f"over {MOST_LINES} lines: {long}"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, its docstring not counted: documentation is never too long to keep."""
    assert node.end_lineno is not None
    first = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    documentation = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - documentation


def test_no_function_is_too_long() -> None:
    long = {
        f"{module.name}.{node.name}": length(node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > MOST_LINES_OF_A_FUNCTION
    }
    unexplained = long.keys() - LONGER_FOR_A_REASON.keys()
    assert not unexplained, {name: long[name] for name in unexplained}
    assert not LONGER_FOR_A_REASON.keys() - long.keys(), "no longer so long: take it off the list"


def test_files_are_called_after_what_they_do() -> None:
    nameless = [module.name for module in modules() if NAMELESS & set(module.name.split("."))]
    assert not nameless
