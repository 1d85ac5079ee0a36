"""The gate: an exported folder is loaded back, in a process of its own, and held against the model that it came from.

Shapes: T positions of a window, P of them compared, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from farthing.errors import FarthingError, UserError
from farthing.export import Exportable
from farthing.export.leaks import harmless_environment
from farthing.model.gpt import GPT

TOLERANCE = 1e-4
"""largest difference of logits in fp32, as a share of the largest logit, or of 1 where all are smaller"""
ROUNDED = 0.05
"""the same for weights that are rounded to bf16's eight bits"""

_PROGRAM = Path(__file__).with_name("reload.py")
_LONGEST_WINDOW = 1024
_WINDOWS = (_LONGEST_WINDOW, 256, 256)
"""tokens of the windows of real text, where the context is as long: one to see all positions, others for more text"""
_LOGITS = 1 << 24
"""numbers of one window that are compared at most"""
_CHARACTERS = 100_000
"""of all texts together"""
_LONGEST_TEXT = 20_000

UNUSUAL = (
    "",
    " ",
    "  two spaces,\ttabs\r\nand \u00a0 others \u3000\u200b\ufeff  ",
    "The quick brown fox jumps over the lazy dog. It's 3.14159, isn't it? (No: 10,000,000 - or about that many!)",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if v != 0}  # ~`@#$%^&*\n\n\n",
    "Zażółć gęślą jaźń; Ελληνικά, Кириллица, עברית, العربية, हिन्दी, ไทย, 日本語、한국어。 İı ẞß ﬁ e\u0301 \u00e9",
    "🙂 👩‍👩‍👧‍👦 🇪🇺 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ud7ff \ue000 \x00\x01\x1f\x7f\x80\xff",
    "<s></s><unk><pad><bos><eos><|endoftext|><|im_start|>[CLS][SEP][MASK] <0x0A> \u2581 \u0120 \u010a ##ing",
)
"""Text that tokenizers have been known to change."""


def check(folder: Path, made: Exportable, *, form: str, rounded: bool = False) -> dict[str, Any]:
    """Load the folder as others do and compare logits and token ids with the model's own.

    Args:
        folder: a complete export.
        made: what it was made of.
        form: the class that it should load as.
        rounded: its weights are those of an export that has been checked, rounded: ROUNDED is what they may differ by,
            and the short windows are enough.

    Returns:
        What was compared, JSON-ready: the largest difference of logits, their scale, how many tokens and texts.

    Raises:
        UserError: transformers is not installed.
        FarthingError: it is another model or another tokenizer.
    """
    proof = folder / ".proof"
    proof.mkdir()
    try:
        _write_texts(proof / "texts.json", made)
        save_file(_expected(made, windows(made)[1 if rounded else 0 :]), proof / "logits.safetensors")
        found = _load_elsewhere(folder, proof)
    finally:
        shutil.rmtree(proof, ignore_errors=True)
    if wrong := _difference(found, form=form, tolerance=ROUNDED if rounded else TOLERANCE):
        raise FarthingError(f"not exported: loaded back, the folder {wrong}; nothing is left of it; please report this")
    return {name: found[name] for name in ("difference", "scale", "tokens", "texts")}


def excerpts(texts: Iterable[str]) -> list[str]:
    """The beginnings of the first documents: enough to compare on."""
    found, left = [], _CHARACTERS
    for text in texts:
        found.append(text[: min(left, _LONGEST_TEXT)])
        left -= len(found[-1])
        if left <= 0:
            break
    return found


def windows(made: Exportable) -> list[list[int]]:
    """Token windows to compare on: real text where there is any, and unusual text; none longer than the context."""
    context = made.section.context_length
    if made.section.attention.scope == "document":
        # The model keeps documents apart by their separators, and what it is exported to does not.
        pieces = [[made.separator, *made.tokenizer.encode(text)] for text in made.texts]
    else:
        pieces = [[token for text in made.texts for token in (made.separator, *made.tokenizer.encode(text))]]
    real, rest = [], sorted(pieces, key=len, reverse=True)
    for longest in _WINDOWS:
        if rest and rest[0]:
            window, rest[0] = rest[0][: min(longest, context)], rest[0][min(longest, context) :]
            real.append(window)
            rest.sort(key=len, reverse=True)
    return [*real, [made.separator, *made.tokenizer.encode("".join(UNUSUAL))][: min(_LONGEST_WINDOW, context)]]


def _expected(made: Exportable, compared: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The original's logits in fp32, at positions spread over each window, for reload.py."""
    with torch.device("meta"):
        model = GPT(made.section, made.vocab_size).eval()
    model.load_state_dict(dict(made.weights), strict=True, assign=True)
    tensors = {}
    for number, window in enumerate(compared):
        tokens_T = torch.tensor(window)
        count = max(1, min(len(window), _LOGITS // made.vocab_size))
        positions_P = torch.linspace(0, len(window) - 1, count).long()
        with torch.inference_mode():
            logits_PV = model.head(model.hidden(tokens_T.unsqueeze(0))[0, positions_P])
        tensors.update(
            {
                f"tokens_{number}": tokens_T,
                f"positions_{number}": positions_P,
                f"logits_{number}": logits_PV.contiguous(),
            }
        )
    return tensors


def _write_texts(path: Path, made: Exportable) -> None:
    tokenizer = made.tokenizer
    asked = []
    for text in (*made.texts, *UNUSUAL, f"{tokenizer.separator_text} a{tokenizer.separator_text}b"):
        try:
            ids = tokenizer.encode(text)
        except UserError:  # an unusual character that this tokenizer has no token for
            continue
        asked.append([text, ids, tokenizer.decode(ids)])
    path.write_text(json.dumps({"separator": tokenizer.separator, "texts": asked}), "utf-8")


def _load_elsewhere(folder: Path, proof: Path) -> Mapping[str, Any]:
    """What reload.py finds, in a process without our modules, our secrets and a network."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HOME": str(proof / "home")}
    done = subprocess.run(
        [sys.executable, "-P", str(_PROGRAM), str(folder), str(proof)],
        env={**harmless_environment(), **offline},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    said = [line for line in done.stderr.splitlines() if line.strip()]
    last = said[-1] if said else f"exit code {done.returncode}"
    if "No module named 'transformers'" in last:
        raise UserError("export needs the package 'transformers'; install it with: pip install 'farthing[hf]'")
    raise FarthingError(
        f"not exported: the folder does not load: {last[:300]}; nothing is left of it; please report this"
    )


def _difference(found: Mapping[str, Any], *, form: str, tolerance: float) -> str | None:
    """What is wrong with a folder that has been loaded, a clause; None if nothing is."""
    if found["form"] != form:
        return f"is a {found['form']}, not a {form}"
    if found["strays"]:
        return f"has weights of other names ({', '.join(found['strays'][:3])})"
    if not found["difference"] <= tolerance * max(1.0, found["scale"]):
        return f"gives logits that differ by {found['difference']:.3g} (of at most {found['scale']:.3g})"
    if not found["special_right"]:
        return "has other special tokens than the run"
    if found["text_differs"] is not None:
        return f"gives other token ids than the run (text {found['text_differs'] + 1} of {found['texts']})"
    return None
