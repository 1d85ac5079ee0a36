"""AutoTokenizer gives the run's own ids, whatever the tokenizer's kind, and knows which token ends a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, GenerationConfig

from export.small import tokenizer
from farthing.data.tokenizer import Tokenizer
from farthing.data.tokenizer_train import SEPARATOR, train_bpe
from farthing.data.tokenizer_unigram import train_unigram
from farthing.export.gate import UNUSUAL
from farthing.export.tokenizer_files import write_generation, write_tokenizer
from farthing.recipe.running import Sample

TEXT = "the farthing was the smallest coin, and the penny was four of them\n" * 20


def with_several_specials() -> str:
    """A stranger's tokenizer.json, which puts tokens around every text."""
    words = {word: number for number, word in enumerate(["[UNK]", "<s>", "</s>", *sorted(set(TEXT.split()))])}
    library = Library(models.WordLevel(words, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", words["<s>"]), ("</s>", words["</s>"])]
    )
    return str(library.to_str())


KINDS = {
    "byte": tokenizer,
    "bpe": lambda: Tokenizer.from_json(train_bpe(iter([TEXT]), vocab_size=300), separator=SEPARATOR),
    "unigram": lambda: Tokenizer.from_json(train_unigram(iter([TEXT]), vocab_size=300), separator=SEPARATOR),
    "file": lambda: Tokenizer.from_json(with_several_specials(), separator="</s>"),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    ours = KINDS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(folder, ours, context_length=64)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return ours, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def same(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("text", [TEXT, *UNUSUAL, "a <eos> b</s> <s>", "<eos>"])
def test_ids_and_decoding(pair: tuple[Tokenizer, Any], text: str) -> None:
    same(*pair, text)


@settings(max_examples=60)
@given(text=st.text())
def test_any_text(pair: tuple[Tokenizer, Any], text: str) -> None:
    same(*pair, text)


def test_the_separator_ends_begins_and_fills_up(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert {theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id} == {ours.separator}
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 64
    batch = theirs(["the", "the farthing was"], padding=True)
    assert batch["input_ids"][0][0] == ours.separator, "filled up on the left"
    assert batch["attention_mask"][0][0] == 0


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (Sample(temperature=0), {"do_sample": False, "max_new_tokens": 63}),
        (Sample(tokens=9), {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": 9}),
        (Sample(tokens=9, top_k=5, top_p=0.9), {"do_sample": True, "top_k": 5, "top_p": 0.9}),
    ],
)
def test_generation_draws_as_the_run_does(sample: Sample, expected: dict[str, Any], tmp_path: Path) -> None:
    write_generation(tmp_path, sample, separator=256, context_length=64)
    read = GenerationConfig.from_pretrained(tmp_path)
    read.validate(strict=True)
    assert {name: getattr(read, name) for name in expected} == expected
    assert (read.eos_token_id, read.bos_token_id, read.pad_token_id) == (256, 256, 256)
