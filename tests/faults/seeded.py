"""python tests/faults/seeded.py: which test catches which seeded bug, looked up and, with --run, seen to do so.

The ids are those that a bug's test carries in its name or in its parameter; a test file that loses one shows here.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUGS = {
    "M01": "no random numbers restored",
    "M02": "data position not restored",
    "M03": "written into the final folder",
    "M04": "files not synced",
    "M05": "folders not synced",
    "M06": "hashes not checked",
    "M07": "no fall-back to an older checkpoint",
    "M08": "older ones deleted before the newer one is verified",
    "M09": "optimizer's step count not saved",
    "M10": "learning rate from a counter of the process",
    "M11": "evaluation uses training's random numbers",
    "M12": "mean of means over micro-batches",
    "M13": "evaluation drops the tail",
    "M14": "tokenizer sees the validation text",
    "M15": "tied weight copied on load",
    "M16": "names with _orig_mod., loaded without being strict",
    "M17": "signal handler saves",
    "M18": "NaN enters the guard's window",
    "M19": "guard's window not saved",
    "M20": "saved in the background by reference",
    "M21": "events appended to a torn line",
    "M22": "lock is a file",
    "M23": "token asked for on POST alone",
    "M24": "Host not checked for some routes",
    "M26": "elapsed time begins again",
    "M27": "NaN becomes the best",
    "M29": "failed fsync tried again on the same file",
    "M30": "temporary files elsewhere than beside the target",
}
NOT_HERE = {
    "M25": "no route serves files by name",
    "M28": "one process trains a run",
}
_NAMED = re.compile(r"\bM\d\d(?:_M\d\d)*")


def found() -> dict[str, list[str]]:
    """Test functions and parameters by the bug that they name."""
    places: dict[str, list[str]] = {bug: [] for bug in BUGS}
    for file in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        for line in file.read_text("utf-8").splitlines():
            is_test = line.startswith("def test_") or re.match(r'\s+"M\d\d ', line)
            for named in re.findall(r"M\d\d", line) if is_test else []:
                if file.name not in places.setdefault(named, []):
                    places[named].append(file.name)
    return places


def table(places: dict[str, list[str]]) -> str:
    """Markdown."""
    rows = ["| seeded bug | | caught by tests/faults/ |", "|---|---|---|"]
    rows += [f"| {bug} | {what} | {', '.join(places[bug]) or 'NOTHING'} |" for bug, what in BUGS.items()]
    rows += [f"| {bug} | - | not here: {why} |" for bug, why in NOT_HERE.items()]
    return "\n".join(rows)


def main() -> None:
    """Print the table; exit code 1 if a bug is named by no test, or with --run, if a test that names one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the tests that put the bugs in")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/reliability.md")
    chosen = parser.parse_args()
    places = found()
    code = int(any(not places[bug] for bug in BUGS))
    if chosen.run:
        files = sorted({f"tests/faults/{file}" for bug in BUGS for file in places[bug]})
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", "bug or M0 or M1 or M2 or M3", *files]
        code = code or subprocess.run(command, cwd=ROOT).returncode
    print(table(places))
    if chosen.write:
        sys.path.append(str(ROOT / "benchmarks"))
        import reliability

        reliability.write("seeded", table(places))
    sys.exit(code)


if __name__ == "__main__":
    main()
