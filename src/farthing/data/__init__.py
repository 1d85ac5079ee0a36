"""Text to batches: sources, splits, tokenizers, token shards and windows.

Names are imported when first used, so that a process that only tokenises does not load the rest. The function
`prepare`, where everything comes together, bears its module's name: `from farthing.data.prepare import prepare`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farthing.data.batches import Batch, Batches
    from farthing.data.known import KNOWN, fetch
    from farthing.data.preflight import many_epochs
    from farthing.data.prepare import Prepared, prepare_held_out
    from farthing.data.split import TokenSplit
    from farthing.data.tokenizer import Tokenizer, build_tokenizer

__all__ = [
    "KNOWN",
    "Batch",
    "Batches",
    "Prepared",
    "TokenSplit",
    "Tokenizer",
    "build_tokenizer",
    "fetch",
    "many_epochs",
    "prepare_held_out",
]

_HOMES = {
    "KNOWN": "known",
    "Batch": "batches",
    "Batches": "batches",
    "Prepared": "prepare",
    "TokenSplit": "split",
    "Tokenizer": "tokenizer",
    "build_tokenizer": "tokenizer",
    "fetch": "known",
    "many_epochs": "preflight",
    "prepare_held_out": "prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
