"""The tokenizer and the drawing of text as files that transformers reads.

The separator has every part that transformers knows a name for: documents end with it (eos), the first token of a text
follows it (bos), and where texts of a batch differ in length they are filled up with it (pad), out of the model's sight.
No text encodes to it, as in training: a text that spells it out stays text (split_special_tokens).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from farthing.data.tokenizer_codec import Tokenizer
from farthing.recipe.running import Sample
from farthing.storage import write_json, write_text


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        folder: where to.
        tokenizer: the run's.
        context_length: tokens in a window, which transformers warns of.
    """
    write_text(folder / "tokenizer.json", _without_additions(tokenizer.to_json()))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), tokenizer.separator_text)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",  # a text is continued at its right end
        "model_max_length": context_length,
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_generation(folder: Path, sample: Sample, *, separator: int, context_length: int) -> None:
    """Write generation_config.json: how the run itself draws, and which token ends a text.

    Args:
        folder: where to.
        sample: the recipe's [sample].
        separator: the token that ends a document.
        context_length: tokens in a window; `generate` does not move the window on, so it stops there at the latest.
    """
    settings: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), separator)
    if new := min(sample.tokens, context_length - 1):
        settings["max_new_tokens"] = new
    settings["do_sample"] = sample.temperature > 0
    if sample.temperature > 0:
        settings["temperature"] = sample.temperature
        settings["top_k"] = sample.top_k or 0  # transformers takes the 50 likeliest where nothing is said
        if sample.top_p is not None:
            settings["top_p"] = sample.top_p
    write_json(folder / "generation_config.json", settings)


def _without_additions(json_text: str) -> str:
    """The tokenizer.json without what adds tokens to a text unasked: the model has not been trained to see them."""
    specification = json.loads(json_text)
    after = specification.get("post_processor")
    if after is None or after.get("type") == "ByteLevel":
        return json_text
    parts = after.get("processors", [])
    specification["post_processor"] = next((part for part in parts if part.get("type") == "ByteLevel"), None)
    return json.dumps(specification, ensure_ascii=False, indent=1)
