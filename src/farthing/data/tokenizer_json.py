"""tokenizer.json as data: is it sound, which token is the separator, and what may be assumed of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from farthing.errors import UserError

Specification = dict[str, Any]

_MARKER = "farthing.separator"


def parse(text: str, *, where: str = "tokenizer.json") -> Specification:
    """The tokenizer.json as a table, with its vocabulary checked: each id from 0 up given once, each name once.

    Raises:
        UserError: it is not JSON, not a tokenizer's, or its vocabulary has double entries or holes.
    """
    try:
        specification = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({_line(error)}); give the tokenizer.json of the tokenizers library"
        ) from error
    model = specification.get("model") if isinstance(specification, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise UserError(f"{where}: no model with a vocabulary in it; give the tokenizer.json of the tokenizers library")
    names: dict[int, str] = {}
    for name, number in _entries(specification, where):
        if names.setdefault(number, name) != name:
            raise UserError(
                f"{where}: id {number} is both {names[number]!r} and {name!r}; give each token an id of its own"
            )
    hole = next((number for number in range(len(names)) if number not in names), None)
    if hole is not None:
        raise UserError(
            f"{where}: {len(names)} tokens with ids up to {max(names)}, but none has id {hole}; "
            "number the vocabulary from 0 without holes"
        )
    return specification


def load(specification: Specification, *, where: str = "tokenizer.json") -> tokenizers.Tokenizer:
    """Build the library's tokenizer.

    Raises:
        UserError: the library refuses it, for example for a merge of unknown tokens.
    """
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(specification))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library's Rust is no Exception
        raise UserError(f"{where}: the tokenizers library cannot load it: {_line(error)}") from error


def with_separator(specification: Specification, separator: str) -> Specification:
    """The same tokenizer, with `separator` a special token, told apart from other special tokens.

    Settings that would make a text's tokens depend on chance, length or neighbours (dropout, truncation, padding)
    are taken out.

    Raises:
        UserError: the vocabulary has no such token.
    """
    number = dict(_entries(specification, "tokenizer.json")).get(separator)
    if number is None:
        raise UserError(
            f"tokenizer.separator: {separator!r} is not in the vocabulary; name the token that ends a document"
        )
    added = [token for token in _added(specification) if token["content"] != separator]
    added.append(special_token(separator, number))
    made = {**specification, "truncation": None, "padding": None}
    made["added_tokens"] = sorted(added, key=lambda token: token["id"])
    if "dropout" in made["model"]:
        made["model"] = {**made["model"], "dropout": None}
    if sum(token.get("special", False) for token in added) > 1:
        made["post_processor"] = _marked(specification.get("post_processor"), separator, number)
    return made


def special_token(content: str, number: int) -> Specification:
    """An entry of `added_tokens` for a special token."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, "special": True}


def separator_of(specification: Specification) -> str:
    """The separator of what `with_separator` made: the one that is marked, or else the only special token.

    Raises:
        UserError: there are several special tokens, or none.
    """
    post = specification.get("post_processor") or {}
    for processor in [post, *post.get("processors", [])]:
        mark = (processor.get("special_tokens") or {}).get(_MARKER) if isinstance(processor, dict) else None
        if mark:
            return str(mark["tokens"][0])
    special = [token["content"] for token in _added(specification) if token.get("special")]
    if len(special) != 1:
        raise UserError(f"tokenizer.separator: which of the special tokens {special[:8]} ends a document? name it")
    return str(special[0])


def special_names(specification: Specification) -> set[str]:
    """The special tokens, as they are written in the vocabulary."""
    return {str(token["content"]) for token in _added(specification) if token.get("special")}


def token_names(specification: Specification) -> list[str]:
    """Every token as it is written in the vocabulary, by its id."""
    entries = {number: name for name, number in _entries(specification, "tokenizer.json")}
    return [entries[number] for number in range(len(entries))]


def unknown_of(specification: Specification) -> int | None:
    """The id of the token for what is out of vocabulary, if there is one."""
    model = specification["model"]
    number = model.get("unk_id")
    if number is None and model.get("unk_token") is not None:
        number = dict(_entries(specification, "tokenizer.json")).get(model["unk_token"])
    return number


def byte_level_pieces(specification: Specification) -> list[bytes] | None:
    """For a tokenizer over bytes: what each token stands for, nothing for special ones; None for other tokenizers."""
    if (specification.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    names = dict(_entries(specification, "tokenizer.json"))
    special = special_names(specification)
    values = byte_alphabet()
    pieces = [b""] * len(names)
    for name, number in names.items():
        if name not in special:
            known = all(character in values for character in name)
            pieces[number] = bytes(values[c] for c in name) if known else name.encode()
    return pieces


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte value: the bytes that are printable Latin-1, then U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(0x100) if value not in set(printable)]
    table = {chr(value): value for value in printable} | {chr(0x100 + i): value for i, value in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


def splits_like_gpt2(specification: Specification) -> bool:
    """Is a text's encoding that of its words by GPT-2's expression, one after the other?"""
    before = specification.get("pre_tokenizer") or {}
    return (
        _nothing_but_words(specification)
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space", True)
        and bool(before.get("use_regex", True))
    )


def is_bytes(specification: Specification) -> bool:
    """Are tokens 0 to 255 the bytes themselves, and is there nothing above them but special tokens?"""
    model, before = specification["model"], specification.get("pre_tokenizer") or {}
    return (
        _nothing_but_words(specification)
        and model.get("type") == "BPE"
        and not model.get("merges")
        and model["vocab"] == byte_alphabet()
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space", True)
    )


def _nothing_but_words(specification: Specification) -> bool:
    added = _added(specification)
    return specification.get("normalizer") is None and all(token.get("special", False) for token in added)


def _added(specification: Specification) -> list[Specification]:
    return specification.get("added_tokens") or []


def _entries(specification: Specification, where: str) -> Iterator[tuple[str, int]]:
    vocabulary = specification["model"]["vocab"]
    try:
        if isinstance(vocabulary, dict):
            yield from ((name, _id(number)) for name, number in vocabulary.items())
        else:
            yield from ((str(entry[0]), i) for i, entry in enumerate(vocabulary))
        yield from ((str(token["content"]), _id(token["id"])) for token in _added(specification))
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where}: a damaged entry in the vocabulary ({_line(error)})") from error


def _id(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is not an id")
    return number


def _marked(post: Specification | None, separator: str, number: int) -> Specification:
    """A post-processor that does the same and also carries the separator's name, in a table no template uses."""
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {
        "type": "TemplateProcessing",
        "single": [sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {_MARKER: {"id": _MARKER, "ids": [number], "tokens": [separator]}},
    }
    rest = [] if post is None else post["processors"] if post.get("type") == "Sequence" else [post]
    return {
        "type": "Sequence",
        "processors": [mark, *[p for p in rest if _MARKER not in (p.get("special_tokens") or {})]],
    }


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return table


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
