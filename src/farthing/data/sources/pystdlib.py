"""The Python standard library's own sources: real text on every machine."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from farthing.errors import UserError

# What a distribution adds or leaves out, what newer versions have dropped, and tests: so that any CPython of one
# version yields the same selection.
_SKIPPED_FOLDERS = frozenset(
    (
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "lib-dynload",
        "__pycache__",
        "lib2to3",
        "turtledemo",
    )
)
_SKIPPED_STARTS = ("config-", "_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")
_FEWEST = 100


def stdlib_files() -> tuple[Path, tuple[Path, ...]]:
    """The library's folder and its .py sources, sorted by path.

    Raises:
        UserError: this Python was installed without them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_STARTS)]
        found += [Path(folder, name) for name in files if name.endswith(".py") and not name.startswith(_SKIPPED_STARTS)]
    if len(found) < _FEWEST:
        raise UserError(
            f'data.kind = "pystdlib": {root} holds {len(found)} Python sources, so this Python comes without its '
            'library\'s text; use data.kind = "text" and data.path = FILE'
        )
    return root, tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))
