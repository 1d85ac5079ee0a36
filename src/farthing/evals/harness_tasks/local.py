"""Question files on this machine, as documents for lm-evaluation-harness: what the YAML files beside this one load.

The harness imports it from its file. It needs no farthing, so that this folder works wherever the harness does:

    lm_eval --model hf --model_args pretrained=EXPORT --include_path THIS_FOLDER --metadata data=DIR --tasks hellaswag

A line of a question file is one of the hub's rows, or one with the question put together already (the second form below).
The second forms are turned back into the hub's columns where that can be done, so that the harness's own templates
put the question together again.

    hellaswag           activity_label, ctx_a, ctx_b, endings, label  |  query, endings or choices, label or gold
    lambada_openai      text                                          |  context, continuation
    arc_*               question, choices.text, choices.label, answerKey  |  query, choices, gold
    piqa                goal, sol1, sol2, label                       |  query, choices (2), gold
    winogrande          sentence, option1, option2, answer            |  context_options (2), continuation, gold
    wikitext            page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

SPLIT = "questions"
"""the one split; examples for few-shot contexts come from it too, never the question itself"""
_SUFFIXES = ("", "_val", "_validation", "_test")


def documents(*, of: str, data: str | None = None, **_: Any) -> dict[str, Any]:
    """The questions of a task, {SPLIT: datasets.Dataset}, in memory: nothing is fetched, nothing written.

    Args:
        of: the task, from the YAML file's dataset_kwargs.
        data: the question file, or a folder with it; from the harness's metadata.

    Raises:
        ValueError: no file is named, there is none, or a line of it is no question of this task.
    """
    import datasets

    if data is None:
        raise ValueError(f"{of}: name the folder of its question file with --metadata data=DIR")
    path = question_file(of, Path(str(data)).expanduser())
    return {SPLIT: datasets.Dataset.from_list(list(_documents(of, path)))}


def question_file(task: str, data: Path) -> Path:
    """The file with a task's questions: `data` itself, or TASK.jsonl, TASK_val.jsonl and the like in or right below it.

    Raises:
        ValueError: there is none.
    """
    if data.is_file():
        return data
    names = [f"{task}{suffix}.jsonl" for suffix in _SUFFIXES]
    if data.is_dir():
        folders = [data, *sorted(folder for folder in data.iterdir() if folder.is_dir())]
        for path in (folder / name for folder in folders for name in names):
            if path.is_file():
                return path
    raise ValueError(f"{data}: has no questions of {task}: looked for {names[0]} (or {', '.join(names[1:])})")


def _documents(task: str, path: Path) -> Iterator[dict[str, Any]]:
    read, found = _READERS[task], False
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            found = True
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                yield read(row)
            except KeyError as error:
                raise ValueError(f"{path}, line {number}: {task} needs the field {error}") from None
            except (TypeError, ValueError, IndexError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: no question of {task}: {error}") from None
    if not found:
        raise ValueError(f"{path}: has no questions in it")


def _hellaswag(row: Row) -> dict[str, Any]:
    if "ctx_a" in row:
        from lm_eval.tasks.hellaswag.utils import preprocess

        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
        query = preprocess(f"{row['activity_label']}: {context}")
        choices = [preprocess(ending) for ending in row["endings"]]
    else:
        query, choices = row["query"], row["endings"] if "endings" in row else row["choices"]
    return {"query": _text(query), "choices": _texts(choices), "label": _gold(row, len(choices))}


def _lambada(row: Row) -> dict[str, Any]:
    if "text" in row:
        return {"text": _text(row["text"])}
    word = _text(row["continuation"]).strip()
    if not word or " " in word:
        raise ValueError(f"the continuation {word!r} is not one word")
    return {"text": f"{_text(row['context'])} {word}"}


def _arc(row: Row) -> dict[str, Any]:
    if "query" not in row:
        choices, answer = row["choices"], row["answerKey"]
        table = {"text": _texts(choices["text"]), "label": _texts(choices["label"])}
        if answer not in table["label"] or len(table["text"]) != len(table["label"]):
            raise ValueError(f"the answer {answer!r} is not one of {', '.join(table['label'])}")
        return {"question": _text(row["question"]), "choices": table, "answerKey": answer}
    texts = _texts(row["choices"])
    labels = [chr(ord("A") + index) for index in range(len(texts))]
    gold = labels[_gold(row, len(texts))]
    return {"question": _asked(row["query"]), "choices": {"text": texts, "label": labels}, "answerKey": gold}


def _piqa(row: Row) -> dict[str, Any]:
    if "query" not in row:
        goal, choices = row["goal"], [row["sol1"], row["sol2"]]
    else:
        goal, choices = _asked(row["query"]), row["choices"]
    first, second = _texts(choices)
    return {"goal": _text(goal), "sol1": first, "sol2": second, "label": _gold(row, 2)}


def _winogrande(row: Row) -> dict[str, Any]:
    if "context_options" not in row:
        found = {name: _text(row[name]) for name in ("sentence", "option1", "option2", "answer")}
        if "_" not in found["sentence"] or found["answer"] not in ("1", "2"):
            raise ValueError("the sentence needs a gap (_), and the answer is 1 or 2")
        return found
    first, second = _texts(row["context_options"])
    # The gap at the start: what the harness puts before it is nothing, and each option is its whole context.
    return {
        "sentence": f"_ {_text(row['continuation']).strip()}",
        "option1": first,
        "option2": second,
        "answer": str(_gold(row, 2) + 1),
    }


def _wikitext(row: Row) -> dict[str, Any]:
    return {"page": _text(row["page"])}


_READERS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "hellaswag": _hellaswag,
    "lambada_openai": _lambada,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "wikitext": _wikitext,
}


def _asked(query: Any) -> str:
    """A question without the words that the harness's template puts around it."""
    return _text(query).removesuffix("Answer:").rstrip("\n").removeprefix("Question: ")


def _gold(row: Row, choices: int) -> int:
    """The number of the right choice, from 0."""
    name = "gold" if "gold" in row else "label"
    if str(row[name]) not in map(str, range(choices)):
        raise ValueError(f"{name} is {row[name]!r}, but the {choices} choices are 0 to {choices - 1}")
    return int(row[name])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} should be text")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{values!r} should be a list of texts")
    return [_text(value) for value in values]
