"""What candidates come to, from one process that plans them all: torch is imported once, the text is read once.

The process is `farthing planner`, hidden from the list of verbs; a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from farthing import config
from farthing.errors import FarthingError, UserError
from farthing.search.asked import SearchLimits
from farthing.section import Section

GIB = 1 << 30


@dataclass(frozen=True)
class Price:
    """What one run of a candidate is planned to take; refused where `refusals` says why.

    Args:
        passing: those refusals that say nothing of the recipe.
    """

    parameters: int
    memory_bytes: int
    flops: float | None
    seconds: float | None
    money: float | None
    refusals: list[str]
    passing: list[str] = field(default_factory=list)

    def as_planned(self) -> dict[str, float]:
        """What a record keeps of it."""
        return {
            "parameters": float(self.parameters),
            "flops": self.flops or 0.0,
            "seconds": self.seconds or 0.0,
            "money": self.money or 0.0,
        }


def passes(price: Price, reason: str) -> bool:
    """Whether a candidate is refused for what may pass, little free disk, and nothing else: tomorrow it may fit."""
    return reason in price.passing


def beyond(limits: SearchLimits, price: Price) -> str:
    """Which limit a price breaks, in words; empty if none."""
    megabytes = price.parameters * 4 / 1e6
    bounds = (
        ("max_memory_gib", price.memory_bytes / GIB, limits.max_memory_gib, "GiB of memory"),
        ("max_parameters", price.parameters, limits.max_parameters, "parameters"),
        ("max_megabytes", megabytes, limits.max_megabytes, "MB of parameters"),
        ("max_flops", price.flops, limits.max_flops, "FLOPs"),
        ("max_minutes", None if price.seconds is None else price.seconds / 60, limits.max_minutes, "minutes"),
        ("max_money", price.money, limits.max_money, "in money"),
    )
    for name, value, most, what in bounds:
        if value is not None and most is not None and value > most:
            return f"{value:,.4g} {what}, over limits.{name}={most:g}"
    for name, value, least, what in (
        ("min_parameters", price.parameters, limits.min_parameters, "parameters"),
        ("min_megabytes", megabytes, limits.min_megabytes, "MB of parameters"),
    ):
        if least is not None and value < least:
            return f"{value:,.4g} {what}, under limits.{name}={least:g}"
    return "; ".join(price.refusals)


class Planner:
    """The planning process, as a context manager; it starts with the first question.

    Args:
        runs: the folder that runs will be in, for its free disk space.
        device: auto, cpu, cuda or mps.
    """

    def __init__(self, runs: Path, device: str) -> None:
        self._command = [sys.executable, "-m", "farthing", "planner", "--runs", str(runs), "--device", device]
        self._process: subprocess.Popen[str] | None = None
        # Open for as long as the process is, which __exit__ ends.
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    def __enter__(self) -> Planner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        self._complaints.close()

    def price(self, recipe: Section, limits: SearchLimits) -> tuple[Price, str]:
        """What a run of this recipe takes, and which limit stands against it.

        First without the text, so that a model that is too large is refused before a tokenizer is trained for it.

        Raises:
            UserError: the text cannot be read, so that no candidate could be trained.
            FarthingError: the planning process has died.
        """
        price = self._ask(recipe, text=False)
        if price is None or not beyond(limits, price):
            price = self._ask(recipe, text=True)
            assert price is not None
        return price, beyond(limits, price)

    def _ask(self, recipe: Section, *, text: bool) -> Price | None:
        if self._process is None:
            # A process group of its own: Ctrl-C in a terminal is for the search to answer.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True,
                start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"recipe": config.to_table(recipe), "text": text}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise FarthingError(
                f"the planning process ended with code {self._process.returncode}: {self._last_words()}"
            )
        return _understood(json.loads(line))

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _understood(answer: dict[str, Any]) -> Price | None:
    if (problem := answer.get("missing_text")) is not None:
        raise UserError(problem)
    if "unknown" in answer:
        return None
    return Price(
        parameters=answer["parameters"],
        memory_bytes=answer["memory_bytes"],
        flops=answer["flops"],
        seconds=answer["seconds"],
        money=answer["money"],
        refusals=answer["refusals"],
        passing=answer["passing"],
    )
