"""With --json the last line of standard output is one JSON object, as scripts rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.small import Answer, Command
from farthing.data.tokenizer import Tokenizer

VALIDATION = {
    "bits_per_byte": float,
    "nats_per_token": float,
    "perplexity": float,
    "nats_per_character": float,
    "tokens": int,
    "bytes": int,
}
SPENT = {"steps": int, "tokens": int, "epochs": float, "flops": (int, float), "seconds": float, "money": float}


def only_object(answer: Answer) -> Any:
    assert answer.code == 0, answer.err
    assert answer.out.count("\n") == 1, "nothing else on standard output"
    return json.loads(answer.out)


def holds(table: dict[str, Any], shape: dict[str, Any]) -> None:
    for name, kind in shape.items():
        assert isinstance(table[name], kind), f"{name}: {table[name]!r}"


def test_train(farthing: Command, desk: Path) -> None:
    answer = farthing("train", "small.toml", "--json", "--name", "one", "--runs", "elsewhere/runs")
    found = only_object(answer)
    assert found["run"] == "elsewhere/runs/one"
    assert (desk / "elsewhere" / "runs" / "one" / "result.json").is_file()
    assert found["status"] == "finished"
    holds(found["validation"], VALIDATION)
    holds(found["spent"], SPENT)
    assert "legacy_titles" not in found["validation"]
    assert (found["spent"]["steps"], found["spent"]["money"]) == (6, 0.0)
    assert isinstance(found["parameters"], int)
    assert "step 6/6" in answer.err, "progress goes to standard error"
    # A finished run is left as it is, and answers the same.
    assert only_object(farthing("resume", "one", "--runs", "elsewhere/runs", "--json")) == found


def test_money_is_counted_where_there_is_a_price(farthing: Command, desk: Path) -> None:
    words = ("train", "small.toml", "budget.price_per_hour=3.6", "budget.steps=2", "--json", "--quiet")
    answer = farthing(*words)
    found = only_object(answer)
    assert answer.err == "", "quiet is silent"
    assert found["spent"]["money"] > 0.001 * found["spent"]["seconds"]
    assert found["run"] == "runs/small-1"


def test_eval_repeats_the_score_of_the_run_exactly(farthing: Command, trained: Path) -> None:
    finished = json.loads((trained / "runs" / "done" / "result.json").read_text("utf-8"))["validation"]
    assert {"legacy_titles", "legacy_coverage"} <= finished.keys()
    assert only_object(farthing("eval", "done", "--json")) == finished
    assert only_object(farthing("eval", "done", "--json", "--checkpoint", "6")) == finished
    batched = only_object(farthing("eval", "done", "--json", "evaluate.batch_size=8"))
    for name in VALIDATION:
        assert batched[name] == pytest.approx(finished[name], rel=1e-6)
    strided = only_object(farthing("eval", "done", "--json", "evaluate.stride=4"))
    assert strided["bits_per_byte"] != finished["bits_per_byte"]
    assert strided["tokens"] == finished["tokens"]


def test_eval_of_another_part_and_of_a_file(farthing: Command, trained: Path) -> None:
    test = only_object(farthing("eval", "done", "--split", "test", "--json"))
    assert test["split"] == "test"
    (trained / "other.txt").write_text("One line\nanother\n", "utf-8")
    other = only_object(farthing("eval", "done", "--data", "other.txt", "--json"))
    holds(other, VALIDATION)
    assert (other["bytes"], other["documents"]) == (len("One line") + len("another"), 2)
    # The run's text may be gone: a file of one's own can still be scored.
    (trained / "titles.txt").unlink()
    assert only_object(farthing("eval", "done", "--data", "other.txt", "--json")) == other


def test_plan(farthing: Command, desk: Path) -> None:
    found = only_object(farthing("plan", "small.toml", "--json"))
    shape = {"parameters": int, "steps": int, "tokens": int, "epochs": float, "flops": (int, float)}
    holds(found, shape | {"memory_bytes": int, "seconds": float, "money": float, "fits": bool, "refusals": list})
    assert (found["steps"], found["tokens"], found["refusals"], found["money"]) == (6, 6 * 4 * 16, [], 0.0)
    priced = only_object(farthing("plan", "small.toml", "budget.price_per_hour=36", "--json"))
    assert priced["money"] > 0


def test_a_refused_plan_is_printed_all_the_same(farthing: Command, desk: Path) -> None:
    for override, word in (("limits.max_megabytes=0.001", "max_megabytes"), ("data.path=missing.txt", "missing.txt")):
        answer = farthing("plan", "small.toml", override, "--json")
        assert answer.code == 2
        found = json.loads(answer.out)
        assert found["parameters"] > 0
        assert any(word in refusal for refusal in found["refusals"])
        assert answer.err.count("\n") == 1
        assert answer.err.startswith("error: small.toml: this run would be refused: ")
        told = farthing("plan", "small.toml", override)
        assert told.code == 2
        assert "parameters" in told.out


def test_sample(farthing: Command, trained: Path) -> None:
    found = only_object(farthing("sample", "done", "Show ", "--tokens", "5", "--json"))
    assert (found["prompt"], found["tokens"]) == ("Show ", 5)
    tokenizer = Tokenizer.from_json((trained / "runs" / "done" / "tokenizer.json").read_text("utf-8"))
    # What was drawn is counted, not what the text would be cut into again: broken characters show as longer ones.
    words = ("sample", "done", "--temperature", "3", "--tokens", "40", "--seed", "4", "--json")
    wild = only_object(farthing(*words))
    assert wild["tokens"] <= 40 < len(tokenizer.encode(wild["text"]))
    assert only_object(farthing(*words)) == wild
    assert only_object(farthing(*words[:-2], "5", "--json")) != wild


@pytest.mark.parametrize(
    "words",
    [("runs",), ("recipe", "list"), ("recipe", "show", "small.toml"), ("recipe", "diff", "small.toml", "default")],
)
def test_the_rest(farthing: Command, trained: Path, words: tuple[str, ...]) -> None:
    assert only_object(farthing(*words, "--json"))


def test_doctor(farthing: Command, desk: Path) -> None:
    found = only_object(farthing("doctor", "--fast", "--json", "--quiet"))
    assert {"machine", "choices", "matmul_rates", "memory_bandwidth", "warnings"} <= found.keys()
