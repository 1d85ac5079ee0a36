"""Load and score an exported folder as a stranger would: a program of its own, without Farthing and without a way out.

    python -P loading.py FOLDER [--code FILE] [--text FILE]

It prints one JSON object. Nothing of Farthing is imported, so that what is proven here holds where it is not installed;
the scoring is written anew, so that a mistake in Farthing's own cannot hide in both.

Shapes: N tokens of a text, B windows, T positions, V vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

_POSITIONS_AT_ONCE = 4096


def shut_in() -> None:
    """Let no socket of this process reach anything, for good."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    ways_out = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"}

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ways_out:
            raise PermissionError(f"a model must load without a network, and this one asked for it ({event})")

    sys.addaudithook(refuse)


def register(folder: Path, code: Path) -> None:
    """Make the classes of a file known to the library, in place of the folder's own copy of them.

    Args:
        folder: its config.json says what the classes are called.
        code: a file that the caller trusts.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    named = json.loads((folder / "config.json").read_text("utf-8"))["auto_map"]
    found = importlib.util.spec_from_file_location(code.stem, code)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[code.stem] = module
    found.loader.exec_module(module)
    config = getattr(module, named["AutoConfig"].rpartition(".")[2])
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, getattr(module, named["AutoModelForCausalLM"].rpartition(".")[2]))


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a folder in fp32, and what is told of it after it has read a few words."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loader: Any = AutoModelForCausalLM
    model, found = loader.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model.eval()
    ids = tokenizer("The first words of a text.")["input_ids"][: model.config.max_position_embeddings]
    with torch.inference_mode():
        logits_BTV = model(torch.tensor([ids])).logits
    strays = {str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]}
    return model, {
        "form": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "strays": sorted(strays),
        "finite": bool(torch.isfinite(logits_BTV).all()),
        "tokens_known": len(tokenizer),
        "vocabulary": logits_BTV.shape[-1],
    }


def score(model: Any, text: Path) -> float:
    """What a text costs the model, in nats, every token predicted once; docs/yardstick.md says how.

    Args:
        model: a causal model of transformers.
        text: a safetensors file with `tokens` [N], the separator included, and in its metadata `separator`,
            `context_length`, `stride` and `scope` (window, or document for a model that sees its own document only).
    """
    import torch
    from safetensors import safe_open

    with safe_open(text, framework="pt") as stored:
        said, tokens_N = stored.metadata(), stored.get_tensor("tokens").long()
    separator, context, stride = (int(said[name]) for name in ("separator", "context_length", "stride"))
    stream_N = torch.cat([torch.tensor([separator]), tokens_N])
    pieces = windows(len(tokens_N), context=context, stride=stride)
    if said["scope"] == "document":
        pieces = (part for piece in pieces for part in documents(piece, stream_N, separator))
    nats, batch = 0.0, []
    for piece in pieces:
        batch.append(piece)
        if len(batch) * context >= _POSITIONS_AT_ONCE:
            nats += _nats(model, stream_N, batch, said["scope"] == "document")
            batch = []
    return nats + (_nats(model, stream_N, batch, said["scope"] == "document") if batch else 0.0)


Piece = tuple[int, int, int, int]
"""what is read together: first input, first target that counts, end of the inputs, position of the first input"""


def windows(count: int, *, context: int, stride: int) -> Iterator[Piece]:
    """Windows over `count` targets: each counts once, after at least context - stride others but in the first window."""
    done = 0
    while done < count:
        start = max(0, done - (context - stride))
        end = min(start + context, count)
        yield start, done, end, 0
        done = end


def documents(piece: Piece, stream_N: Any, separator: int) -> Iterator[Piece]:
    """The parts of a window that belong to one document each: a separator as input begins the next one."""
    start, counted, end, _ = piece
    begins = [start, *(start + 1 + (stream_N[start + 1 : end] == separator).nonzero().flatten()).tolist(), end]
    for first, last in pairwise(begins):
        if last > counted:
            yield first, max(first, counted), last, first - start


def _nats(model: Any, stream_N: Any, batch: list[Piece], placed: bool) -> float:
    """The cost of the counted targets of some pieces, shorter ones filled up at their end, out of sight."""
    import torch

    longest = max(end - start for start, _, end, _ in batch)
    inputs_BT = torch.zeros((len(batch), longest), dtype=torch.long)
    targets_BT = torch.full((len(batch), longest), -100)
    positions_BT = torch.arange(longest).repeat(len(batch), 1)
    for row, (start, counted, end, position) in enumerate(batch):
        inputs_BT[row, : end - start] = stream_N[start:end]
        targets_BT[row, counted - start : end - start] = stream_N[counted + 1 : end + 1]
        positions_BT[row] += position
    where = {"position_ids": positions_BT.clamp(max=model.config.max_position_embeddings - 1)} if placed else {}
    with torch.inference_mode():
        logits_BTV = model(inputs_BT, use_cache=False, **where).logits.float()
        costs = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-100, reduction="none"
        )
    return float(costs.double().sum())


def main() -> None:
    """Load, score where a text is given, and print what came of it."""
    asked = argparse.ArgumentParser()
    asked.add_argument("folder", type=Path)
    asked.add_argument("--code", type=Path)
    asked.add_argument("--text", type=Path)
    given = asked.parse_args()
    shut_in()
    if given.code is not None:
        register(given.folder, given.code)
    model, told = load(given.folder)
    nats = score(model, given.text) if given.text is not None else None
    sys.stdout.write(json.dumps({**told, "nats": nats}) + "\n")


if __name__ == "__main__":
    main()
