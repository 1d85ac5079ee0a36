"""Tokenizers from files: GPT-2's own, strangers' tokenizer.json, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from farthing.data.tokenizer import Tokenizer, build_tokenizer
from farthing.data.tokenizer_train import byte_tokenizer, train_bpe
from farthing.errors import UserError
from farthing.recipe.data import Gpt2Tokenizer, TokenizerFile

GPT2 = Path(__file__).parents[3] / "shared" / "data" / "gpt2_bpe"
SMALL = train_bpe(iter(["the cat sat on the mat; the cat sat " * 5]), vocab_size=280)


def nothing() -> Iterator[str]:
    raise AssertionError("a tokenizer from files looks at no text")


def load(path: Path, separator: str = "<eos>") -> Tokenizer:
    return build_tokenizer(TokenizerFile(path=path.name, separator=separator), nothing, directory=path.parent)


def write(folder: Path, content: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def changed(**model: Any) -> dict[str, Any]:
    specification = json.loads(SMALL)
    return {**specification, "model": {**specification["model"], **model}}


VOCABULARY: dict[str, int] = json.loads(SMALL)["model"]["vocab"]
MERGES: list[Any] = json.loads(SMALL)["model"]["merges"]

BAD = {
    "not JSON": ("{", "not valid JSON"),
    "JSON of another kind": ("[1, 2]", "no model with a vocabulary"),
    "a null": ("null", "no model with a vocabulary"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "no vocabulary": ({"model": {}}, "no model with a vocabulary"),
    "empty vocabulary": (changed(vocab={}, merges=[]), "none has id 0"),
    "two with one id": (changed(vocab={**VOCABULARY, "zz": 5}), "id 5 is both"),
    "a name twice": (SMALL.replace('"vocab": {', '"vocab": {"!": 3, '), "'!' is given twice"),
    "a hole": (changed(vocab={**VOCABULARY, "zz": 9999}), "none has id 269"),
    "a great hole": (changed(vocab={**VOCABULARY, "zz": 10**15}), "none has id"),
    "a negative id": (changed(vocab={**VOCABULARY, "zz": -1}), "-1 is not an id"),
    "an id that is no number": (changed(vocab={**VOCABULARY, "zz": "7"}), "'7' is not an id"),
    "a merge of strangers": (changed(merges=[*MERGES, ["x", "nobody"]]), "cannot load it"),
    "a merge of three": (changed(merges=[["a", "b", "c"]]), "cannot load it"),
    "a model nobody knows": (changed(type="Magic"), "cannot load it"),
    "a broken list": ({"model": {"type": "Unigram", "vocab": [[]]}}, "damaged entry"),
    "a broken added token": ({**json.loads(SMALL), "added_tokens": [{"id": 1}]}, "damaged entry"),
    "added tokens of another kind": ({**json.loads(SMALL), "added_tokens": 5}, "damaged entry"),
    "a bad pattern": (
        {**json.loads(SMALL), "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}},
        "cannot load",
    ),
    "several special tokens and a bad post-processor": (
        {
            **json.loads(SMALL),
            "added_tokens": [
                {"id": 268 + i, "content": name, "special": True} for i, name in enumerate(["<eos>", "<pad>"])
            ],
            "post_processor": 7,
        },
        "cannot load",
    ),
    "a post-processor of another kind": ({**json.loads(SMALL), "post_processor": 7}, "cannot load"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(UserError, match=message) as refused:
        load(write(tmp_path, content))
    assert "\n" not in str(refused.value)
    assert "tokenizer.json" in str(refused.value)


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent.json"):
        load(tmp_path / "absent.json")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"not text in UTF-8 \(byte 0\)"):
        load(tmp_path / "binary.json")
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(1_000_000_000)
    with pytest.raises(UserError, match="1,000 MB, more than any tokenizer"):
        load(tmp_path / "huge.json")


def test_an_unknown_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'<\|endoftext\|>' is not in the vocabulary"):
        load(write(tmp_path, SMALL), "<|endoftext|>")


mutations = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
TABLES = ["model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"]
MODEL = ["type", "vocab", "merges", "dropout", "unk_token", "unk_id", "byte_fallback", "ignore_merges"]


@given(table=st.sampled_from(TABLES), value=mutations, model=st.sampled_from(MODEL), whole=st.booleans())
@settings(max_examples=300)
def test_a_damaged_file_loads_or_is_refused(table: str, value: Any, model: str, whole: bool) -> None:
    specification = {**json.loads(SMALL), table: value} if whole else changed(**{model: value})
    try:
        made = Tokenizer.from_json(json.dumps(specification), separator="<eos>")
        assert made.separator < made.vocab_size
    except UserError as refused:
        assert "\n" not in str(refused)


def test_several_special_tokens_need_a_name() -> None:
    specification = json.loads(SMALL)
    end = specification["added_tokens"][0]
    specification["added_tokens"].append({**end, "id": end["id"] + 1, "content": "<pad>"})
    with pytest.raises(UserError, match="which of the special tokens"):
        Tokenizer.from_json(json.dumps(specification))
    made = Tokenizer.from_json(json.dumps(specification), separator="<eos>")
    assert Tokenizer.from_json(made.to_json()).separator_text == "<eos>"
    renamed = Tokenizer.from_json(made.to_json(), separator="<pad>")
    assert Tokenizer.from_json(renamed.to_json()).separator_text == "<pad>"


def test_a_separator_that_text_can_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text that contains 'the' would end a document"):
        load(write(tmp_path, SMALL), "the" if "the" in VOCABULARY else "missing")
    words = Library(models.WordLevel({"end": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match="would end a document"):
        load(write(tmp_path, words.to_str()), "end")


def test_a_separator_that_is_no_special_token_becomes_one(tmp_path: Path) -> None:
    specification = json.loads(SMALL)
    specification["added_tokens"][0]["special"] = False
    made = load(write(tmp_path, specification))
    assert made.separator not in made.encode("a <eos> b")
    assert made.decode(made.encode("a <eos> b")) == "a <eos> b"


def lossy_ones() -> dict[str, Library]:
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz[]<>")}
    pieces = Library(models.WordPiece({**letters, "[UNK]": 30, "<eos>": 31}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    unknown = Library(models.Unigram([("a", -1.0), ("<eos>", -9.0)]))
    composed = Library.from_str(SMALL)
    composed.normalizer = normalizers.NFKC()
    without_bytes = Library(models.BPE({"a": 0, "b": 1, "ab": 2, "<eos>": 3}, [("a", "b")]))
    return {"wordpiece": pieces, "unknown": unknown, "normalised": composed, "no bytes": without_bytes}


@pytest.mark.parametrize("name", lossy_ones())
def test_a_lossy_tokenizer_says_so(tmp_path: Path, name: str) -> None:
    made = load(write(tmp_path, lossy_ones()[name].to_str()))
    assert made.lossy
    assert "\n" not in made.lossy


def test_sentencepiece_style_files_are_read(tmp_path: Path) -> None:
    # Byte fallback and a meta space, as Llama 2 has them.
    names = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁", "a", "b", "ab", "▁ab"]
    ids = {name: i for i, name in enumerate(names)}
    merges = [("a", "b"), ("▁", "ab")]
    llama = Library(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama.add_special_tokens(["<unk>", "<s>", "</s>"])
    llama.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    made = load(write(tmp_path, llama.to_str()), "</s>")
    assert (made.separator, made.lossy) == (2, None)
    assert [made.token_bytes(token) for token in made.encode("ab é ab")] == [b" ab", b" ", b"\xc3", b"\xa9", b" ab"]
    assert made.decode(made.encode("ab é </s>")) == "ab é </s>"
    assert 2 not in made.encode("ab é </s>")
    assert Tokenizer.from_json(made.to_json()).separator == 2


def gpt2(folder: Path) -> Tokenizer:
    return build_tokenizer(Gpt2Tokenizer(path=str(folder)), nothing, directory=Path("elsewhere"))


def test_gpt2_files_under_both_names(tmp_path: Path) -> None:
    made = []
    for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        folder = tmp_path / vocabulary
        folder.mkdir()
        number = len(VOCABULARY)
        (folder / vocabulary).write_text(json.dumps({**VOCABULARY, "<|endoftext|>": number}), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
        (folder / merges).write_bytes("\r\n".join(lines).encode())
        made.append(gpt2(folder))
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].separator_text == "<|endoftext|>"
    assert made[0].encode("the cat") == Tokenizer.from_json(SMALL).encode("the cat")


def test_gpt2_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no encoder.json with vocab.bpe .*absent"):
        gpt2(tmp_path / "absent")
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\n", "utf-8")
    for content, message in (
        ("{", "not valid JSON"),
        ("{}", "no <|endoftext|> in it"),
        ("[]", "no <|endoftext|> in it"),
    ):
        (tmp_path / "encoder.json").write_text(content, "utf-8")
        with pytest.raises(UserError, match=message.replace("|", r"\|")):
            gpt2(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({"t": 0, "h": 1, "<|endoftext|>": 2}), "utf-8")
    with pytest.raises(UserError, match="cannot load it"):
        gpt2(tmp_path)


def test_gpt2_offline_names_the_setting(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from farthing.data.tokenizer import build_tokenizer\n"
        "from farthing.errors import UserError\n"
        "from farthing.recipe.data import Gpt2Tokenizer\n"
        "try:\n    build_tokenizer(Gpt2Tokenizer(), lambda: iter(()), directory=Path())\n"
        "except UserError as error:\n    print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert len(run.stdout.splitlines()) == 1
    assert "go online once, or set tokenizer.path" in run.stdout


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's files are not at hand")
def test_gpt2_itself() -> None:
    transformers = pytest.importorskip("transformers")
    made = gpt2(GPT2)
    assert (made.vocab_size, made.separator, made.lossy) == (50257, 50256, None)
    files = {"vocab": str(GPT2 / "encoder.json"), "merges": str(GPT2 / "vocab.bpe")}
    theirs = transformers.GPT2Tokenizer(**files)
    source = Path(json.__file__).read_text("utf-8")
    for text in [*source.split("\n\n"), "naïve café — 你好 🙂", "<|endoftext|> is text", "  \n\n  'twas"]:
        assert made.encode(text) == theirs.encode(text, split_special_tokens=True)
    assert made.encode("Hello world") == [15496, 995]


def test_the_byte_tokenizer_is_made_of_bytes_alone() -> None:
    vocabulary = json.loads(byte_tokenizer())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    assert vocabulary["A"] == 65
