"""Worker: a task's questions answered by Farthing's own scorer, as `farthing eval RUN --task NAME --data FILE` does it.

A unit of work is one evaluation from the question file to the scores; loading the model is not part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shapes import GPT2_ARCHITECTURE, Shape

from farthing import assemble, config, session
from farthing.evals.tasks import Scored, find_task, load, score
from farthing.model.gpt import build_model
from farthing.planning import settle
from farthing.recipe import Recipe
from farthing.storage import cache_folder
from sides.turnstile import Turnstile, asked


def main() -> None:
    """Evaluate when it is our turn."""
    wanted = asked()
    shape = Shape(**wanted["shape"])
    recipe = config.load(Recipe, "default", [*shape.recipe(), *GPT2_ARCHITECTURE])
    text = assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=lambda *_: None)
    machine = session.prepare_machine(recipe, "cpu")
    settings = settle(recipe, machine, assemble.Counts(shape.vocab_size, None, None))
    weights = build_model(recipe.model, shape.vocab_size, seed=recipe.seed).state_dict()
    model = assemble.load_model(recipe, settings, weights, shape.vocab_size)
    task, found = find_task(wanted["task"]), list[Scored]()

    def once(data: str = wanted["data"]) -> None:
        loaded = load(task, data, directory=Path.cwd())
        precision = "bf16" if wanted.get("bf16") else "fp32"
        found[:] = [score(loaded, model, text.tokenizer, device=machine.torch_device, precision=precision)]

    def scores() -> dict[str, Any]:
        return {name: reading.value for name, reading in found[0].readings.items()}

    def decisions() -> list[list[float]]:
        """Each question's log-likelihoods, in the order of the file."""
        return [[-nats for nats in answer.nats] for _, answer in found[0].answers]

    once(wanted["warm_up"])
    questions = len(load(task, wanted["data"], directory=Path.cwd()).items)
    turnstile = Turnstile({"questions": questions}, {"scores": scores, "log_likelihoods": decisions}, warm_up=0)
    while turnstile.next():
        once()


if __name__ == "__main__":
    main()
