"""What the engine writes: the texts of `farthing sample`, scored by the model's own forward pass."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from farthing.api import TrainedModel
from farthing.serving.answer import Answer
from farthing.serving.engine import Engine
from farthing.serving.refusal import Refusal
from farthing.serving.request import CompletionRequest


def answer(engine: Engine, **asked: Any) -> dict[str, Any]:
    job = engine.job(CompletionRequest.model_validate(asked))
    return Answer("tiny", job).whole(engine.write(job, lambda: False))


@pytest.mark.parametrize(
    "drawing", [{}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.9}, {"temperature": 0.0}], ids=str
)
def test_a_seed_writes_the_text_of_sample(engine: Engine, opened: TrainedModel, drawing: dict[str, Any]) -> None:
    found = answer(engine, prompt="Show HN", max_tokens=90, seed=3, **drawing)
    sampled = opened.stream("Show HN", tokens=90, seed=3, **{"temperature": 1.0, **drawing})
    assert found["choices"][0]["text"] == "".join(sampled)
    assert found["usage"]["completion_tokens"] == sampled.tokens > 0
    assert found["usage"]["prompt_tokens"] == len(opened.tokenizer.encode("Show HN"))


def test_choices_are_drawn_with_the_seeds_that_follow(engine: Engine) -> None:
    found = answer(engine, prompt=["Show", "the penny"], max_tokens=30, seed=5, n=3)
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    for choice in found["choices"]:
        prompt = ["Show", "the penny"][choice["index"] // 3]
        alone = answer(engine, prompt=prompt, max_tokens=30, seed=5 + choice["index"] % 3)
        assert choice["text"] == alone["choices"][0]["text"]
    assert len({choice["text"] for choice in found["choices"]}) > 3


def test_threads_that_write_at_once_do_not_mix(engine: Engine) -> None:
    def choices(seed: int) -> Any:
        return answer(engine, prompt=["Show", "the"], n=2, max_tokens=40, seed=seed, logprobs=2, echo=True)["choices"]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(choices, range(8))) == [choices(seed) for seed in range(8)]


def test_without_a_seed_each_text_is_new_and_can_be_had_again(engine: Engine) -> None:
    first, second = (answer(engine, prompt="Show", max_tokens=30) for _ in range(2))
    assert first["choices"][0]["text"] != second["choices"][0]["text"]
    again = answer(engine, prompt="Show", max_tokens=30, seed=first["seed"])
    assert again["choices"] == first["choices"]


def test_token_ids_are_read_as_they_are(engine: Engine, opened: TrainedModel) -> None:
    ids = opened.tokenizer.encode("Show HN: the")
    opening = [opened.tokenizer.separator]
    as_text = answer(engine, prompt="Show HN: the", max_tokens=20, seed=1)
    assert answer(engine, prompt=[*opening, *ids], max_tokens=20, seed=1)["choices"] == as_text["choices"]
    assert answer(engine, prompt=ids, max_tokens=20, seed=1)["choices"] != as_text["choices"]
    assert (
        answer(engine, prompt=[[]], max_tokens=9, seed=1)["choices"] == answer(engine, max_tokens=9, seed=1)["choices"]
    )


@pytest.mark.parametrize("prompt", ["Show HN: the farthing", "naïve €"])
def test_logprobs_are_those_of_a_forward_pass(engine: Engine, opened: TrainedModel, prompt: str) -> None:
    tokenizer = opened.tokenizer
    (choice,) = answer(engine, prompt=prompt, max_tokens=12, seed=2, temperature=0.5, top_k=5, logprobs=3, echo=True)[
        "choices"
    ]
    scores = choice["logprobs"]
    own = tokenizer.encode(prompt)
    drawn = list(opened.stream(prompt, tokens=12, seed=2, temperature=0.5, top_k=5))
    assert choice["text"] == prompt + "".join(drawn)
    # The tokens again, from the text's own bytes: the prompt's are known, the drawn ones are named.
    names = {name_of(opened, token): token for token in range(tokenizer.vocab_size)}
    tokens = [tokenizer.separator, *own, *(names[name] for name in scores["tokens"][len(own) :])]
    with torch.no_grad():
        logprobs = opened.model(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    expected = [float(logprobs[place, token]) for place, token in enumerate(tokens[1:])]
    assert scores["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    for row, name, logprob, top in zip(
        logprobs, scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True
    ):
        assert top[name] == logprob
        best = [name_of(opened, int(token)) for token in row.topk(3).indices]
        assert list(top) == [*best, *([name] if name not in best else [])]
    before = ""
    for name, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
        # Where a character breaks off, the token after it begins with the mark of that.
        if not name.startswith("bytes:") and not before.startswith("bytes:") and name != tokenizer.separator_text:
            assert choice["text"].startswith(name, offset)
        before = name


def name_of(opened: TrainedModel, token: int) -> str:
    piece = opened.tokenizer.token_bytes(token)
    if not piece:
        return opened.tokenizer.separator_text
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def test_a_prompt_can_be_scored_without_writing(engine: Engine, opened: TrainedModel) -> None:
    ids = opened.tokenizer.encode("Show HN: the penny")
    (choice,) = answer(engine, prompt=ids, max_tokens=0, logprobs=0, echo=True)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Show HN: the penny", "length")
    logprobs = choice["logprobs"]["token_logprobs"]
    assert logprobs[0] is None and choice["logprobs"]["top_logprobs"][0] is None
    assert len(logprobs) == len(ids)
    assert all(math.isfinite(value) and value < 0 for value in logprobs[1:])


def test_the_end_of_the_document_is_scored_but_not_counted(engine: Engine, opened: TrainedModel) -> None:
    for seed in range(100):
        found = answer(engine, prompt="Show", max_tokens=400, seed=seed, logprobs=1)
        (choice,) = found["choices"]
        if choice["finish_reason"] == "stop":
            break
    assert choice["logprobs"]["tokens"][-1] == opened.tokenizer.separator_text
    assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
    assert found["usage"]["completion_tokens"] == len(choice["logprobs"]["tokens"]) - 1
    plain = answer(engine, prompt="Show", max_tokens=400, seed=seed)
    assert plain["choices"][0]["text"] == choice["text"]


def test_a_stop_string_ends_a_text_and_its_scores(engine: Engine) -> None:
    whole = answer(engine, prompt="Show", max_tokens=40, seed=4)["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:3]
    (choice,) = answer(engine, prompt="Show", max_tokens=40, seed=4, stop=stop, logprobs=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


def test_nothing_is_written_any_more_once_it_is_to_stop(engine: Engine) -> None:
    job = engine.job(CompletionRequest(prompt=["a", "b"], max_tokens=400, n=2, seed=1))
    pieces = list(engine.write(job, lambda: True))
    assert sum(piece.tokens for piece in pieces) == 0


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"max_tokens": 501}, 422, "max_tokens: 501"),
        ({"n": 129}, 422, "n: this asks for 129 texts"),
        ({"prompt": ["a"] * 65, "n": 2}, 422, "prompt: this asks for 130 texts"),
        ({"prompt": [10**6]}, 422, "prompt: token 1000000"),
        ({"prompt": [1, -1]}, 422, "prompt: token -1"),
        ({"prompt": [1] * 65}, 400, "prompt: has 65 tokens, and the model reads 64"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(engine: Engine, asked: dict[str, Any], status: int, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        engine.job(CompletionRequest.model_validate(asked))
    assert refused.value.status == status
    assert refused.value.message.startswith(said)


def test_the_longest_prompt_that_fits(engine: Engine) -> None:
    (choice,) = answer(engine, prompt=[1] * 64, max_tokens=3, echo=True, logprobs=1, temperature=0)["choices"]
    assert len(choice["logprobs"]["tokens"]) == 67
