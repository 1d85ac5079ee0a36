"""What goes wrong inside reaches clients as an error of OpenAI's shape, and nothing more of it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from farthing.api import TrainedModel
from farthing.model.gpt import build_model
from farthing.recipe.model import Model
from farthing.serving.app import build_app
from farthing.serving.engine import Engine
from farthing.serving.guard import Guard
from farthing.serving.refusal import Refusal
from farthing.serving.turns import HungUp, Turns

BROKEN = 7
"""a token whose embedding is not a number"""


class Broken(Engine):
    """Fails in a way that nobody has thought of."""

    def job(self, asked: Any) -> Any:
        """Never returns."""
        raise RuntimeError("no such file: /home/somebody/secret\x1b[31m")


def engine_of(opened: TrainedModel, kind: type[Engine] = Engine) -> Engine:
    section = Model(n_layer=1, n_head=2, d_model=16, context_length=32, tie_embeddings=False)
    model = build_model(section, opened.tokenizer.vocab_size, seed=0)
    with torch.no_grad():
        model.embed.weight[BROKEN] = torch.nan
    return kind(model, opened.tokenizer, precision="fp32", max_tokens=50)


def ask(engine: Engine, asked: dict[str, Any]) -> tuple[int, bytes, list[str]]:
    """Status, body and log of one request to a whole application."""
    log: list[str] = []
    sent: list[Any] = []

    async def conversation() -> None:
        turns = Turns(concurrency=1, waiting=0)
        app = Guard(
            build_app(engine, name="m", turns=turns), hosts=frozenset({"h"}), token=None, seconds=5, log=log.append
        )
        headers = [(b"host", b"h"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
            "headers": headers, "client": None, "server": None,
        }  # fmt: skip
        body = [{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}]

        async def receive() -> Any:
            if body:
                return body.pop()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        turns.close()

    asyncio.run(conversation())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent), log


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_told_on_the_terminal_only(opened: TrainedModel, stream: bool) -> None:
    status, body, log = ask(engine_of(opened, Broken), {"stream": stream})
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in body
    assert "RuntimeError: no such file: /home/somebody/secret\ufffd[31m" in log[0]
    assert log[1].startswith("POST /v1/completions 500 ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_has_diverged(opened: TrainedModel, stream: bool) -> None:
    status, body, _ = ask(engine_of(opened), {"prompt": [BROKEN], "stream": stream})
    assert (status, json.loads(body)["error"]["code"]) == (500, "diverged")


def test_a_model_that_diverges_in_the_middle_of_a_stream(opened: TrainedModel) -> None:
    asked = {"prompt": [[1], [BROKEN]], "max_tokens": 4, "stream": True, "temperature": 0.1, "top_k": 1}
    status, body, _ = ask(engine_of(opened), asked)
    *events, last = body.decode().strip().split("\n\n")
    assert status == 200 and len(events) >= 1
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "diverged"


def test_turns_are_taken_in_order_and_the_line_has_an_end() -> None:
    async def story() -> None:
        turns = Turns(concurrency=1, waiting=2)
        order: list[int] = []
        gate = threading.Event()

        def work(number: int) -> Any:
            def yielding(stopped: Any) -> Iterator[int]:
                gate.wait()
                order.append(number)
                yield number
                yield -number

            return yielding

        taken = [turns.take(work(number)) for number in (1, 2, 3)]
        with pytest.raises(Refusal, match="3 requests are being worked on") as refused:
            turns.take(work(4))
        assert refused.value.status == 429
        gate.set()
        assert [[item async for item in turn] for turn in taken] == [[1, -1], [2, -2], [3, -3]]
        assert order == [1, 2, 3]
        turns.close()
        with pytest.raises(Refusal) as closed:
            turns.take(work(5))
        assert closed.value.status == 503

    asyncio.run(story())


def test_whoever_leaves_is_not_worked_for() -> None:
    async def story() -> None:
        turns = Turns(concurrency=1, waiting=5)
        begun: list[int] = []

        def endless(stopped: Any) -> Iterator[int]:
            begun.append(1)
            while True:
                yield len(begun)

        first, second = turns.take(endless), turns.take(endless)
        assert await anext(first) == 1
        second.leave()
        with pytest.raises(HungUp):
            await anext(second)
        first.leave()
        while turns.there:
            await asyncio.sleep(0.001)
        assert begun == [1]
        turns.close()

    asyncio.run(story())
