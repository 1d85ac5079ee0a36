"""A short run as its events, and the script that plays it in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

from farthing.events import (
    Checkpointed,
    Evaluated,
    Event,
    Finished,
    Notice,
    Ready,
    Resumed,
    Sampled,
    Started,
    Step,
    Stopped,
)
from farthing.sinks.console import Outlook

HOSTILE = "run[red]\x1b]52;c;ZXZpbA==\x07\x9b31m\rname"
STEPS = 40
OUTLOOK = Outlook(run=HOSTILE, steps=STEPS, tokens=STEPS * 1024, parameters=2_560_128, seconds=4.0, price_per_hour=3.6)
SPENT = {"steps": 0, "tokens": 0, "epochs": 0.0, "flops": 0.0, "seconds": 0.0, "money": 0.0}


def step(number: int, *, loss: float | None = 2.0) -> Step:
    spent = {**SPENT, "steps": number, "tokens": number * 1024, "seconds": number * 0.1, "money": number * 0.0001}
    return Step(
        step=number,
        loss=loss,
        lr=0.02,
        gradient_norm=1.5,
        spent=spent,
        tokens_per_second=10_240.0,
        utilisation=0.38,
        memory_bytes=3 * 2**29,
    )


def evaluation(number: int, bits: float, *, best: bool = True) -> Evaluated:
    validation = {"bits_per_byte": bits, "nats_per_token": 3.1, "tokens": 1000, "bytes": 4000}
    return Evaluated(step=number, split="validation", validation=validation, spent=SPENT, seconds=0.2, best=best)


def one_of_each() -> list[Event]:
    return [
        Started(run=HOSTILE, recipe="ab12", parameters=2_560_128, steps=STEPS),
        Resumed(step=3, checkpoint="step-00000003", exact=False, why_inexact="threads was 2, is 4"),
        Ready(seconds=60.0, text=1.0, plan=4.0, trial=5.0, build=0.5, compile=41.3),
        step(1),
        step(2, loss=None),
        evaluation(2, 2.5),
        Checkpointed(step=2, path="checkpoints/step-00000002", bytes=10**7, seconds=0.2),
        Sampled(step=2, prompt="def ", text="evil\x1b[2J():\n    pass"),
        Notice(code="out_of_memory", message="memory ran out\x1b[1A; micro-batch 16 to 8", step=2),
        Notice(code="data_warning", message="little text"),
        Stopped(step=3, reason="preempted", message="go on with: farthing resume runs/x"),
        Finished(status="finished", spent=SPENT, validation={}, wall_seconds=5.0),
    ]


def short_run() -> Iterator[Event]:
    yield Started(run=HOSTILE, recipe="ab12", parameters=2_560_128, steps=STEPS)
    for number in range(1, STEPS + 1):
        yield step(number, loss=8.0 / number)
        if number == STEPS // 2:
            yield Notice(code="out_of_memory", message="memory ran out\x1b[1A; micro-batch 16 to 8", step=number)
        if number % 20 == 0:
            yield evaluation(number, 3 - number / 40)
    yield Finished(status="finished", spent=SPENT, validation={"bits_per_byte": 2.0}, wall_seconds=5.0)


PLAY = """
import sys, time
sys.path.insert(0, sys.argv[1])
from events import OUTLOOK, short_run
from farthing.sinks.console import Console

with Console(OUTLOOK) as console:
    for event in short_run():
        console(event)
        time.sleep(0.01)
assert "torch" not in sys.modules
print("the result")
"""
