"""GGUF, the one-file format of llama.cpp: settings, tokenizer and weights (needs the extra [gguf]).

Three of its architectures compute what one of our models does: gpt2, llama and qwen3. Tensor names and their order of
coordinates are those of llama.cpp's own converter, so that llama.cpp and transformers (`gguf_file=`) read the file.

Shapes: H heads, K width of a head, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from farthing.data import tokenizer_json
from farthing.data.tokenizer import Tokenizer
from farthing.errors import FarthingError, UserError, need
from farthing.export import Dtype, Exportable, Written
from farthing.export.stock import Stock, stock_class
from farthing.recipe.model import Gelu, Model, Rope, SwiGlu
from farthing.storage import fsync_file

FILE = "model.gguf"
_ARCHITECTURES = {"GPT2LMHeadModel": "gpt2", "LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
"""by the class of transformers that computes the same"""
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""GPT-2's linear layers, [in, out] in transformers and [out, in] here"""
_NORMAL, _CONTROL = 1, 3
"""kinds of tokens: text, and what no text holds"""


def write(folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
    """Write `model.gguf` and read it back.

    Vectors and the table of positions stay fp32 in every file, as llama.cpp's converter leaves them.

    Raises:
        UserError: GGUF has no architecture for the model, or no words for its tokenizer; or the package is missing.
        FarthingError: what was written does not read back the same.
    """
    library: Any = need("gguf", extra="gguf", why="--format gguf")
    stock, architecture = _architecture(made.section)
    vocabulary = _vocabulary(made.tokenizer)
    path = folder / FILE
    writer = library.GGUFWriter(path, architecture)
    _describe(writer, library, made, architecture, dtype)
    _add_tokenizer(writer, vocabulary, separator=made.separator)
    tensors = dict(_tensors(library, stock, architecture, made))
    for name, values in tensors.items():
        kind = _kind(library, name, values, dtype)
        writer.add_tensor(name, library.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fsync_file(path)
    begins = f"a document begins with {made.tokenizer.separator_text}, which readers do not add by themselves"
    lacks = [
        f"transformers does not look for {key} in such a file and takes {usual}; pass it a config with {key}={value} "
        "(llama.cpp reads the file as it is)"
        for key, (value, usual) in unread(made.section, architecture).items()
        if value != usual
    ]
    return Written(f"GGUF {architecture}", (begins, *lacks), _proof(library, path, tensors, dtype))


def unread(section: Model, architecture: str) -> dict[str, tuple[int, int]]:
    """Settings that transformers does not take from a GGUF of this architecture: what they are, and what it takes."""
    match architecture:
        case "gpt2":
            return {"n_positions": (section.context_length, 1024)}
        case "qwen3":
            return {"head_dim": (section.head_dim, 128)}
    return {}


def _architecture(section: Model) -> tuple[Stock, str]:
    """The architecture that computes the model, and the class of transformers that it is named after.

    Raises:
        UserError: there is none; says what is in the way.
    """
    match = stock_class(section)
    architecture = None if match.stock is None else _ARCHITECTURES.get(match.stock.name)
    if match.stock is None or architecture is None:
        other = match.reason or f"transformers calls it {match.stock.name if match.stock else 'nothing'}"
        raise UserError(
            f"GGUF is written for models of GPT-2's, Llama's and Qwen3's shape only, and this is none ({other}); "
            "export it with --format huggingface"
        )
    # What these architectures mean in llama.cpp is narrower than what the classes of transformers can do.
    wrong = None
    if architecture == "gpt2":
        if not isinstance(section.mlp, Gelu) or section.mlp.approximate != "tanh":
            wrong = "gpt2 has GELU in its tanh form: model.mlp.kind=gelu model.mlp.approximate=tanh"
        elif section.hidden != 4 * section.d_model:
            wrong = f"gpt2 has a feed-forward width of 4 d_model, here {section.hidden} of {section.d_model}"
    elif not isinstance(section.mlp, SwiGlu):
        wrong = f"{architecture} has SwiGLU: model.mlp.kind=swiglu"
    elif section.bias:
        wrong = f"{architecture} has no biases: model.bias=false"
    if wrong is not None:
        raise UserError(f"GGUF's {wrong}; export this model with --format huggingface")
    return match.stock, architecture


def _vocabulary(tokenizer: Tokenizer) -> tokenizer_json.Specification:
    """The tokenizer.json of a byte-pair encoding that GGUF has words for.

    Raises:
        UserError: it is another kind of tokenizer.
    """
    specification = tokenizer_json.parse(tokenizer.to_json())
    model = specification["model"]
    if model.get("type") != "BPE" or not model.get("merges") or not tokenizer_json.splits_like_gpt2(specification):
        raise UserError(
            "GGUF is written with byte-pair encodings over GPT-2's words only (tokenizer.kind bpe or gpt2), and this "
            f"model's tokenizer is {'one of bytes alone' if model.get('type') == 'BPE' else model.get('type')}; "
            "export it with --format huggingface"
        )
    return specification


def _describe(writer: Any, library: Any, made: Exportable, architecture: str, dtype: Dtype) -> None:
    section = made.section
    writer.add_name(made.name)
    writer.add_file_type(library.LlamaFileType.ALL_F32 if dtype == "fp32" else library.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(section.context_length)
    writer.add_embedding_length(section.d_model)
    writer.add_block_count(section.n_layer)
    writer.add_feed_forward_length(section.hidden)
    writer.add_head_count(section.n_head)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(section.norm.eps)
        return
    assert isinstance(section.position, Rope)
    writer.add_head_count_kv(section.kv_heads)
    writer.add_layer_norm_rms_eps(section.norm.eps)
    writer.add_rope_freq_base(section.position.base)
    writer.add_rope_dimension_count(section.head_dim)
    writer.add_key_length(section.head_dim)
    writer.add_value_length(section.head_dim)
    writer.add_vocab_size(made.vocab_size)


def _add_tokenizer(writer: Any, specification: tokenizer_json.Specification, *, separator: int) -> None:
    names = tokenizer_json.token_names(specification)
    special = tokenizer_json.special_names(specification)
    merges = specification["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([_CONTROL if name in special else _NORMAL for name in names])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(separator)
    writer.add_eos_token_id(separator)
    # As the tokenizer of the run and the one of the exported folder: equal ids for equal text.
    writer.add_add_bos_token(False)


def _tensors(library: Any, stock: Stock, architecture: str, made: Exportable) -> Iterator[tuple[str, np.ndarray]]:
    """The weights under GGUF's names, in fp32."""
    section = made.section
    number = next(key for key, name in library.MODEL_ARCH_NAMES.items() if name == architecture)
    names = library.get_tensor_name_map(number, section.n_layer)
    for theirs, values in stock.weights(section, made.weights).items():
        if architecture == "gpt2" and theirs.endswith(_TRANSPOSED):
            values = values.t()
        if architecture == "llama" and theirs.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, section.n_head if "q_proj" in theirs else section.kv_heads)
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"{theirs} has no name in GGUF"
        yield name, values.contiguous().float().numpy()


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a head from the half-split layout of RoPE, pairs (i, i + K/2), to llama.cpp's, pairs (2i, 2i + 1)."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _kind(library: Any, name: str, values: np.ndarray, dtype: Dtype) -> Any:
    kinds = library.GGMLQuantizationType
    whole = dtype == "fp32" or values.ndim == 1 or name.startswith("position_embd")
    return kinds.F32 if whole else kinds.BF16


def _proof(library: Any, path: Path, tensors: dict[str, np.ndarray], dtype: Dtype) -> dict[str, Any]:
    """Every tensor read back: equal but for rounding to the file's number format."""
    reader, largest = library.GGUFReader(path), 0.0
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != tensors.keys():
        raise FarthingError(f"not exported: {path.name} does not read back with the tensors that it was written with")
    for name, values in tensors.items():
        kind = _kind(library, name, values, dtype)
        rounded = library.quants.dequantize(library.quants.quantize(values, kind), kind)
        back = library.quants.dequantize(found[name].data, found[name].tensor_type)
        if back.shape != values.shape or not np.array_equal(back, rounded):
            raise FarthingError(f"not exported: {name} of {path.name} does not read back as it was written")
        largest = max(largest, float(np.abs(back - values).max()))
    return {"tensors": len(tensors), "largest_weight_difference": largest}
