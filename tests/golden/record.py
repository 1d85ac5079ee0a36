"""Write families.json anew: `python tests/golden/record.py`, after a change that is meant to change them (say why)."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from golden.families import FOLDER, RECIPES, losses  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FARTHING_CACHE"] = str(Path(folder) / "cache")
        os.chdir(folder)
        found = {name: losses(name, Path(folder)) for name in RECIPES}
        os.chdir(FOLDER)
    (FOLDER / "families.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(f"wrote {FOLDER / 'families.json'}")


if __name__ == "__main__":
    main()
