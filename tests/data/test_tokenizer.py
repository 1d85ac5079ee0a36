"""The contract of every tokenizer: no byte is lost, no text makes a separator, and strangers read it the same way."""

from __future__ import annotations

import argparse
import inspect
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.data import tokenizer_codec
from farthing.data.tokenizer import Tokenizer, build_tokenizer
from farthing.errors import UserError
from farthing.recipe.data import Bpe, ByteTokenizer, Gpt2Tokenizer, TokenizerFile, Unigram

KINDS = ["byte", "bpe", "unigram", "gpt2", "file"]
SPECIALS = ["<eos>", "<|endoftext|>", "<pad>", "a<eos>b", " <eos> <eos><|endoftext|>", "<eos", "[CLS]"]
SOURCE = inspect.getsource(argparse)


def texts() -> Iterator[str]:
    yield from SOURCE.split("\n\n")
    yield "naïve café — “quoted”, 你好，世界 🙂"


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One tokenizer of each kind; gpt2 and file read a small model of their own from disk."""
    folder = tmp_path_factory.mktemp("tokenizers")
    bpe = build_tokenizer(Bpe(vocab_size=700), texts, directory=folder)
    model = json.loads(bpe.to_json())["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    (folder / "encoder.json").write_text(json.dumps(vocabulary), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(stranger(model)), "utf-8")
    return {
        "byte": build_tokenizer(ByteTokenizer(), texts, directory=folder),
        "bpe": bpe,
        "unigram": build_tokenizer(Unigram(vocab_size=700), texts, directory=folder),
        "gpt2": build_tokenizer(Gpt2Tokenizer(path="."), texts, directory=folder),
        "file": build_tokenizer(TokenizerFile(path="tokenizer.json", separator="[SEP]"), texts, directory=folder),
    }


def stranger(model: dict) -> dict:
    """A tokenizer.json as others make them: several special tokens, a template, truncation, padding, dropout."""
    size = len(model["vocab"])
    flags = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": True}
    added = [{"id": size + i, "content": name, **flags} for i, name in enumerate(["[CLS]", "[SEP]", "<pad>"])]
    added.append({**added[0], "id": size + 3, "content": "    ", "special": False, "lstrip": False, "rstrip": False})
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": {"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": {
            **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": size + 2, "pad_type_id": 0, "pad_token": "<pad>"},
        },
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [size], "tokens": ["[CLS]"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**model, "dropout": 0.5},
    }


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, family: dict[str, Tokenizer]) -> Tokenizer:
    return family[request.param]


def random_texts(count: int) -> list[str]:
    """Texts over every plane of Unicode, from one character to some dozens."""
    draw = random.Random(0)
    points = [0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000]

    def character() -> str:
        point = draw.randrange(draw.choice(points))
        return chr(point if not 0xD800 <= point < 0xE000 else point - 0x800)

    return ["".join(character() for _ in range(draw.randrange(1, 40))) for _ in range(count)]


def check(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert tokenizer.separator not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_ten_thousand_texts_come_back(tokenizer: Tokenizer) -> None:
    texts = random_texts(10_000)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        check(tokenizer, text, ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.text("ab 12'<eos>|\n\t"))
@settings(max_examples=50)
def test_any_text_comes_back(family: dict[str, Tokenizer], kind: str, text: str) -> None:
    check(family[kind], text, family[kind].encode(text))


def test_every_byte_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    single = {tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    assert {bytes([value]) for value in range(256)} <= single
    assert tokenizer.lossy is None
    # A lone byte of a longer character decodes to the replacement character, and never to nothing.
    assert tokenizer.decode([tokenizer.encode("é")[0]]) in ("é", "\ufffd")


@pytest.mark.parametrize("text", SPECIALS)
def test_special_names_in_a_text_stay_text(tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_codec, "LONG", 500)
    for written in (text, text.replace("<eos>", tokenizer.separator_text)):
        check(tokenizer, written, tokenizer.encode(written))
        long = written * 200
        check(tokenizer, long, np.concatenate(list(tokenizer.encode_long(long))).tolist())


def test_separator_is_a_token_without_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one"), tokenizer.separator, *tokenizer.encode("two")]
    assert tokenizer.decode(ids) == "onetwo"
    assert tokenizer.token_bytes(tokenizer.separator) == b""
    assert tokenizer.token_text(tokenizer.separator) == tokenizer.separator_text


def test_all_ways_to_encode_agree(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*random_texts(50), *SOURCE.split("\n\n")[:50], "", " ", "\n", "x" * 3000]
    one_by_one = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == one_by_one
    arrays = tokenizer.encode_batch_arrays(texts)
    assert [array.tolist() for array in arrays] == one_by_one
    assert all(array.dtype == tokenizer.dtype and array.flags.writeable for array in arrays)
    assert tokenizer.encode_batch([]) == []
    whole = tokenizer.encode(SOURCE)
    for size in (100, 1000, 10_000):
        monkeypatch.setattr(tokenizer_codec, "LONG", size)
        assert np.concatenate(list(tokenizer.encode_long(SOURCE))).tolist() == whole
        assert tokenizer.encode(SOURCE) == whole


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text("ab我 .,'sé\n12🙂", max_size=300), size=st.integers(3, 40))
@settings(max_examples=50)
def test_a_long_text_cut_at_safe_places_encodes_as_the_whole(
    family: dict[str, Tokenizer], kind: str, text: str, size: int
) -> None:
    whole = family[kind].encode(text)
    safe = max(map(len, re.split(r"(?<=[\w!-~])(?=[ \n])", text))) <= size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_codec, "LONG", size)
        cut = np.concatenate(list(family[kind].encode_long(text))).tolist()
    assert family[kind].decode(cut) == text
    assert cut == whole or not safe


def test_json_is_a_fixed_point_that_tells_the_separator(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.separator, again.vocab_size) == (tokenizer.separator, tokenizer.vocab_size)
    assert again.encode(SOURCE) == tokenizer.encode(SOURCE)


def test_fingerprints_tell_tokenizers_apart(family: dict[str, Tokenizer]) -> None:
    assert len({member.fingerprint for member in family.values()}) == len(family)
    assert all(len(member.fingerprint) == 64 for member in family.values())


def test_the_library_alone_gives_the_same_tokens(tokenizer: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True
    texts = [*random_texts(300), *SOURCE.split("\n\n"), *SPECIALS]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert library.encode(text, add_special_tokens=False).ids == ids
        assert library.decode(ids) == text
    assert library.get_vocab_size() == tokenizer.vocab_size


def test_transformers_gives_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    name = tokenizer.separator_text
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=name)
    assert theirs.eos_token_id == tokenizer.separator
    assert len(theirs) == tokenizer.vocab_size
    for text in [*random_texts(200), *SOURCE.split("\n\n")]:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    for text in SPECIALS:
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)


def test_a_marked_separator_leaves_the_template_as_it_was(family: dict[str, Tokenizer]) -> None:
    library = tokenizers.Tokenizer.from_str(family["file"].to_json())
    assert library.encode("word").tokens[0] == "[CLS]"
    assert library.encode("word", "pair").tokens[0] == "[CLS]"
    assert library.encode("word").ids[1:] == family["file"].encode("word")
    assert family["file"].separator_text == "[SEP]"


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"character 2 .* surrogate"):
        tokenizer.encode("ab\ud800c")


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, wrong: int) -> None:
    with pytest.raises(UserError, match=f"token {wrong} is not in the vocabulary"):
        tokenizer.decode([0, wrong])
    with pytest.raises(UserError, match=f"token {wrong} is not in the vocabulary"):
        tokenizer.token_bytes(wrong)


def test_tokens_for_human_eyes(family: dict[str, Tokenizer]) -> None:
    byte = family["byte"]
    assert [byte.token_text(token) for token in (65, 32, 10, 0, 0xC3)] == ["A", " ", "\\n", "\\x00", "\\xc3"]


def test_bytes_are_their_own_numbers(family: dict[str, Tokenizer]) -> None:
    byte = family["byte"]
    assert byte.encode("hé\n") == list("hé\n".encode())
    assert (byte.vocab_size, byte.separator, byte.separator_text) == (257, 256, "<eos>")


def test_memory_of_words_may_run_over(family: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_codec, "_REMEMBERED_WORDS", 20)
    monkeypatch.setattr(tokenizer_codec, "_REMEMBERED_LENGTH", 5)
    small = Tokenizer.from_json(family["bpe"].to_json())
    texts = SOURCE.split("\n\n")
    assert [small.encode(text) for text in texts] == family["bpe"].encode_batch(texts)
