"""Worker: a validation text scored by a 12 M GPT-2, by Farthing's scorer, by transformers' Trainer, or by a plain loop.

A unit of work is one pass over the text. All have the same weights and tokens.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from shapes import GPT2_ARCHITECTURE, Shape

from farthing import assemble, config, session
from farthing.data.split import TokenSplit
from farthing.model.gpt import build_model
from farthing.planning import settle
from farthing.recipe import Recipe
from farthing.storage import cache_folder
from sides.turnstile import Turnstile, asked

Pass = Callable[[], float]
"""scores the text once; returns nats per token"""


def windows(tokens_N: np.ndarray, context: int) -> torch.Tensor:
    """The text as windows [W, T], the ragged end left out."""
    whole = len(tokens_N) // context * context
    return torch.from_numpy(tokens_N[:whole].astype(np.int64)).view(-1, context)


def ours(recipe: Recipe, shape: Shape, split: TokenSplit) -> Pass:
    """The scorer as a run uses it."""
    machine = session.prepare_machine(recipe, "cpu")
    settings = settle(recipe, machine, assemble.Counts(shape.vocab_size, None, None))
    weights = build_model(recipe.model, shape.vocab_size, seed=recipe.seed).state_dict()
    model = assemble.load_model(recipe, settings, weights, shape.vocab_size)
    device = machine.torch_device

    def once() -> float:
        found = assemble.score(recipe, model, split, precision=settings.precision, device=device)
        return float(found["nats_per_token"])

    return once


def trainer(recipe: Recipe, shape: Shape, split: TokenSplit, *, bf16: bool) -> Pass:
    """Trainer.evaluate with its defaults."""
    from transformers import Trainer, TrainingArguments
    from weights import gpt2_with

    model = gpt2_with(build_model(recipe.model, shape.vocab_size, seed=recipe.seed).state_dict(), shape)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=bf16, report_to="none", disable_tqdm=True
    )
    rows: Any = [{"input_ids": row, "labels": row} for row in windows(split.tokens_N, shape.context)]
    evaluator = Trainer(model, arguments, eval_dataset=rows)
    return lambda: float(evaluator.evaluate()["eval_loss"])


def plain(recipe: Recipe, shape: Shape, split: TokenSplit) -> Pass:
    """A loop over batches without gradients, in fp32."""
    from weights import gpt2_with

    model = gpt2_with(build_model(recipe.model, shape.vocab_size, seed=recipe.seed).state_dict(), shape).eval()
    windows_WT = windows(split.tokens_N, shape.context)

    @torch.no_grad()
    def once() -> float:
        losses = []
        for tokens_BT in windows_WT.split(shape.batch):
            logits_BTV = model(tokens_BT).logits[:, :-1]
            losses.append(F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()))
        return float(torch.stack(losses).mean())

    return once


def main() -> None:
    """Score when it is our turn."""
    wanted = asked()
    shape = Shape(**wanted["shape"])
    given = [*shape.recipe(), *GPT2_ARCHITECTURE, f"evaluate.precision={wanted.get('evaluate', 'fp32')}"]
    recipe = config.load(Recipe, "default", given)
    text = assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=lambda *_: None)
    split = replace(text.validation, tokens_N=np.asarray(text.validation.tokens_N[: wanted["tokens"]]))
    makers: dict[str, Callable[[], Pass]] = {
        "ours": lambda: ours(recipe, shape, split),
        "trainer": lambda: trainer(recipe, shape, split, bf16=wanted.get("bf16", False)),
        "plain": lambda: plain(recipe, shape, split),
    }
    once = makers[wanted["arm"]]()
    turnstile = Turnstile({"tokens": len(split.tokens_N)}, {"loss": once}, warm_up=1)
    while turnstile.next():
        once()


if __name__ == "__main__":
    main()
