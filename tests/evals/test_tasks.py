"""Tasks: each form of a record gives the same question, every fault is told by its place, and real files are read whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.small import VOCAB
from evals.test_choices import byte_level
from farthing.errors import UserError
from farthing.evals.choices import Question
from farthing.evals.perplexity import Document
from farthing.evals.tasks import TASKS, Loaded, find_task, load, score
from farthing.evals.tasks.task import QuestionTask, TextTask
from farthing.evals.tasks.wikitext import pages, plain
from farthing.model.gpt import GPT, build_model
from farthing.recipe.model import Model
from farthing.recipe.running import Asked

SHARED = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files in ../shared/data")


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def questions(name: str, path: Path) -> list[Question]:
    loaded = load(find_task(name), str(path), directory=Path.cwd())
    return [one for one in loaded.items if isinstance(one, Question)]


def one_question(name: str, record: dict[str, Any], folder: Path) -> Question:
    (found,) = questions(name, write(folder / "one.jsonl", record))
    return found


FORMS: dict[str, tuple[list[dict[str, Any]], tuple[tuple[str, str], ...], int]] = {
    "hellaswag": (
        [
            {"query": "Roof: A man sits. He", "endings": ["is up.", "jumps. Down"], "label": 1},
            {
                "activity_label": "Roof",
                "ctx_a": "A man sits.",
                "ctx_b": "he",
                "endings": ["is up.", "jumps [step] Down"],
                "label": "1",
            },
        ],
        (("Roof: A man sits. He", " is up."), ("Roof: A man sits. He", " jumps Down")),
        1,
    ),
    "lambada": (
        [{"context": "It was a\nclear", "continuation": "day"}, {"text": "It was a\nclear day"}],
        (("It was a\nclear", " day"),),
        0,
    ),
    "arc_easy": (
        [
            {"query": "Question: Why?", "choices": ["so", "no"], "gold": 1},
            {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["A", "B"]}, "answerKey": "B"},
        ],
        (("Question: Why?\nAnswer:", " so"), ("Question: Why?\nAnswer:", " no")),
        1,
    ),
    "piqa": (
        [
            {"query": "Question: open it\n", "choices": ["pull", "push"], "gold": 0},
            {"goal": "open it", "sol1": "pull", "sol2": "push", "label": 0},
        ],
        (("Question: open it\nAnswer:", " pull"), ("Question: open it\nAnswer:", " push")),
        0,
    ),
    "winogrande": (
        [
            {"context_options": ["So Ann", "So Bo"], "continuation": "won it.", "gold": 1},
            {"sentence": "So _ won it.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        ],
        (("So Ann", " won it."), ("So Bo", " won it.")),
        1,
    ),
    "choices": ([{"query": "One and one:", "choices": ["2", "3", "4"], "gold": 0}],
                (("One and one:", " 2"), ("One and one:", " 3"), ("One and one:", " 4")), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_record_is_the_same_question(name: str, tmp_path: Path) -> None:
    records, pairs, gold = FORMS[name]
    for number, record in enumerate(records):
        found = one_question(name, record, tmp_path)
        expected = pairs
        if (name, number) == ("hellaswag", 0):
            # Prepared already: it is taken as it stands.
            expected = (pairs[0], (pairs[1][0], " jumps. Down"))
        assert (found.pairs, found.gold) == (expected, gold)
        assert found.place.endswith("one.jsonl:1")


@given(
    label=st.text("ab[]", min_size=1, max_size=5),
    before=st.text("ab [title]\n", min_size=1, max_size=20),
    behind=st.text("aB [step]", max_size=12),
    endings=st.lists(st.text("ab [] title", min_size=1, max_size=14), min_size=4, max_size=4),
)
def test_hellaswag_is_prepared_as_the_harness_prepares_it(
    label: str, before: str, behind: str, endings: list[str]
) -> None:
    theirs = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    expected = [theirs.preprocess(ending) for ending in endings]
    query = theirs.preprocess(f"{label}: {before} {behind.capitalize()}")
    if not all(expected):
        return
    from farthing.evals.tasks.records import Record

    record = {"activity_label": label, "ctx_a": before, "ctx_b": behind, "endings": endings, "label": 3}
    task = find_task("hellaswag")
    assert isinstance(task, QuestionTask)
    found = task.question(Record(record, "here"))
    assert found.choices == tuple(expected)
    assert found.pairs == tuple((query, " " + ending) for ending in expected)


GOOD = {"query": "q", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("choices", "{", "no JSON object"),
        ("choices", '"text"', "a JSON object is expected"),
        ("choices", json.dumps({**GOOD, "gold": 2}), "gold=2 should be the place of the right one of 2: 0 to 1"),
        ("choices", json.dumps({**GOOD, "gold": -1}), "gold=-1 should be"),
        ("choices", json.dumps({**GOOD, "gold": True}), "gold=true should be"),
        ("choices", json.dumps({**GOOD, "gold": 0.5}), "gold=0.5 should be"),
        ("choices", json.dumps({**GOOD, "choices": ["a"]}), 'choices=["a"] should be a list of 2 texts or more'),
        ("choices", json.dumps({**GOOD, "choices": ["a", ""]}), 'choices[1]="" should be a text that is not empty'),
        ("choices", json.dumps({**GOOD, "choices": ["a", 7]}), "choices[1]=7 should be a text"),
        ("choices", '{"query": "\\ud800", "choices": ["a", "b"], "gold": 0}', "half a surrogate pair"),
        ("choices", json.dumps({"query": "q"}), "needs the fields query, choices and gold; there are: query"),
        (
            "hellaswag",
            json.dumps({"endings": ["a", "b"], "label": 0}),
            "needs the fields query, endings and label, or ctx_a",
        ),
        ("hellaswag", json.dumps({"query": "q", "endings": ["a", "b"]}), "needs the fields label"),
        ("hellaswag", json.dumps({"query": "q", "endings": ["a", "b"], "label": "x"}), 'label="x" should be the place'),
        (
            "hellaswag",
            json.dumps({"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": ["[x]", "b"], "label": 0}),
            'endings="[x]" should be more than a tag in brackets',
        ),
        ("lambada", json.dumps({"text": "word"}), 'text="word" should be a text of several words'),
        ("lambada", json.dumps({"context": "a"}), "needs the fields context and continuation, or text"),
        (
            "arc_easy",
            json.dumps({"question": "q", "choices": ["a"], "answerKey": "A"}),
            "should be texts and their labels",
        ),
        (
            "arc_easy",
            json.dumps({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}),
            'answerKey="C" should be one of the 2 choices\' labels, A, B',
        ),
        ("piqa", json.dumps({"goal": "g", "sol1": "a", "sol2": "b", "label": 2}), "label=2 should be"),
        ("winogrande", json.dumps({"sentence": "s", "option1": "a", "option2": "b", "answer": "1"}), "after its gap"),
        (
            "winogrande",
            json.dumps({"sentence": "_ s", "option1": "a", "option2": "b", "answer": "0"}),
            'answer="0" should be the place of the right one of 2: 1 to 2',
        ),
    ],
)
def test_a_fault_is_told_by_its_line(name: str, line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    good = json.dumps(FORMS[name][0][0])
    path.write_text(f"{good}\n\n{line}\n", "utf-8")
    with pytest.raises(UserError) as error:
        questions(name, path)
    message = str(error.value)
    assert message.startswith(f"{path}:3: ") and told in message and "\n" not in message


@pytest.mark.parametrize("name", ["choices", "perplexity", "wikitext"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_told(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"own\.txt: there is no (question|text) in it"):
        load(find_task(name), str(path), directory=tmp_path)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such task; did you mean hellaswag"):
        find_task("helaswag")
    with pytest.raises(UserError, match=r"--data = 'piqq\.jsonl': no such file .*did you mean piqa\.jsonl"):
        write(tmp_path / "piqa.jsonl", GOOD)
        load(find_task("piqa"), "piqq.jsonl", directory=tmp_path)
    (tmp_path / "binary.jsonl").write_bytes(b"\x00\xff" * 40)
    with pytest.raises(UserError, match=r"binary\.jsonl: "):
        load(find_task("piqa"), "binary.jsonl", directory=tmp_path)


def test_a_folder_is_searched_by_name(tmp_path: Path) -> None:
    write(tmp_path / "piqa_validation.jsonl", GOOD)
    write(tmp_path / "arc_easy.jsonl", GOOD)
    found = load(find_task("piqa"), ".", directory=tmp_path)
    assert found.source.endswith("piqa_validation.jsonl")
    with pytest.raises(UserError, match=r"for hellaswag it should hold one file hellaswag\*\.jsonl\*; there is none"):
        load(find_task("hellaswag"), ".", directory=tmp_path)
    write(tmp_path / "piqa_train.jsonl", GOOD)
    with pytest.raises(UserError, match=r"there are piqa_train\.jsonl, piqa_validation\.jsonl"):
        load(find_task("piqa"), ".", directory=tmp_path)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "choices.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(load(find_task("choices"), ".", directory=tmp_path).items) == 1


def test_line_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    record = {**GOOD, "query": "one\u2028two\x85three"}
    (tmp_path / "own.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    (found,) = questions("choices", tmp_path / "own.jsonl")
    assert found.pairs[0][0] == record["query"]


def test_rows_of_the_hub_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "validation.jsonl", *FORMS["hellaswag"][0][1:])
    found = load(find_task("hellaswag"), f"hub:{folder}", directory=tmp_path)
    assert [one.pairs for one in found.items if isinstance(one, Question)] == [FORMS["hellaswag"][1]]
    again = load(find_task("hellaswag"), f"hub:{folder}", directory=tmp_path)
    assert again.sha256 == found.sha256 and len(found.sha256) == 64
    with pytest.raises(UserError, match=r"--task piqa: the hub's data set .* cannot be read .*give a file instead"):
        load(find_task("piqa"), "hub:nobody/nothing", directory=tmp_path)
    with pytest.raises(UserError, match="choices is for text of your own; give a file"):
        load(find_task("choices"), "hub", directory=tmp_path)


# Scores


@pytest.fixture(scope="module")
def model() -> GPT:
    return build_model(Model(n_layer=1, n_head=2, d_model=16, context_length=48), VOCAB, seed=1)


def loaded(path: Path, name: str = "choices", **more: Any) -> Loaded:
    return load(find_task(name), str(path), directory=path.parent, **more)


def many(folder: Path, count: int = 30) -> Path:
    records = [{"query": f"Number {n} is", "choices": [f"{n}", f"{n + 1}", "éé"], "gold": n % 3} for n in range(count)]
    return write(folder / "choices.jsonl", *records)


def test_the_result_says_what_was_done(model: GPT, tmp_path: Path) -> None:
    task = loaded(many(tmp_path))
    found = score(task, model, byte_level(), device="cpu", limit=12, shots=1)
    result = found.result
    json.dumps(result, allow_nan=False)
    expected = {"task": "choices", "version": 1, "items": 12, "of": 30, "shots": 1, "seed": 0, "cut": 0}
    assert {name: result[name] for name in expected} == expected
    assert (result["metric"], result["precision"], result["context_length"]) == ("accuracy", "fp32", 48)
    assert list(result["scores"]) == list(find_task("choices").metrics)
    assert result["scores"]["accuracy"]["chance"] == pytest.approx(1 / 3)
    lines = found.answer_lines()
    assert [line["question"] for line in lines] == [number for number, _ in found.answers]
    right = sum(line["chosen"]["accuracy"] == line["gold"] for line in lines)
    assert result["scores"]["accuracy"]["value"] == pytest.approx(right / 12)
    assert set(result["scores"]["accuracy"]) == {"value", "standard_error", "low", "high", "chance", "verdict"}


def test_a_limit_takes_the_same_questions_of_the_whole(model: GPT, tmp_path: Path) -> None:
    task = loaded(many(tmp_path))
    whole = dict(score(task, model, byte_level(), device="cpu").answers)
    part = score(task, model, byte_level(), device="cpu", limit=7).answers
    assert len(part) == 7
    for number, answer in part:
        assert answer.nats == pytest.approx(whole[number].nats, abs=1e-4)
    assert [number for number, _ in score(task, model, byte_level(), device="cpu", limit=7).answers] == [
        n for n, _ in part
    ]


def test_examples_come_from_where_they_are_said_to(model: GPT, tmp_path: Path) -> None:
    path = many(tmp_path, 3)
    with pytest.raises(UserError, match="--shots 3: there are only 2 other questions"):
        score(loaded(path), model, byte_level(), device="cpu", shots=3)
    other = write(tmp_path / "examples.jsonl", *[{**GOOD, "query": f"e{n}"} for n in range(4)])
    found = score(loaded(path, shots_data=str(other)), model, byte_level(), device="cpu", shots=3)
    assert found.result["shots"] == 3
    text = tmp_path / "perplexity.txt"
    text.write_text("Some words.", "utf-8")
    with pytest.raises(UserError, match="--shots 1: perplexity is read as it stands"):
        score(loaded(text, "perplexity"), model, byte_level(), device="cpu", shots=1)
    with pytest.raises(UserError, match="--shots-data: perplexity is read as it stands"):
        loaded(text, "perplexity", shots_data="x")


def test_questions_that_are_too_long_are_counted(model: GPT, tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", GOOD, {**GOOD, "query": "long " * 20})
    assert score(loaded(path), model, byte_level(), device="cpu").result["cut"] == 1


# Texts


def test_perplexity_by_hand(model: GPT, tmp_path: Path) -> None:
    import math

    import torch

    for parameter in (uniform := build_model(model.section, VOCAB, seed=1)).parameters():
        with torch.no_grad():
            parameter.zero_()
    path = write(tmp_path / "own.jsonl", {"text": "one two  é\n"}, {"text": ""}, {"text": "x" * 100})
    found = score(loaded(path, "perplexity"), uniform, byte_level(), device="cpu")
    size, words, nats = 12 + 100, 4, 112 * math.log(VOCAB)
    assert found.result["tokens"] == size and found.result["items"] == found.result["of"] == 3
    assert found.readings["bits_per_byte"].value == pytest.approx(math.log2(VOCAB))
    assert found.readings["byte_perplexity"].value == pytest.approx(VOCAB, rel=1e-5)
    assert found.readings["token_perplexity"].value == pytest.approx(VOCAB, rel=1e-5)
    assert found.readings["word_perplexity"].value == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert found.answer_lines() == []


PAGES = "\n".join(
    (
        "",
        " = First = ",
        " ",
        ' It costs 1 @,@ 000 , " so to say " ( or not ) ',
        " = = Part = = ",
        " More <unk> - @-@ here ; there . ",
        " = Second thing = ",
        " Text at 5 ° C , N of them . ",
        "",
    )
)


def test_wikitext_is_cut_into_articles() -> None:
    first, second = pages(PAGES)
    assert first.startswith(" = First =") and second.startswith(" = Second thing =")
    assert "= = Part" in first
    task = find_task("wikitext")
    assert isinstance(task, TextTask)
    documents = task.documents(PAGES)
    assert 'It costs 1,000, "so to say" (or not)' in documents[0].text and "<unk> --here; there" in documents[0].text
    assert "Text at 5°C, 1 of them." in documents[1].text
    # Every line of the file ends in one word more, the lines before the first article included.
    words = len(PAGES.split()) + len(PAGES.splitlines())
    assert sum(document.words_and_line_ends or 0 for document in documents) == words


@given(st.text("ab1 '\"()[]{}@-,.:;!?=\nN°s", max_size=60))
def test_wikitext_is_read_as_the_harness_reads_it(page: str) -> None:
    theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    assert plain(page) == theirs.wikitext_detokenizer({"page": page})
    if page:
        task = find_task("wikitext")
        assert isinstance(task, TextTask)
        from farthing.evals.tasks.records import Record

        document: Document = task.document(Record({"page": page}, "here"))
        counted = theirs.process_results({"page": page}, (-1.0,))
        assert (-1.0, document.words) == counted["word_perplexity"]
        assert (-1.0, document.bytes) == counted["byte_perplexity"]


# The real files


@shared
@pytest.mark.parametrize(
    ("name", "path", "count", "choices"),
    [
        ("hellaswag", "hellaswag_val.jsonl", 10_042, {4}),
        ("lambada", "eval", 5_153, {1}),
        ("arc_easy", "eval", 2_376, {4}),
        ("arc_challenge", "eval", 1_172, {4}),
        ("piqa", "eval", 1_838, {2}),
        ("winogrande", "eval", 1_267, {2}),
    ],
)
def test_real_files_are_read_whole(name: str, path: str, count: int, choices: set[int]) -> None:
    found = questions(name, SHARED / path)
    assert len(found) == count
    assert {len(one.pairs) for one in found} == choices


@shared
def test_wikitext_103_has_the_published_number_of_words() -> None:
    for name, words, articles in (("valid", 217_646, 60), ("test", 245_569, 62)):
        documents = load(find_task("wikitext"), str(SHARED / f"wikitext103_{name}.tokens"), directory=SHARED).items
        assert sum(one.words_and_line_ends or 0 for one in documents if isinstance(one, Document)) == words
        assert len(documents) == articles


def test_a_recipe_knows_every_task() -> None:
    assert set(get_args(get_type_hints(Asked)["task"])) == set(TASKS)
