"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from cli.small import Command
from serving.child import Child, parse, read_all, served


def complete(client: openai.OpenAI, **asked: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": "Show HN", "max_tokens": 30, "seed": 3, **asked})


def test_a_completion_is_the_text_of_farthing_sample(
    server: Child, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.client() as client:
        found = complete(client, temperature=0.8, top_p=0.95, extra_body={"top_k": 40})
    words = ("--tokens", "30", "--temperature", "0.8", "--top-k", "40", "--top-p", "0.95", "--seed", "3")
    sampled = Command(capsys)("sample", str(home / "runs" / "tiny"), "Show HN", *words, "--json")
    assert found.choices[0].text == json.loads(sampled.out)["text"]
    assert (found.object, found.model) == ("text_completion", "tiny")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.choices[0].finish_reason == ("length" if found.usage.completion_tokens == 30 else "stop")


@pytest.mark.parametrize(
    "asked", [{}, {"n": 3}, {"logprobs": 2, "echo": True}, {"stop": ["e", "\n"], "max_tokens": 60}], ids=str
)
def test_a_stream_adds_up_to_the_whole(server: Child, asked: dict[str, Any]) -> None:
    with server.client() as client:
        whole = complete(client, **asked)
        chunks = list(complete(client, **asked, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(piece.usage is None for piece in pieces)
    for choice in whole.choices:
        of = [piece.choices[0] for piece in pieces if piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in of) == choice.text
        assert [piece.finish_reason for piece in of] == [None] * (len(of) - 1) + [choice.finish_reason]
        if choice.logprobs is not None:
            for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [one for piece in of for one in getattr(piece.logprobs, field)] == getattr(
                    choice.logprobs, field
                )
    assert len(pieces) > len(whole.choices), "it came in one piece"


def test_no_part_of_a_stop_string_is_ever_sent(server: Child) -> None:
    with server.client() as client:
        text = complete(client, max_tokens=60).choices[0].text
        for length in (1, 2, 5, 9):
            stop = text[len(text) // 2 :][:length]
            expected = text[: text.index(stop)]
            assert complete(client, max_tokens=60, stop=stop).choices[0].text == expected
            streamed = [
                chunk.choices[0] for chunk in complete(client, max_tokens=60, stop=[stop, "never"], stream=True)
            ]
            assert "".join(choice.text for choice in streamed) == expected
            assert streamed[-1].finish_reason == "stop"


def test_several_prompts(server: Child) -> None:
    with server.client() as client:
        together = complete(client, prompt=["Show HN", "the penny"], n=2)
        alone = [complete(client, prompt=prompt, n=2) for prompt in ("Show HN", "the penny")]
    assert [choice.text for choice in together.choices] == [choice.text for one in alone for choice in one.choices]
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


def test_models(server: Child) -> None:
    with server.client() as client:
        (model,) = client.models.list().data
        assert client.models.retrieve("tiny").id == model.id == "tiny"
        assert model.context_length == 64  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError, match="there is only 'tiny' here"):
            complete(client, model="gpt-4")
    assert server.request("GET", "/health").json["status"] == "ok"


@pytest.mark.parametrize(
    ("asked", "error", "param"),
    [
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"max_tokens": 10**9}, openai.UnprocessableEntityError, "max_tokens"),
        ({"best_of": 3}, openai.BadRequestError, "best_of"),
        ({"prompt": "word " * 500}, openai.BadRequestError, "prompt"),
        ({"prompt": [10**7]}, openai.UnprocessableEntityError, "prompt"),
        ({"extra_body": {"min_p": 0.1}}, openai.BadRequestError, "min_p"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_reach_the_client_as_its_own(
    server: Child, asked: dict[str, Any], error: type[openai.APIStatusError], param: str, stream: bool
) -> None:
    with server.client() as client, pytest.raises(error, match=f"{param}: ") as raised:
        complete(client, **asked, stream=stream)
    assert raised.value.param == param


def test_a_prompt_of_odd_characters(server: Child) -> None:
    with server.client() as client:
        for prompt in ("", "\x00\x1b[2J", "<|endoftext|>", "😀", "\u2028"):
            assert complete(client, prompt=prompt, echo=True, max_tokens=5).choices[0].text.startswith(prompt)


@pytest.fixture
def endless(home: Path, tmp_path: Path) -> Any:
    """A server on which a text may be so long that it takes hours; one at a time, one more in line."""
    with served(home, tmp_path / "log", "--max-tokens", "100000000", "--queue", "1") as child:
        yield child


def start_endless(child: Child, *, stream: bool) -> socket.socket:
    # The stop token ends a text, so one that never comes to be drawn: the likeliest token again and again.
    asked = {"prompt": "Show HN", "max_tokens": 100_000_000, "temperature": 0, "stream": stream}
    body = json.dumps(asked).encode()
    connection = child.connect()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {child.address}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def wait_for_requests(child: Child, number: int) -> None:
    for _ in range(3000):
        if child.request("GET", "/health").json["requests"] == number:
            return
        time.sleep(0.02)
    raise AssertionError(f"never {number} requests")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_stops_its_text_and_a_full_line_is_told(endless: Child, stream: bool) -> None:
    with start_endless(endless, stream=stream) as first:
        if stream:
            assert first.recv(1000).startswith(b"HTTP/1.1 200 OK")
        wait_for_requests(endless, 1)
        with start_endless(endless, stream=stream):
            wait_for_requests(endless, 2)
            with endless.client() as client, pytest.raises(openai.RateLimitError) as refused:
                complete(client)
            assert refused.value.response.headers["retry-after"] == "1"
    # Both have hung up: the one at work and the one in line.
    wait_for_requests(endless, 0)
    with endless.client() as client:
        assert complete(client, max_tokens=5).choices[0].text


def test_the_end_of_the_server_ends_what_is_written(endless: Child) -> None:
    with start_endless(endless, stream=True) as connection:
        assert connection.recv(1000)
        log = endless.stop()
        assert not read_all(connection).endswith(b"[DONE]\n\n")
    assert "Traceback" not in log


def test_a_stream_is_made_of_events(server: Child) -> None:
    asked = json.dumps({"prompt": "Show", "max_tokens": 3, "stream": True}).encode()
    reply = server.request("POST", "/v1/completions", asked)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.body.rstrip(b"\r\n0").endswith(b"data: [DONE]")
    assert parse(b"HTTP/1.1 200 OK\r\n\r\n").status == 200
