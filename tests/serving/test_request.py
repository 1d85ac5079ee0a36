"""What is refused, with which status, and naming what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.serving.refusal import Refusal
from farthing.serving.request import parse


@pytest.mark.parametrize(
    ("asked", "status", "param", "said"),
    [
        ({"temperature": -1}, 422, "temperature", "-1"),
        ({"temperature": "hot"}, 422, "temperature", "'hot'"),
        ({"top_p": 0}, 422, "top_p", "0"),
        ({"top_p": 1.5}, 422, "top_p", "1.5"),
        ({"top_k": 0}, 422, "top_k", "0"),
        ({"max_tokens": -1}, 422, "max_tokens", "-1"),
        ({"max_tokens": 1.5}, 422, "max_tokens", "1.5"),
        ({"n": 0}, 422, "n", "0"),
        ({"logprobs": 6}, 422, "logprobs", "6"),
        ({"logprobs": True}, 422, "logprobs", "True"),
        ({"seed": -1}, 422, "seed", "-1"),
        ({"seed": 2**63}, 422, "seed", "9223372036854775808"),
        ({"seed": 10**400}, 422, "seed", "many digits"),
        ({"stop": ""}, 422, "stop", "1 to 256 characters"),
        ({"stop": ["a"] * 5}, 422, "stop", "up to 4"),
        ({"stop": "x" * 257}, 422, "stop", "256"),
        ({"prompt": 3}, 422, "prompt", "a list of token ids"),
        ({"prompt": [1, "a"]}, 422, "prompt", "a list of token ids"),
        ({"prompt": []}, 422, "prompt", "holds nothing"),
        ({"stream": "yes"}, 422, "stream", "'yes'"),
        ({"best_of": 3}, 400, "best_of", "n texts"),
        ({"suffix": "end"}, 400, "suffix", "does not offer"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "does not offer"),
        ({"logit_bias": {"5": -100}}, 400, "logit_bias", "does not offer"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream=true"),
        ({"stream": True, "stream_options": {"usage": True}}, 400, "stream_options.usage", "no such field"),
        ({"temprature": 1}, 400, "temprature", "did you mean temperature?"),
        ({"\x1b]52;c;x\x07": 1, "n": 0}, 400, "\ufffd]52;c;x\ufffd", "no such field"),
    ],
    ids=str,
)
def test_a_field_out_of_range(asked: dict[str, Any], status: int, param: str, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse(json.dumps(asked).encode())
    error = refused.value.body["error"]
    assert (refused.value.status, error["param"]) == (status, param)
    assert error["message"].startswith(param)
    assert said in error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000, b'{"prompt":' * 5000, b'{"temperature": NaN}',
     b'{"prompt": "\\ud800"}', b'{"seed": ' + b"9" * 5000 + b"}"],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse(body)
    assert refused.value.status in (400, 422)
    assert len(refused.value.message) < 200


def test_what_a_client_may_leave_out_or_say_needlessly() -> None:
    plain = parse(b"{}")
    assert (plain.prompts, plain.stops) == ([""], [])
    asked = parse(b'{"best_of": 2, "n": 2, "presence_penalty": 0.0, "logit_bias": {}, "stop": null, "user": "me"}')
    assert asked.n == 2
    assert parse(b'{"stop": "a"}').stops == ["a"]
    assert parse(b'{"prompt": [1, 2]}').prompts == [[1, 2]]
    assert parse(b'{"prompt": [[1], [2]]}').prompts == [[1], [2]]
    assert parse(b'{"prompt": ["a", "b"]}').prompts == ["a", "b"]


@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
    lambda value: json.dumps({"prompt": value, "n": value}).encode()
))  # fmt: skip
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse(body)
    except Refusal as refusal:
        json.dumps(refusal.body)
