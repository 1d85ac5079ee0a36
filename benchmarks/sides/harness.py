"""Worker: a task's questions answered by lm-evaluation-harness with an exported folder, as `lm_eval --model hf` does it.

A unit of work is one evaluation from the question file to the scores; loading the model is not part of it.
"""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from typing import Any

from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from farthing.evals.harness import TASKS
from sides.turnstile import Turnstile, asked


def main() -> None:
    """Evaluate when it is our turn."""
    wanted = asked()
    task, limit = wanted["task"], wanted.get("limit")
    # Attention, number format and logits' cache as the command has them by default; batches as asked, its default is 1.
    model = get_model("hf")(pretrained=wanted["export"], device="cpu", batch_size=wanted["batch_size"])
    manager = TaskManager(include_defaults=False, include_path=str(TASKS), metadata={"data": wanted["data"]})
    found: dict[str, Any] = {}

    def once() -> None:
        found.update(evaluate(lm=model, task_dict=manager.load([task]), limit=limit, bootstrap_iters=0) or {})

    def scores() -> dict[str, float]:
        table = found["results"][task]
        return {name: table[f"{name},none"] for name in ("acc", "acc_norm") if f"{name},none" in table}

    def decisions() -> list[list[float]]:
        """Each question's log-likelihoods, in the order of the file."""
        samples = sorted(found["samples"][task], key=lambda sample: int(sample["doc_id"]))
        return [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]

    once()  # also the warm-up; and the number of questions is known only now
    questions = found["n-samples"][task]["effective"]
    turnstile = Turnstile({"questions": questions}, {"scores": scores, "log_likelihoods": decisions}, warm_up=0)
    while turnstile.next():
        once()


if __name__ == "__main__":
    main()
