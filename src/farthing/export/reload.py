"""A folder as a stranger loads it: a program of its own, without farthing, without a network, compared and told in JSON.

    python -P reload.py FOLDER PROOF

PROOF is a folder with texts.json (texts, their token ids, and the text that these decode to) and logits.safetensors
(for each window of tokens `tokens_i`, its positions `positions_i` and what the original gives there, `logits_i`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

OWN_CODE = "modeling_farthing.py"


def main() -> None:
    """Load, compare, and print one line of JSON."""
    folder, proof = Path(sys.argv[1]), Path(sys.argv[2])
    sys.addaudithook(_refuse_network)
    found = {**compare_tokenizer(folder, proof), **compare_logits(folder, proof)}
    sys.stdout.write(json.dumps(found) + "\n")


def compare_tokenizer(folder: Path, proof: Path) -> dict[str, Any]:
    """The first text whose ids or decoding differ, by its number, and how many there are."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    asked = json.loads((proof / "texts.json").read_text("utf-8"))
    texts = asked["texts"]
    differs = None
    for number, (text, ids, back) in enumerate(texts):
        if tokenizer(text)["input_ids"] != ids or tokenizer.decode(ids, skip_special_tokens=True) != back:
            differs = number
            break
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return {"texts": len(texts), "text_differs": differs, "special_right": special == {asked["separator"]}}


def compare_logits(folder: Path, proof: Path) -> dict[str, Any]:
    """The largest difference between this model's logits and the original's, their scale, and the class that loaded."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=is_our_own(folder / OWN_CODE),
        output_loading_info=True,
    )
    model, loading = loaded
    model.eval()
    tensors = load_file(proof / "logits.safetensors")
    difference = scale = 0.0
    tokens = 0
    for number in range(sum(name.startswith("tokens_") for name in tensors)):
        tokens_T, positions_P, expected_PV = (tensors[f"{what}_{number}"] for what in ("tokens", "positions", "logits"))
        with torch.inference_mode():
            logits_PV = model(tokens_T.unsqueeze(0)).logits[0, positions_P].float()
        # A NaN on one side is a difference, not a comparison that is false.
        apart = (logits_PV - expected_PV).abs().nan_to_num(nan=torch.inf).max()
        difference, scale = max(difference, float(apart)), max(scale, float(expected_PV.abs().max()))
        tokens += len(tokens_T)
    strays = sorted({str(name) for kind in ("missing_keys", "unexpected_keys") for name in loading[kind]})
    return {
        "form": type(model).__name__,
        "difference": min(difference, sys.float_info.max),  # JSON knows no infinity
        "scale": scale,
        "tokens": tokens,
        "strays": strays,
    }


def is_our_own(code: Path) -> bool:
    """Whether this is, byte for byte, the file that lies beside this one; other code is never run."""
    return code.is_file() and code.read_bytes() == Path(__file__).with_name(OWN_CODE).read_bytes()


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"an exported folder is loaded without a network, but {event}{arguments[-1:]} was asked for")


if __name__ == "__main__":
    main()
