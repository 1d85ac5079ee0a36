"""From a recipe's data section to token streams: source, split, tokenizer, shards, and the receipt of all of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing.data.corpus import Corpus, open_corpus
from farthing.data.preflight import Warning_, check_vocabulary, check_window, leak, unseen_tokens
from farthing.data.shards import Shards, open_shards
from farthing.data.sources import open_source
from farthing.data.split import TokenSplit
from farthing.data.splits import LEAK_SHARE, Part, rule, split_documents, whole
from farthing.data.store import Report, address, entry, silent
from farthing.data.token_corpus import TokenCorpus, open_token_corpus
from farthing.data.tokenizer import Tokenizer, build_tokenizer
from farthing.errors import UserError
from farthing.recipe.data import Bin, Data, Hub, Npz, PyStdlib, Text, TrainedTokenizer
from farthing.recipe.data import Tokenizer as TokenizerSection
from farthing.storage import write_text

_TOKENIZER = "tokenizer.json"
_PIECE = 1 << 20
_LISTED_FILES = 1000


@dataclass(frozen=True)
class Prepared:
    """Everything that training and scoring need of the text.

    Args:
        tokenizer: text to tokens and back.
        train: what the model learns from.
        validation: what it is scored on.
        test: a further held-out part, if the recipe asks for one.
        warnings: a short stable code and a sentence for each thing a person should know.
        receipt: JSON-ready counts, sizes and fingerprints of files, parts and tokenizer.
    """

    tokenizer: Tokenizer
    train: TokenSplit
    validation: TokenSplit
    test: TokenSplit | None
    warnings: tuple[Warning_, ...]
    receipt: dict[str, Any]


def prepare(
    data: Data,
    tokenizer: TokenizerSection,
    *,
    directory: Path,
    cache: Path,
    context_length: int,
    report: Report = silent,
) -> Prepared:
    """Read the text, hold documents out, train or load the tokenizer, and encode: or find all of it in the cache.

    Args:
        data: the recipe's `data`.
        tokenizer: the recipe's `tokenizer`.
        directory: where relative paths begin: the recipe's folder.
        cache: where corpora, tokenizers and shards are kept.
        context_length: tokens of a window, for the preflight.
        report: hears "reading", "training tokenizer" and "tokenising".

    Raises:
        UserError: the text cannot be read, split or tokenised as asked; one line says why.
    """
    parts: dict[str, Any]
    if isinstance(data, Bin | Npz):
        built = _loaded(tokenizer, directory)
        parts = _token_parts(data, built, directory=directory, cache=cache, report=report)
    else:
        parts = _text_parts(data, directory=directory, cache=cache, report=report)
        built = _tokenizer(tokenizer, parts, directory=directory, cache=cache, report=report)
    shards = open_shards(parts, built, section=data, cache=cache, report=report)
    train, validation = shards.splits["train"], shards.splits["validation"]
    check_window(train, validation, context_length=context_length)
    return Prepared(
        tokenizer=built,
        train=train,
        validation=validation,
        test=shards.splits.get("test"),
        warnings=tuple(_warnings(shards, built)),
        receipt=_receipt(data, tokenizer, built, parts, shards),
    )


def prepare_held_out(
    data: Data, path: str, tokenizer: Tokenizer, *, directory: Path, cache: Path, report: Report = silent
) -> TokenSplit:
    """Any file as one held-out part, cut into documents as the run's data is (whole files for pystdlib and hub).

    Raises:
        UserError: the file cannot be read as text, or does not survive the tokenizer.
    """
    section = _own_section(data, path)
    what = "--data"
    if isinstance(section, Bin | Npz):
        corpus: Any = open_token_corpus(
            section, directory=directory, cache=cache, what=what, report=report,
            vocab_size=tokenizer.vocab_size, separator=tokenizer.separator,
        )  # fmt: skip
    else:
        corpus = open_corpus(open_source(section, directory=directory, what=what), cache=cache, report=report)
    part = whole("held-out", corpus)
    return open_shards({part.name: part}, tokenizer, section=None, cache=cache, report=report).splits[part.name]


def _own_section(data: Data, path: str) -> Any:
    if isinstance(data, PyStdlib | Hub):
        return Text(path=path)
    return data.model_copy(update={"path": path})


def _own_paths(data: Data) -> dict[str, str]:
    held_out = {"validation": data.validation, "test": data.test}
    return {name: share for name, share in held_out.items() if isinstance(share, str)}


def _text_parts(data: Any, *, directory: Path, cache: Path, report: Report) -> dict[str, Part[Corpus]]:
    corpus = open_corpus(open_source(data, directory=directory), cache=cache, report=report)
    own = {
        name: open_corpus(
            open_source(_own_section(data, path), directory=directory, what=f"data.{name}"), cache=cache, report=report
        )
        for name, path in _own_paths(data).items()
    }
    return split_documents(data, corpus, own)


def _token_parts(
    data: Bin | Npz, tokenizer: Tokenizer, *, directory: Path, cache: Path, report: Report
) -> dict[str, Part[TokenCorpus]]:
    def opened(section: Bin | Npz, what: str) -> TokenCorpus:
        return open_token_corpus(
            section, directory=directory, cache=cache, what=what, report=report,
            vocab_size=tokenizer.vocab_size, separator=tokenizer.separator,
        )  # fmt: skip

    own = {name: opened(_own_section(data, path), f"data.{name}") for name, path in _own_paths(data).items()}
    return split_documents(data, opened(data, "data.path"), own)


def _loaded(section: TokenizerSection, directory: Path) -> Tokenizer:
    if isinstance(section, TrainedTokenizer):
        raise UserError(
            f'tokenizer.kind = "{section.kind}" is trained on text, but data.kind holds tokens already; set '
            'tokenizer.kind to the one they were made with, for example "gpt2"'
        )
    return build_tokenizer(section, _no_text, directory=directory)


def _no_text() -> Iterator[str]:
    return iter(())


def _tokenizer(
    section: TokenizerSection, parts: dict[str, Part[Corpus]], *, directory: Path, cache: Path, report: Report
) -> Tokenizer:
    if not isinstance(section, TrainedTokenizer):
        return build_tokenizer(section, _no_text, directory=directory)
    learnt_from = [parts["train"]] + ([parts["validation"]] if section.train_on == "train+validation" else [])
    # The documents' numbers are cheaper to hash than their text, which the corpus's fingerprint covers.
    texts = [[part.corpus.fingerprint, _digest(part)] for part in learnt_from]
    key = address(
        section=section.model_dump(mode="json"), texts=texts, library=importlib.metadata.version("tokenizers")
    )
    folder = cache / "tokenizers" / key

    def build(temporary: Path) -> dict[str, Any]:
        made = build_tokenizer(section, _texts(learnt_from, report), directory=directory)
        write_text(temporary / _TOKENIZER, made.to_json())
        return {}

    entry(folder, build)
    built = Tokenizer.from_json((folder / _TOKENIZER).read_text("utf-8"))
    check_vocabulary(section, built.vocab_size)
    return built


def _digest(part: Part[Any]) -> str:
    return hashlib.sha256(part.numbers_N.astype("<i8").tobytes()).hexdigest()


def _texts(parts: list[Part[Corpus]], report: Report) -> Callable[[], Iterator[str]]:
    """The documents' text, in pieces of about a megabyte."""
    size = sum(part.size() for part in parts)

    def texts() -> Iterator[str]:
        seen = 0
        for part in parts:
            for raw, _ in part.corpus.pieces(part.numbers_N, longest=_PIECE):
                yield raw.decode("utf-8")
                seen += len(raw)
                report("training tokenizer", seen, size)

    return texts


def _warnings(shards: Shards, tokenizer: Tokenizer) -> Iterator[Warning_]:
    for name in sorted(shards.splits.keys() - {"train"}, reverse=True):
        facts = shards.facts[name]
        if warning := leak(name, facts["in_train"], facts["documents"], most=LEAK_SHARE):
            yield warning
    if warning := unseen_tokens(shards.facts["train"]["seen"], tokenizer.vocab_size):
        yield warning


def _receipt(
    data: Data, section: TokenizerSection, tokenizer: Tokenizer, parts: dict[str, Part[Any]], shards: Shards
) -> dict[str, Any]:
    corpora = {id(part.corpus): part.corpus for part in parts.values()}
    files = [file for corpus in corpora.values() for file in corpus.files]
    counted = ("documents", "bytes", "characters", "tokens", "fingerprint", "seen", "in_train")
    return {
        "kind": data.kind,
        "files": files[:_LISTED_FILES],
        "files_count": len(files),
        "files_bytes": sum(file["bytes"] for file in files),
        "files_sha256": address(files=[file["sha256"] for file in files]),
        "corpus": parts["train"].corpus.fingerprint,
        "empty_documents_dropped": sum(corpus.dropped for corpus in corpora.values()),
        "split": rule(data),
        "parts": {
            name: {fact: shards.facts[name][fact] for fact in counted if fact in shards.facts[name]} for name in parts
        },
        "tokenizer": {"kind": section.kind, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
    }
