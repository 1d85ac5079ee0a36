"""lm-evaluation-harness on our model: the same questions, answers and scores as with Hugging Face's classes, and ours."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import lm_eval
import numpy as np
import pytest

from evals.harness_questions import (
    CHOICES,
    TASKS,
    phrase,
    question,
    small_model,
    small_tokenizer,
    write_llama,
    write_questions,
)
from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError
from farthing.evals.choices import Answer, Metric, Question, answer
from farthing.evals.continuations import ContinuationScorer
from farthing.evals.harness import TASKS as FOLDER
from farthing.evals.harness import HarnessScore, run_harness
from farthing.evals.harness_model import HarnessModel
from farthing.evals.tasks import arc, hellaswag, lambada, piqa, winogrande
from farthing.evals.tasks.records import read_file
from farthing.model.gpt import GPT

EACH = 100
assert EACH * len(TASKS) >= 500
KEYS = ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter", "fewshot_delimiter")
INSTALLED = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "wikitext": "wikitext/wikitext.yaml",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    return small_model(tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_questions(tmp_path_factory.mktemp("questions"), each=EACH)
    random = Random(2)
    pages = [phrase(random, 200, 300), "", "another 's page\n", f" = A title = \n text @-@ {phrase(random, 90, 99)} \n"]
    (made / "wikitext.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages), "utf-8")
    return made


@pytest.fixture(scope="module")
def ours(model: GPT, tokenizer: Tokenizer, folder: Path) -> dict[str, HarnessScore]:
    found = run_harness(model, tokenizer, [*TASKS, "wikitext"], device="cpu", data=folder)
    return {score.task: score for score in found}


@pytest.fixture
def harness_of_its_own() -> Iterator[None]:
    """The harness as others use it may print and log what it likes."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def in_order(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def log_likelihoods(sample: dict[str, Any]) -> list[float]:
    return [float(answer[0][0]) for answer in sample["resps"]]


@pytest.fixture(scope="module")
def theirs(model: GPT, tokenizer: Tokenizer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same evaluation by `lm_eval --model hf` on the model as a folder of transformers'."""
    from lm_eval.api.registry import get_model
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    export = write_llama(model, tokenizer, tmp_path_factory.mktemp("export"))
    hugging_face = get_model("hf")(pretrained=str(export), device="cpu", batch_size=16)
    manager = TaskManager(include_defaults=False, include_path=str(FOLDER), metadata={"data": str(folder)})
    found = evaluate(lm=hugging_face, task_dict=manager.load([*TASKS, "wikitext"]), bootstrap_iters=0)
    assert found is not None
    return {"found": found, "model": hugging_face}


@pytest.mark.parametrize("task", INSTALLED)
def test_our_tasks_are_the_harness_s_own(task: str) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    installed = load_yaml(Path(lm_eval.__file__).parent / "tasks" / INSTALLED[task])
    mine = load_yaml(FOLDER / f"{task}.yaml")
    assert {key: mine.get(key) for key in KEYS} == {key: installed.get(key) for key in KEYS}
    assert mine["metadata"]["version"] == installed["metadata"]["version"]
    metrics = [metric["metric"] for metric in mine["metric_list"]]
    theirs = [metric["metric"] for metric in installed["metric_list"]]
    # One of the harness's own metrics is added: lengths in bytes.
    assert [metric for metric in metrics if metric != "acc_bytes"] == theirs


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_the_hub_become_the_harness_s_own_requests(task: str, tmp_path: Path) -> None:
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    random = Random(3)
    rows = [question(task, random, hub=True) for _ in range(25)]
    (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    manager = TaskManager(include_defaults=False, include_path=str(FOLDER), metadata={"data": str(tmp_path)})
    mine = manager.load(task)["tasks"][task]
    installed = load_yaml(Path(lm_eval.__file__).parent / "tasks" / INSTALLED[task])
    splits = dict.fromkeys(["train", "validation", "test"], datasets.Dataset.from_list(rows))
    own = ConfigurableTask(config=installed | {"custom_dataset": lambda **_: splits, "metadata": {}})
    for one in (mine, own):
        one.build_all_requests()
    assert [request.args for request in mine.instances] == [request.args for request in own.instances]
    docs = zip(mine.eval_docs, own.eval_docs, strict=True)
    assert all(mine.doc_to_target(first) == own.doc_to_target(second) for first, second in docs)


@pytest.mark.usefixtures("harness_of_its_own")
@pytest.mark.parametrize("task", TASKS)
def test_every_question_is_answered_as_with_hugging_face_s_classes(
    task: str, ours: dict[str, HarnessScore], theirs: dict[str, Any]
) -> None:
    mine, other = in_order(ours[task].samples), in_order(theirs["found"]["samples"][task])
    assert len(mine) == len(other) == EACH
    for first, second in zip(mine, other, strict=True):
        assert first["arguments"] == second["arguments"]
        assert log_likelihoods(first) == pytest.approx(log_likelihoods(second), rel=1e-4, abs=1e-3)
        # Every metric of the question: decisions by acc, acc_norm and acc_bytes, and whether LAMBADA's word is greedy.
        for metric in set(first["metrics"]) - {"perplexity"}:
            assert first[metric] == second[metric], (first["doc_id"], metric)
    for metric, value in ours[task].metrics.items():
        assert value == pytest.approx(theirs["found"]["results"][task][f"{metric},none"], rel=1e-3)


def test_the_questions_are_not_all_alike(ours: dict[str, HarnessScore]) -> None:
    """Else equal decisions would show nothing."""
    for task in CHOICES:
        chosen = [int(np.argmax(log_likelihoods(sample))) for sample in ours[task].samples]
        assert len(set(chosen)) == CHOICES[task]
        assert 0 < ours[task].metrics["acc"] < 1
    assert ours["hellaswag"].metrics["acc"] != ours["hellaswag"].metrics["acc_norm"]
    assert 0 < ours["lambada_openai"].metrics["acc"] < 1


def test_whole_texts_cost_what_they_cost_hugging_face_s_classes(
    ours: dict[str, HarnessScore], theirs: dict[str, Any]
) -> None:
    expected = theirs["found"]["results"]["wikitext"]
    assert set(ours["wikitext"].metrics) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    for metric, value in ours["wikitext"].metrics.items():
        assert value == pytest.approx(expected[f"{metric},none"], rel=1e-4)


@pytest.mark.usefixtures("harness_of_its_own")
@pytest.mark.parametrize("until", [["\n\n"], ["the", " a"], []])
def test_texts_are_written_as_hugging_face_s_classes_write_them(
    until: list[str], model: GPT, tokenizer: Tokenizer, theirs: dict[str, Any]
) -> None:
    from lm_eval.api.instance import Instance

    settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
    contexts = ["the cat", "over naïve 漢字 and then", "a dog runs " * 60]
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(context, dict(settings)), idx=0)
        for context in contexts
    ]
    asked = HarnessModel(model, tokenizer, device="cpu", precision="fp32", report=lambda *_: None)
    # One at a time: transformers pads a batch on the left.
    expected = [theirs["model"].generate_until([request], disable_tqdm=True)[0] for request in requests]
    found = asked.generate_until(requests)
    assert found == expected
    assert all(found) or until
    assert not [text for text in found for stop in until if stop in text]


def test_a_limit_takes_the_first_questions_and_shots_other_ones(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    (found,) = run_harness(model, tokenizer, ["arc_easy"], device="cpu", data=folder, limit=7, shots=2)
    assert (found.questions, found.shots, len(found.samples)) == (7, 2, 7)
    for number, sample in enumerate(in_order(found.samples)):
        context = sample["arguments"][0][0]
        assert sample["doc_id"] == number
        assert context.count("Question:") == 3
        assert context.count(f"Question: {sample['doc']['question']}\n") == 1, "a question is not its own example"


def test_a_group_is_told_with_its_members(
    model: GPT, tokenizer: Tokenizer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER, tmp_path / "tasks")
    metric = {"metric": "acc", "weight_by_size": True}
    group = {"group": "arc", "task": ["arc_easy", "arc_challenge"], "aggregate_metric_list": [metric]}
    # JSON is YAML.
    (tmp_path / "tasks" / "arc.yaml").write_text(json.dumps(group), "utf-8")
    monkeypatch.setattr("farthing.evals.harness.TASKS", tmp_path / "tasks")
    found = {score.task: score for score in run_harness(model, tokenizer, ["arc"], device="cpu", data=folder, limit=20)}
    assert found.keys() == {"arc", "arc_easy", "arc_challenge"}
    assert found["arc"].metrics["acc"] == pytest.approx(
        (found["arc_easy"].metrics["acc"] + found["arc_challenge"].metrics["acc"]) / 2
    )
    assert found["arc"].answer_lines() == []


def test_one_file_may_be_named_and_a_folder_below_is_found(
    model: GPT, tokenizer: Tokenizer, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "piqa_val.jsonl").write_bytes((folder / "piqa.jsonl").read_bytes())
    scores = [
        run_harness(model, tokenizer, ["piqa"], device="cpu", data=data, limit=5)[0].as_dict()
        for data in (folder / "piqa.jsonl", tmp_path, folder)
    ]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["questions"] == 5


def test_nothing_is_left_as_it_was_not(model: GPT, tokenizer: Tokenizer, folder: Path, capfd: Any) -> None:
    import torch

    model.train()
    before, level = torch.get_rng_state(), logging.getLogger("lm_eval").level
    heard: list[tuple[str, float, float]] = []
    run_harness(
        model, tokenizer, ["lambada_openai", "winogrande"], device="cpu", data=folder, limit=9,
        report=lambda *told: heard.append(told),
    )  # fmt: skip
    assert capfd.readouterr() == ("", ""), "the harness is quiet"
    assert model.training
    model.eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert logging.getLogger("lm_eval").level == level
    assert "DISABLE_MULTIPROC" not in os.environ
    assert heard[-1] == ("scoring", 27, 27)


BAD = {
    "no_such_file": ("hellaswag", None, "hellaswag.jsonl"),
    "not_json": ("piqa", "{", "line 1"),
    "missing_field": ("hellaswag", json.dumps({"query": "a", "label": 0}), "choices"),
    "gold_out_of_range": ("arc_easy", json.dumps({"query": "a", "choices": ["b", "c"], "gold": 2}), "gold is 2"),
    "negative_gold": ("piqa", json.dumps({"query": "a", "choices": ["b", "c"], "gold": -1}), "gold is -1"),
    "three_choices": ("piqa", json.dumps({"query": "a", "choices": ["b", "c", "d"], "gold": 1}), "2"),
    "no_gap": (
        "winogrande",
        json.dumps({"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}),
        "gap",
    ),
    "two_words": ("lambada_openai", json.dumps({"context": "a", "continuation": "b c"}), "'b c'"),
    "no_text": ("lambada_openai", json.dumps({"text": 3}), "3"),
    "hidden_label": ("hellaswag", json.dumps({"query": "a", "endings": ["b", "c"], "label": ""}), "label"),
    "unknown_answer": (
        "arc_challenge",
        json.dumps({"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "E"}),
        "'E'",
    ),
    "empty": ("wikitext", "\n", "no questions"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_told_in_one_line(case: str, model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    task, text, said = BAD[case]
    if text is not None:
        (tmp_path / f"{task}.jsonl").write_text(text + "\n", "utf-8")
    with pytest.raises(UserError) as refused:
        run_harness(model, tokenizer, [task], device="cpu", data=tmp_path)
    message = str(refused.value)
    assert message.startswith(f"--harness {task}: ") and said in message and str(tmp_path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"limit": 0}, "--limit 0"), ({"shots": -1}, "--shots -1"), ({"shots": EACH}, f"--shots {EACH}"), ({}, None)],
)
def test_a_bad_request_is_told_in_one_line(
    asked: dict[str, Any], said: str | None, model: GPT, tokenizer: Tokenizer, folder: Path
) -> None:
    names = ["piqa"] if said else []
    with pytest.raises(UserError, match=said or "name at least one task"):
        run_harness(model, tokenizer, names, device="cpu", data=folder, **asked)


def test_without_local_questions_and_without_a_network_one_line_says_so(model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"--harness hellaswag: its questions could not be fetched.*--data DIR") as said:
        run_harness(model, tokenizer, ["hellaswag"], device="cpu")
    assert "\n" not in str(said.value)


BUILT_IN = {
    "hellaswag": hellaswag.TASK,
    "lambada_openai": lambada.TASK,
    "arc_easy": arc.EASY,
    "arc_challenge": arc.CHALLENGE,
    "piqa": piqa.TASK,
    "winogrande": winogrande.TASK,
}
SAME: dict[str, Metric] = {
    "acc": "accuracy",
    "acc_norm": "accuracy_per_character",
    "acc_bytes": "accuracy_per_byte",
}


def built_in_answers(task: str, path: Path, model: GPT, tokenizer: Tokenizer) -> tuple[list[Question], list[Answer]]:
    found = read_file(str(path), directory=path.parent, what="--data")
    questions = [BUILT_IN[task].question(record) for record in found.records]
    scorer = ContinuationScorer(model, tokenizer, device="cpu")
    return questions, answer(scorer, tokenizer, questions)


def assert_equal_decisions(questions: list[Question], answers: list[Answer], samples: list[dict[str, Any]]) -> None:
    """Each question's requests, costs and every metric that both know."""
    for asked, mine, sample in zip(questions, answers, in_order(samples), strict=True):
        assert [tuple(pair) for pair in sample["arguments"]] == list(asked.pairs)
        assert [-nats for nats in mine.nats] == pytest.approx(log_likelihoods(sample), rel=1e-4, abs=1e-3)
        metrics = {"acc": "greedy_accuracy"} if "perplexity" in sample["metrics"] else SAME
        for theirs, ours in metrics.items():
            if theirs in sample["metrics"]:
                assert (mine.chosen(ours) == mine.gold) == bool(sample[theirs]), (asked.place, theirs)


@pytest.mark.usefixtures("harness_of_its_own")
@pytest.mark.parametrize("task", TASKS)
def test_our_own_scores_are_the_harness_s_question_by_question(
    task: str, model: GPT, tokenizer: Tokenizer, folder: Path, ours: dict[str, HarnessScore], theirs: dict[str, Any]
) -> None:
    questions, answers = built_in_answers(task, folder / f"{task}.jsonl", model, tokenizer)
    assert len(questions) == EACH
    assert_equal_decisions(questions, answers, ours[task].samples)
    assert_equal_decisions(questions, answers, theirs["found"]["samples"][task])


REAL = Path(__file__).parents[2].parent / "shared" / "data" / "hellaswag_val.jsonl"


@pytest.mark.skipif(not REAL.is_file(), reason="needs HellaSwag's questions")
def test_real_questions_of_hellaswag_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with REAL.open(encoding="utf-8") as lines:
        (tmp_path / "hellaswag.jsonl").write_text("".join(islice(lines, 500)), "utf-8")
    model = small_model(tokenizer, context_length=256, steps=0)
    questions, answers = built_in_answers("hellaswag", tmp_path / "hellaswag.jsonl", model, tokenizer)
    (score,) = run_harness(model, tokenizer, ["hellaswag"], device="cpu", data=tmp_path)
    assert score.questions == len(questions) == 500
    assert_equal_decisions(questions, answers, score.samples)
