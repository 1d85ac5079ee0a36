"""What is damaged, or asks for what there is not: one line that names it, and nothing written."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from export.strangers import TOKENIZER, VOCABULARY, ours, save_ours, section
from farthing.api.importing import import_huggingface
from farthing.errors import UserError
from farthing.export.config_json import KINDS, Settings, section_of
from farthing.export.foreign import read_folder
from farthing.export.reading import read_config

Damage = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_ours(ours(section(mlp={"kind": "swiglu"}, tie_embeddings=False)), tmp_path / "model")


def said_of(folder: Path) -> str:
    """What is said of a folder that is refused; nothing may have been written."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError) as refused:
        import_huggingface(folder, runs=folder.parent / "runs")
    assert sorted(folder.parent.rglob("*")) == before
    said = str(refused.value)
    assert "\n" not in said and len(said) < 1500
    return said


def changed(**settings: Any) -> Damage:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config = {key: value for key, value in {**config, **settings}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")

    return damage


CONFIGS: dict[str, Damage] = {
    "sliding_window": changed(sliding_window=16),
    "rope_scaling.rope_type": changed(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "rope_parameters.rope_type": changed(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
    "rope_scaling": changed(rope_scaling="linear"),
    "partial_rotary_factor": changed(partial_rotary_factor=0.5),
    "attention_multiplier": changed(attention_multiplier=0.01),
    "logits_scaling": changed(logits_scaling=8),
    "final_logit_softcapping": changed(final_logit_softcapping=30.0),
    "hidden_act": changed(hidden_act="relu"),
    "head_dim": changed(head_dim=8),
    "mlp_bias": changed(attention_bias=True),
    "layer_types": changed(layer_types=["full_attention", "sliding_attention"]),
    "quantization_config": changed(quantization_config={"bits": 4}),
    "num_local_experts": changed(num_local_experts=8),
    "model_type 'mixtral' cannot be read": changed(model_type="mixtral"),
    "did you mean llama": changed(model_type="lama"),
    "hidden_size = 0": changed(hidden_size=0),
    "hidden_size = not given": changed(hidden_size=...),
    "num_hidden_layers = 100000": changed(num_hidden_layers=100_000),
    "num_attention_heads = 3: does not divide": changed(num_attention_heads=3),
    "rms_norm_eps = -1": changed(rms_norm_eps=-1),
    "num_hidden_layers = True": changed(num_hidden_layers=True),
    "the weights only 50": changed(vocab_size=50),
    "[301, 16]": changed(vocab_size=VOCABULARY + 1),
    "layers.2.self_attn.q_proj.weight is missing": changed(num_hidden_layers=3),
    "layers.1.self_attn.q_proj.weight belongs to no part": changed(num_hidden_layers=1),
}


@pytest.mark.parametrize("words", CONFIGS)
def test_a_config_that_cannot_be_followed_is_told_by_its_key(words: str, folder: Path) -> None:
    CONFIGS[words](folder)
    assert words in said_of(folder)


def rewritten(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the JSON header alone."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        table = json.loads(content[8 : 8 + length])
        text = change(table) or json.dumps(table)
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + content[8 + length :])

    return damage


def start(length: int) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return damage


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"1234")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(**files: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files or None}), "utf-8")

    return damage


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text, "utf-8") and None


def overlapping(table: dict[str, Any]) -> None:
    table["model.layers.0.mlp.up_proj.weight"]["data_offsets"] = table["model.norm.weight"]["data_offsets"]


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        table[name] = table.pop("model.norm.weight")

    return change


def twice(table: dict[str, Any]) -> str:
    one = json.dumps({"lm_head.weight": table["lm_head.weight"]})[1:-1]
    return f"{json.dumps(table)[:-1]}, {one}}}"


def elsewhere(table: dict[str, Any]) -> str:
    """The head, named a second time where the embedding of the same shape lies."""
    one = json.dumps({"lm_head.weight": table.pop("model.embed_tokens.weight")})[1:-1]
    return f"{json.dumps(table)[:-1]}, {one}}}"


UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
FILES: dict[str, Damage] = {
    f"{NORM} is missing": rewritten(lambda t: t.pop(NORM)),
    "model.layers.0.mlp.extra belongs to no part of it": rewritten(
        lambda t: t.update({"model.layers.0.mlp.extra": t[NORM].clone()})
    ),
    f"{NORM} has the shape [15], not [16]": rewritten(lambda t: t.update({NORM: t[NORM][:15].clone()})),
    f"tensor '{UP}' holds values that are not finite": rewritten(lambda t: t[UP].view(-1)[5:6].fill_(float("nan"))),
    f"tensor '{NORM}' holds values that are not finite": rewritten(lambda t: t[NORM][3:4].fill_(float("inf"))),
    "is stored as I8": rewritten(lambda t: t.update({UP: t[UP].to(torch.int8)})),
    "says that its header has 9,223,372,036,854,775,808 bytes": start(1 << 63),
    "says that its header has 100,000,001 bytes": start(100_000_001),
    "says that its header has 18,446,744,073,709,551,615 bytes": start((1 << 64) - 1),
    "damaged: ": header(overlapping),
    "damaged:  ": header(lambda t: t[NORM].update(shape=[1 << 40])),
    "damaged:   ": header(lambda t: t[NORM].update(dtype="F33")),
    "damaged:    ": header(lambda t: t[NORM].update(shape=[-16])),
    "damaged:     ": header(lambda t: "{not json"),
    "damaged:      ": cut,
    "'../../evil' is no tensor's name": header(renamed("../../evil")),
    "is no tensor's name": header(renamed("model\x00norm.weight")),
    "4 bytes are too few": emptied,
    "can run code when opened": pickled,
    "no model.safetensors in it": without("model.safetensors"),
    "no tokenizer.json in it": without("tokenizer.json"),
    "config.json: cannot be read": without("config.json"),
    "config.json: not JSON": written("config.json", "{"),
    "config.json: not JSON (": written("config.json", "[" * 100_000),
    "config.json: not a JSON object, but list": written("config.json", "[]"),
    "tokenizer.json: not valid JSON": written("tokenizer.json", "{"),
    "no weight_map": index(),
    "'../model.safetensors' is not a safetensors file beside it": index(**{NORM: "../model.safetensors"}),
    "'absent.safetensors' is not a safetensors file beside it": index(**{NORM: "absent.safetensors"}),
    "'3' is not a safetensors file beside it": index(**{NORM: 3}),
    "says that 'absent' is in": index(absent="model-00001-of-00001.safetensors"),
}


@pytest.mark.parametrize("words", FILES)
def test_damaged_files_are_told(words: str, folder: Path) -> None:
    FILES[words](folder)
    assert words.strip() in said_of(folder)


def test_a_tensor_that_is_named_twice_means_one_thing_or_is_refused(folder: Path) -> None:
    sound = read_folder(folder).weights["unembed.weight"]
    header(twice)(folder)
    torch.testing.assert_close(read_folder(folder).weights["unembed.weight"], sound, atol=0, rtol=0)


def test_a_tensor_that_is_in_two_places_is_refused(folder: Path) -> None:
    header(elsewhere)(folder)
    assert "damaged" in said_of(folder)


def test_at_most_ten_tensors_are_listed(folder: Path) -> None:
    rewritten(lambda t: [t.pop(name) for name in list(t) if "layers" in name])(folder)
    said = said_of(folder)
    assert said.count("is missing") == 10 and "and 8 more" in said


def test_no_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        import_huggingface(tmp_path / "absent", runs=tmp_path / "runs")
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(UserError, match="is a file; name the folder"):
        import_huggingface(tmp_path / "file", runs=tmp_path / "runs")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "intermediate_size",
    "max_position_embeddings", "n_positions", "hidden_act", "activation_function", "rope_parameters", "rope_scaling",
    "rope_theta", "layer_types", "tie_word_embeddings", "rms_norm_eps", "attention_bias", "use_sliding_window",
    "no_rope_layers", "final_logit_softcapping", "ffn_dim", "n_inner", "position", "logit_softcap", "qk_layernorm",
)  # fmt: skip


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(KEYS), ANY, max_size=8))
def test_no_config_is_a_fault_of_ours(kind: str, settings: dict[str, Any]) -> None:
    try:
        section_of(Settings(Path("config.json"), {"model_type": kind, **settings}))
    except UserError as refused:
        assert "\n" not in str(refused)


@given(st.integers(0, 5000), st.integers(0, 255))
def test_no_byte_of_a_header_is_a_fault_of_ours(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        save_ours(ours(section(mlp={"kind": "swiglu"})), folder)
        (folder / "sound").write_bytes((folder / "model.safetensors").read_bytes())
    content = bytearray((folder / "sound").read_bytes())
    content[place % len(content)] = value
    (folder / "model.safetensors").write_bytes(content)
    try:
        read_folder(folder)
    except UserError as refused:
        assert "\n" not in str(refused)


def test_what_names_code_is_dropped_from_a_config(folder: Path) -> None:
    evil = {
        "auto_map": {"AutoModel": "x--y.Z"},
        "_attn_implementation_internal": "evil/repo",
        "trust_remote_code": True,
    }
    changed(**evil)(folder)
    assert not evil.keys() & read_config(folder).keys()
    assert read_folder(folder).kind == "llama"


PROGRAM = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen"):
        raise SystemExit(f"{event} was asked for")
sys.addaudithook(refuse)
from pathlib import Path
from farthing.export.foreign import read_folder
print(read_folder(Path(sys.argv[1])).kind, "transformers" in sys.modules)
"""


def test_nothing_of_a_folder_is_run_or_fetched(folder: Path) -> None:
    changed(auto_map={"AutoConfig": "evil.Config"}, _name_or_path="evil/repo")(folder)
    (folder / "evil.py").write_text("raise SystemExit('this must not run')", "utf-8")
    (folder / "__init__.py").write_text("raise SystemExit('this must not run')", "utf-8")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, cwd=folder)
    assert done.stdout.split() == ["llama", "False"], done.stderr


def test_the_separator_is_the_token_that_the_tokenizer_or_the_config_ends_with(folder: Path) -> None:
    table = json.loads(TOKENIZER)
    special = dict(table["added_tokens"][0], id=VOCABULARY, content="<pad>")
    table["added_tokens"].append(special)
    (folder / "tokenizer.json").write_text(json.dumps(table), "utf-8")
    rewritten(
        lambda t: t.update({n: torch.cat((t[n], t[n][:1])) for n in ("lm_head.weight", "model.embed_tokens.weight")})
    )(folder)
    changed(vocab_size=VOCABULARY + 1)(folder)
    assert "which of the special tokens" in said_of(folder)
    changed(eos_token_id=[VOCABULARY, 0])(folder)
    assert read_folder(folder).tokenizer.separator_text == "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}}), "utf-8")
    assert read_folder(folder).tokenizer.separator_text == "<eos>"
