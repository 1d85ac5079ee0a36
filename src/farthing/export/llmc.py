"""llm.c's model checkpoints: a header of 256 int32, then GPT-2's parameters one kind after the other.

Version 3 is fp32, version 5 bf16; the vocabulary is padded to a multiple of 128. The order of the tensors is that of
ParameterTensors in train_gpt2.c; matrices are [out, in].

Shapes: L layers, C channels (d_model), T context length, V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from farthing import config
from farthing.data.tokenizer import Tokenizer
from farthing.errors import FarthingError, UserError
from farthing.export import Dtype, Exportable, Written
from farthing.export.foreign import Foreign
from farthing.recipe.model import Model
from farthing.storage import fsync_file

MAGIC = 20240326
_HEADER = 256
_VERSIONS: dict[Dtype, int] = {"fp32": 3, "bf16": 5}
_TORCH = {3: torch.float32, 5: torch.bfloat16}
_MULTIPLE = 128
FILE = "model.bin"

_BLOCK = (
    "attention_norm.weight",
    "attention_norm.bias",
    "attention.qkv.weight",
    "attention.qkv.bias",
    "attention.output.weight",
    "attention.output.bias",
    "mlp_norm.weight",
    "mlp_norm.bias",
    "mlp.up.weight",
    "mlp.up.bias",
    "mlp.down.weight",
    "mlp.down.bias",
)
"""what is stored of the blocks, each for all of them before the next; qkv is query, key and value, one after the other"""


@dataclass(frozen=True)
class Header:
    """What the file says of itself."""

    version: int
    context_length: int
    vocab_size: int
    n_layer: int
    n_head: int
    channels: int
    padded: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What is stored, in order; of the blocks, the tensors of all layers together."""
        wide, layers = self.channels, self.n_layer
        matrices = {"qkv": (3 * wide, wide), "output": (wide, wide), "up": (4 * wide, wide), "down": (wide, 4 * wide)}
        found: dict[str, tuple[int, ...]] = {
            "embed.weight": (self.padded, wide),
            "position.weight": (self.context_length, wide),
        }
        for name in _BLOCK:
            shape = matrices.get(name.split(".")[-2], (wide,))
            found[name] = (layers, *shape) if name.endswith("weight") else (layers, shape[0])
        return {**found, "norm.weight": (wide,), "norm.bias": (wide,)}

    def section(self) -> Model:
        """The same as a recipe's [model]."""
        table = {
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "d_model": self.channels,
            "context_length": self.context_length,
            "tie_embeddings": True,
            "bias": True,
            "norm": {"kind": "layernorm", "eps": 1e-5},
            "position": {"kind": "learned"},
            "mlp": {"kind": "gelu", "approximate": "tanh", "ratio": 4.0},
        }
        return config.build(Model, table)


def write(folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
    """Write `model.bin`, as llm.c's programs load it, and read it back.

    Raises:
        UserError: the model is not GPT-2's; names what differs.
        FarthingError: what was written does not read back the same.
    """
    section = made.section
    header = Header(
        _VERSIONS[dtype], section.context_length, made.vocab_size, section.n_layer, section.n_head, section.d_model,
        padded=-(-made.vocab_size // _MULTIPLE) * _MULTIPLE,
    )  # fmt: skip
    refuse_other_models(section, header)
    path, kind = folder / FILE, _TORCH[header.version]
    with path.open("wb") as stream:
        stream.write(_packed(header))
        for name in header.shapes():
            for values in _stored(made.weights, name, header):
                stream.write(values.to(kind).contiguous().view(torch.uint8).numpy().tobytes())
    fsync_file(path)
    difference = _difference(path, made.weights, kind)
    notes = [f"vocabulary padded with zeros from {header.vocab_size:,} to {header.padded:,}"]
    if header.vocab_size != 50_257:
        notes.append("llm.c's own tokenizer file is GPT-2's; this model has another vocabulary")
    return Written(f"llm.c version {header.version}", tuple(notes), {"largest_weight_difference": difference})


def refuse_other_models(section: Model, header: Header) -> None:
    """Refuse what llm.c has no room for.

    Raises:
        UserError: names the settings that differ from GPT-2's.
    """
    wanted = header.section()
    free = ("init.", "dropout", "mlp.ratio", "mlp.multiple_of", "n_kv_head")
    changes = [one for one in config.diff(wanted, section) if not one.path.startswith(free)]
    differing = [f"model.{one.path}={'none' if one.new is None else one.new}" for one in changes]
    if section.hidden != 4 * section.d_model:
        differing.append(f"a feed-forward width of {section.hidden} (not {4 * section.d_model})")
    if section.kv_heads != section.n_head:
        differing.append(f"model.n_kv_head={section.kv_heads}")
    if differing:
        raise UserError(
            f"llm.c holds GPT-2's architecture only, and this model has {', '.join(differing[:10])}; export it with "
            "--format huggingface"
        )


def _packed(header: Header) -> bytes:
    numbers = np.zeros(_HEADER, dtype="<i4")
    numbers[:8] = (
        MAGIC, header.version, header.context_length, header.vocab_size, header.n_layer, header.n_head,
        header.channels, header.padded,
    )  # fmt: skip
    return numbers.tobytes()


def _stored(weights: Mapping[str, Tensor], name: str, header: Header) -> Iterator[Tensor]:
    """One entry of Header.shapes, piece by piece."""
    if name not in _BLOCK:
        yield weights[name]
        if name == "embed.weight":
            yield torch.zeros(header.padded - header.vocab_size, header.channels)
        return
    for layer in range(header.n_layer):
        for part in _parts(name):
            yield weights[f"blocks.{layer}.{part}"]


def _parts(name: str) -> list[str]:
    return [name.replace("qkv", one) for one in ("query", "key", "value")] if ".qkv." in name else [name]


def _difference(path: Path, weights: Mapping[str, Tensor], kind: torch.dtype) -> float:
    """The largest difference between the weights and the file's, which is that of rounding alone."""
    largest = 0.0
    for name, values in _values(path, read_header(path)):
        original = weights[name].to(torch.float32)
        if not torch.equal(values, original.to(kind).to(torch.float32)):
            raise FarthingError(f"{path}: {name} does not read back as it was written")
        largest = max(largest, float((values - original).abs().max()))
    return largest


def read(path: Path, tokenizer: Tokenizer) -> Foreign:
    """A model checkpoint of llm.c.

    Args:
        path: the file.
        tokenizer: the one that the model was trained with; the file has none.

    Raises:
        UserError: it is no such file, damaged, or of another vocabulary.
    """
    header = read_header(path)
    if header.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{path}: a vocabulary of {header.vocab_size:,} tokens, but the tokenizer has {tokenizer.vocab_size:,}; "
            "give the tokenizer that the model was trained with: --tokenizer FILE"
        )
    weights = dict(_values(path, header))
    for name, values in weights.items():
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"{path}: {name} holds values that are not finite; the weights are damaged")
    return Foreign(f"llm.c version {header.version}", header.section(), weights, tokenizer)


def read_header(path: Path) -> Header:
    """What a checkpoint's header says, checked against the size of the file.

    Raises:
        UserError: it is no model checkpoint of llm.c, of another version, or not of the size that it says.
    """
    try:
        size, numbers = path.stat().st_size, np.fromfile(path, dtype="<i4", count=_HEADER)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(numbers) < _HEADER:
        raise UserError(
            f"{path}: {size:,} bytes are too few for a model of llm.c, whose header alone has {4 * _HEADER:,}"
        )
    magic, version, *told = (int(number) for number in numbers[:8])
    if magic != MAGIC:
        hint = "; that is a shard of tokens: train on it with data.kind=bin" if magic == 20240520 else ""
        raise UserError(f"{path}: not a model of llm.c: magic {magic} where {MAGIC} belongs{hint}")
    if version not in _TORCH:
        raise UserError(f"{path}: llm.c model of version {version}; 3 (fp32) and 5 (bf16) are read")
    header = Header(version, *told)
    if min(told) < 1 or header.padded < header.vocab_size or header.channels % header.n_head:
        raise UserError(
            f"{path}: the header makes no sense: context {told[0]}, vocabulary {told[1]} padded to {told[5]}, "
            f"{told[2]} layers, {told[3]} heads, {told[4]} channels"
        )
    # Python's integers: the sizes of a header that was made to do harm may overflow any other.
    count = sum(_count(shape) for shape in header.shapes().values())
    expected = 4 * _HEADER + count * _TORCH[version].itemsize
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes where its header asks for {expected:,}; fetch or write it again")
    return header


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _values(path: Path, header: Header) -> Iterator[tuple[str, Tensor]]:
    """The parameters by our names in fp32, one kind after the other; only one kind is in memory besides."""
    kind = _TORCH[header.version]
    stored = np.dtype("<f4") if kind == torch.float32 else np.dtype("<i2")
    with path.open("rb") as stream:
        stream.seek(4 * _HEADER)
        for name, shape in header.shapes().items():
            values = torch.from_numpy(np.fromfile(stream, dtype=stored, count=_count(shape))).view(kind)
            values = values.view(shape).to(torch.float32)
            if name == "embed.weight":
                yield name, values[: header.vocab_size].clone()
            elif name not in _BLOCK:
                yield name, values
            else:
                for layer, of_layer in enumerate(values):
                    parts = _parts(name)
                    for part, piece in zip(parts, of_layer.chunk(len(parts)), strict=True):
                        yield f"blocks.{layer}.{part}", piece.clone()
