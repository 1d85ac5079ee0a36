"""Worker: text written token by token with the cache, by Farthing's generate or by transformers' generate, same weights.

A unit of work is one text: a short prompt continued for so many tokens, one text at a time.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable

import torch
from shapes import GPT2_ARCHITECTURE, Shape

from farthing import config, session
from farthing.model.generate import generate
from farthing.model.gpt import GPT, build_model
from farthing.model.inference import Precision
from farthing.recipe import Recipe
from sides.turnstile import Turnstile, asked

PROMPT = [17, 4, 289, 33, 1, 502, 77, 9]
Text = Callable[[], list[int]]
"""writes one text; returns the new tokens"""


def ours(model: GPT, tokens: int, *, temperature: float, precision: Precision) -> Text:
    """farthing.model.generate."""
    return lambda: list(generate(model.eval(), PROMPT, tokens=tokens, temperature=temperature, precision=precision))


def transformers(model: GPT, shape: Shape, tokens: int, *, temperature: float) -> Text:
    """GPT2LMHeadModel.generate with its cache, the sampling warpers off as in ours."""
    from weights import gpt2_with

    theirs = gpt2_with(model.state_dict(), shape).eval()
    prompt_BT = torch.tensor([PROMPT])
    mask_BT = torch.ones_like(prompt_BT)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}

    def once() -> list[int]:
        written_BT = theirs.generate(
            prompt_BT, attention_mask=mask_BT, max_new_tokens=tokens, use_cache=True, pad_token_id=0, **how
        )
        return [int(token) for token in written_BT[0, len(PROMPT) :]]

    return once


def main() -> None:
    """Write when it is our turn."""
    wanted = asked()
    shape, temperature = Shape(**wanted["shape"]), wanted["temperature"]
    recipe = config.load(Recipe, "default", [*shape.recipe(), *GPT2_ARCHITECTURE])
    session.prepare_machine(recipe, "cpu")
    model = build_model(recipe.model, shape.vocab_size, seed=recipe.seed)
    tokens = shape.context - len(PROMPT)
    if wanted["arm"] == "ours":
        once = ours(model, tokens, temperature=temperature, precision=wanted.get("precision", "fp32"))
    else:
        once = transformers(model, shape, tokens, temperature=temperature)
    turnstile = Turnstile({"tokens": tokens}, {"text": once})
    while turnstile.next():
        once()


if __name__ == "__main__":
    main()
