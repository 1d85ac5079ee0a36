"""Worker: a model that learns a text and can be scored between two steps, Farthing's or transformers' by its Trainer.

Both have the same tokens, batch and context, and a schedule over the number of steps that the driver names. The score
is Farthing's own for both: bits per byte over every validation token, in fp32.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import Shape
from torch import Tensor, nn

from farthing import assemble, config, session
from farthing.data.prepare import Prepared
from farthing.optim.schedules import factor
from farthing.recipe import Recipe
from farthing.runtime.seed import seed_step
from farthing.storage import cache_folder
from sides.turnstile import Turnstile, asked


class Logits(nn.Module):
    """A transformers model as the scorer calls one: tokens to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]."""
        logits_BTV: Tensor = self.model(tokens_BT).logits
        return logits_BTV


def read_text(recipe: Recipe) -> Prepared:
    """The recipe's text, from the cache where it has been read before."""
    return assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=lambda *_: None)


def bits_per_byte(recipe: Recipe, text: Prepared, model: nn.Module) -> Callable[[], float]:
    """What scores a model on the validation text, as often as it is called."""
    device = torch.device("cpu")
    return lambda: float(
        assemble.score(recipe, model, text.validation, precision="fp32", device=device)["bits_per_byte"]
    )


def learn_ours(wanted: dict[str, Any]) -> None:
    """The recipe as `farthing train` would carry it out, over so many steps."""
    steps = wanted["steps"]
    recipe = config.load(Recipe, "default", [*wanted["overrides"], f"budget.minutes={wanted['minutes']}"])
    machine = session.prepare_machine(recipe, "cpu")
    text = read_text(recipe)
    plan = assemble.plan_run(recipe, machine, text, disk_free=session.disk_free(Path(tempfile.gettempdir())))
    stepper = assemble.build_stepper(recipe, plan.settings, text.tokenizer.vocab_size, machine.torch_device)
    batches = assemble.build_batches(recipe, text.train)
    facts = {"parameters": plan.parameters, "settings": plan.as_dict()["settings"]}
    turnstile = Turnstile(facts, {"score": bits_per_byte(recipe, text, stepper.model)}, warm_up=0)
    step = 0
    while turnstile.next():
        stepper.optimizer.set_factor(factor(recipe.schedule, min(step, steps - 1) / steps))
        seed_step(recipe.seed, step)
        stepper.take(batches.batch(step))
        step += 1


def learn_trainer(wanted: dict[str, Any]) -> None:
    """GPT-2 by its Trainer, AdamW and a cosine with warm-up."""
    import numpy as np
    from transformers import Trainer, TrainingArguments

    from sides.trainer import Turns, Windows, build, common_arguments

    shape = Shape(**wanted["shape"])
    # Only the text and the score are ours: torch is left as its user finds it.
    recipe = config.load(Recipe, "default", wanted["overrides"])
    text = read_text(recipe)
    path = Path(tempfile.mkdtemp()) / "tokens.npy"
    np.save(path, np.asarray(text.train.tokens_N))
    model = build(shape)
    arguments = TrainingArguments(
        **common_arguments(shape, wanted), max_steps=max(wanted["steps"], 1), **wanted["arguments"]
    )
    facts = {"parameters": model.num_parameters(), "settings": wanted["arguments"]}
    turnstile = Turnstile(facts, {"score": bits_per_byte(recipe, text, Logits(model))}, warm_up=0)
    trainer = Trainer(model, arguments, train_dataset=Windows(str(path), shape.context), callbacks=[Turns(turnstile)])
    trainer.train()
    # All steps are done; the driver has the last word.
    turnstile.next()


if __name__ == "__main__":
    want = asked()
    {"ours": learn_ours, "trainer": learn_trainer}[want["arm"]](want)
