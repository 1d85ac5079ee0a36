"""Every benchmark in a sensible order, then the table of what was to be reached; what `make bench` runs.

    python benchmarks/everything.py [TITLES.txt]           (about 95 minutes; without titles 80)
    python benchmarks/everything.py --quick                the headline shape and what goes with it (about 10 minutes)
    python benchmarks/everything.py --only parity,throughput

TITLES.txt is hn_titles.txt for the titles half of quality.py. A script that fails is named, and the others still run.
Not among them, since they say nothing about these targets: titles.py, memory.py, large_text.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import bench

# name: arguments of the whole, arguments of the quick one (None: not part of it)
SCRIPTS: dict[str, tuple[list[str], list[str] | None]] = {
    "parity": ([], []),
    "throughput": ([], ["--quick", "--rounds", "3"]),
    "inference": ([], ["--quick"]),
    "by_kernel": ([], []),
    "start": ([], None),
    "stall": ([], None),
    "auto": ([], None),
    "growth": ([], None),
    "quality": ([], None),
    "gpu": ([], []),
}


def main() -> None:
    """Run what was asked for; exit code 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help=f"of {','.join(SCRIPTS)}")
    chosen = parser.parse_args()
    wanted = chosen.only.split(",") if chosen.only else list(SCRIPTS)
    failed, minutes = [], {}
    for name in wanted:
        whole, quick = SCRIPTS[name]
        arguments = quick if chosen.quick else whole
        if arguments is None:
            continue
        if name == "quality" and chosen.titles is not None:
            arguments = [str(chosen.titles), *arguments]
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(bench.HERE / f"{name}.py"), *arguments], check=False)
        minutes[name] = (time.monotonic() - start) / 60
        if done.returncode:
            failed.append(name)
    spent = ", ".join(f"{name} {spent:.1f}" for name, spent in minutes.items())
    print(f"\nminutes: {spent}; {sum(minutes.values()):.0f} in all\n", flush=True)
    subprocess.run([sys.executable, str(bench.HERE / "targets.py"), "--write"], check=True)
    if failed:
        print(f"\nended with an error: {', '.join(failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
