"""A side of rivals_reliability.py: trains the same tiny GPT as often as it is asked, in forks that may be killed.

    python -m sides.enduring trainer|lightning|ours

Reads lines of JSON ({"folder", "resume", "where", "nth", "seconds"}) and answers each with how the training ended. The
kill is a timer's signal that nobody handles: it ends the process wherever it is, as kill -9 does, and needs nobody whose
own clock is late. `where`: "training", from its beginning, or "save", from the beginning of its `nth`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS, SAVE_EVERY, BATCH, CONTEXT, WIDTH, LAYERS, HEADS = 24, 4, 8, 64, 128, 2, 2
DROPOUT = 0.1
TEXT = "text.txt"


class Clock:
    """Sets the timer that kills, and measures how long saves take where there is none."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked, self._saves, self._deep = asked, 0, 0
        self.save_seconds: list[float] = []

    def training_begins(self) -> None:
        """The first step is about to be taken."""
        self._set("training", 1)

    def around_saves(self, owner: Any, name: str) -> None:
        """From now on this function is a save."""
        genuine = getattr(owner, name)

        @functools.wraps(genuine)
        def save(*arguments: Any, **more: Any) -> Any:
            if self._deep:
                return genuine(*arguments, **more)
            self._saves += 1
            self._set("save", self._saves)
            self._deep, start = 1, time.perf_counter()
            try:
                return genuine(*arguments, **more)
            finally:
                self._deep = 0
                self.save_seconds.append(time.perf_counter() - start)

        setattr(owner, name, save)

    def _set(self, where: str, nth: int) -> None:
        if self._asked.get("where") == where and self._asked["nth"] == nth:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, self._asked["seconds"]))


def windows(text: Path) -> torch.Tensor:
    """The text's bytes, a window a row."""
    tokens = torch.frombuffer(bytearray(text.read_bytes()), dtype=torch.uint8).long()
    return tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def small_gpt2() -> dict[str, Any]:
    """Arguments of transformers' GPT2Config."""
    return {
        "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "vocab_size": 256, "n_positions": CONTEXT,
        "resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT, "attn_pdrop": DROPOUT, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def by_trainer(folder: Path, resume: bool, clock: Clock) -> dict[str, torch.Tensor]:
    """transformers' Trainer as its example scripts use it: get_last_checkpoint, and resume_from_checkpoint."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    class Begins(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            clock.training_begins()

    set_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**small_gpt2()))
    examples = [{"input_ids": row, "labels": row} for row in windows(folder.parent / TEXT)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=SAVE_EVERY, save_total_limit=2, seed=1, use_cpu=True,
        per_device_train_batch_size=BATCH, report_to=[], disable_tqdm=True, logging_steps=STEPS, learning_rate=1e-3,
    )  # fmt: skip
    clock.around_saves(Trainer, "_save_checkpoint")
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[Begins()])
    last = get_last_checkpoint(str(folder)) if resume and folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return model.state_dict()


def by_lightning(folder: Path, resume: bool, clock: Clock) -> dict[str, torch.Tensor]:
    """Lightning as its documentation has it: ModelCheckpoint with save_last, and ckpt_path="last"."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch import nn

    class Gpt(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            block = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, DROPOUT, "gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, 256, bias=False)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            (x_BT,) = batch
            mask_TT = nn.Transformer.generate_square_subsequent_mask(CONTEXT - 1)
            x_BTD = self.embed(x_BT[:, :-1]) + self.position.weight[: CONTEXT - 1]
            logits = self.head(self.blocks(x_BTD, mask_TT, is_causal=True))
            return nn.functional.cross_entropy(logits.flatten(0, 1), x_BT[:, 1:].flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def on_train_start(self) -> None:
            clock.training_begins()

    lightning.seed_everything(1)
    model = Gpt()
    data = torch.utils.data.TensorDataset(windows(folder.parent / TEXT))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=SAVE_EVERY, save_last=True)
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    clock.around_saves(lightning.Trainer, "save_checkpoint")
    trainer.fit(model, loader, ckpt_path="last" if resume else None)
    return model.state_dict()


def by_farthing(folder: Path, resume: bool, clock: Clock) -> dict[str, torch.Tensor]:
    """farthing train, and farthing resume; or train again where there is no run yet."""
    from safetensors.torch import load_file

    from farthing import api
    from farthing.rundir import RunDir
    from farthing.training import checkpoint
    from farthing.training.loop import Trainer

    begin = Trainer.train

    def train(self: Trainer) -> Any:
        clock.training_begins()
        return begin(self)

    Trainer.train = train  # type: ignore[method-assign]
    clock.around_saves(checkpoint, "save")
    run = RunDir(folder / "run")
    if resume and run.recipe.is_file():
        api.resume(run.path, device="cpu", quiet=True)
    else:
        words = [
            "data.kind=text", "data.documents=line", f"data.path={folder.parent / TEXT}", "data.validation=0.05",
            "tokenizer.kind=byte",
            f"model.n_layer={LAYERS}", f"model.n_head={HEADS}", f"model.d_model={WIDTH}", f"model.dropout={DROPOUT}",
            f"model.context_length={CONTEXT}", f"train.batch_size={BATCH}", f"train.micro_batch={BATCH}",
            "train.threads=1", "train.precision=fp32", "train.compile=off", "train.attention=sdpa",
            "train.weight_gradient=strided", "budget.minutes=none", f"budget.steps={STEPS}",
            f"checkpoint.every={SAVE_EVERY}", "evaluate.every=end", "evaluate.references=false", "sample.tokens=0",
        ]  # fmt: skip
        api.train("default", words, name="run", runs=folder, device="cpu", quiet=True)
    newest = run.checkpoint(run.checkpoint_steps()[-1])
    return load_file(newest / "model.safetensors")


SIDES: dict[str, Callable[[Path, bool, Clock], dict[str, torch.Tensor]]] = {
    "trainer": by_trainer, "lightning": by_lightning, "ours": by_farthing,
}  # fmt: skip


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def child(side: str, asked: dict[str, Any]) -> None:
    """Train in a fork of its own, and leave what came of it beside the folder."""
    folder = Path(asked["folder"])
    told: dict[str, Any] = {"weights": "", "error": ""}
    try:
        log = os.open(folder.parent / f"{side}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        clock, start = Clock(asked), time.perf_counter()
        told["weights"] = fingerprint(SIDES[side](folder, asked["resume"], clock))
        told |= {"seconds": time.perf_counter() - start, "saves": clock.save_seconds}
    except BaseException as error:
        told["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(OSError):
            (folder.parent / "told.json").write_text(json.dumps(told), "utf-8")
        os._exit(0)


def main() -> None:
    """Answer until standard input ends."""
    side = sys.argv[1]
    torch.set_num_threads(1)
    # What the forks would otherwise each import anew.
    if side == "trainer":
        import transformers

        assert transformers.Trainer and transformers.GPT2LMHeadModel
        version = f"transformers {transformers.__version__}"
    elif side == "lightning":
        import lightning

        version = f"lightning {lightning.__version__}"
    else:
        from farthing import __version__, assemble, session

        assert assemble and session
        version = f"farthing {__version__}"
    print(json.dumps({"version": version, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        told = Path(asked["folder"]).parent / "told.json"
        told.unlink(missing_ok=True)
        forked = os.fork()
        if not forked:
            child(side, asked)
        _, status = os.waitpid(forked, 0)
        came = json.loads(told.read_text("utf-8")) if told.exists() else {"weights": "", "error": ""}
        print(json.dumps({**came, "code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
