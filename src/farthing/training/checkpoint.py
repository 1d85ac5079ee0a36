"""Checkpoints that survive what happens to machines: written aside, hashed, renamed whole; verified before use.

A checkpoint folder holds model.safetensors, optimizer.safetensors, average.safetensors where weights are averaged,
state.json, and manifest.json with the size and SHA-256 of each, itself included. No pickle anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from farthing.errors import CheckpointError, UserError, first_line
from farthing.rundir import REPLACED, RunDir
from farthing.storage import crashpoint, fsync_folder, new_folder, read_json, sha256_of, write_json

FORMAT = 1
"""Version of the folder's layout; a newer one is refused by name."""

_MOST_LETTERS = 60
"""of a checkpoint's file"""
_MANIFEST = "manifest.json"
_STATE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """Everything that continues a run: tensors by name, and the rest as JSON-ready values."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] | None
    state: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A complete and durable checkpoint."""

    path: Path
    bytes: int
    seconds: float


class DamagedCheckpoint(Exception):
    """One checkpoint folder is not what its manifest says; an older one may be."""


def save(run: RunDir, step: int, snapshot: Snapshot, identity: Mapping[str, str]) -> Saved:
    """Write the checkpoint after `step` and read it back before reporting it.

    Args:
        run: the run's folder.
        step: optimizer steps done.
        snapshot: what to save.
        identity: what the checkpoint belongs to (recipe, data and tokenizer fingerprints).

    Raises:
        OSError: it could not be written or read back; nothing of it is left and older checkpoints are untouched.
    """
    start = time.monotonic()
    target = run.checkpoint(step)
    try:
        _write(target, step, snapshot, identity)
        verify(target)
    except DamagedCheckpoint as error:
        run.set_aside(target)
        run.sweep()
        raise OSError(f"what was written does not read back: {error}") from None
    except (OSError, SafetensorError) as error:
        run.sweep()
        raise error if isinstance(error, OSError) else OSError(str(error)) from None
    run.sweep()
    size = sum(file.stat().st_size for file in target.iterdir())
    return Saved(target, size, time.monotonic() - start)


def _write(target: Path, step: int, snapshot: Snapshot, identity: Mapping[str, str]) -> None:
    parts = {"model": snapshot.model, "optimizer": snapshot.optimizer, "average": snapshot.average}
    with new_folder(target, exclusive=True) as folder:
        for name, tensors in parts.items():
            if tensors is not None:
                save_file(_plain(tensors), folder / f"{name}.safetensors")
                crashpoint("checkpoint.after_tensors")
        write_json(folder / _STATE, snapshot.state)
        mode = stat.S_IMODE((folder / _STATE).stat().st_mode)
        for file in folder.iterdir():
            # safetensors writes for the owner alone; a run is as readable as whoever made it wants files to be.
            file.chmod(mode)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(folder.iterdir())
        }
        body = {"format": FORMAT, "step": step, "identity": dict(identity), "files": files}
        write_json(folder / _MANIFEST, {**body, "sha256": _hash_of(body)})
        crashpoint("checkpoint.before_rename")
        if target.exists():
            # The same step again, with the final evaluation in it. Until the new one has its name the old one is kept
            # under another, and RunDir.sweep puts it back if it comes to that.
            os.rename(target, target.with_name(f"{REPLACED}{target.name}-{os.getpid()}"))
            fsync_folder(target.parent)
            crashpoint("checkpoint.in_replace")
    crashpoint("checkpoint.after_rename")


def verify(folder: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint against its manifest, and the manifest against itself.

    Returns:
        the manifest.

    Raises:
        DamagedCheckpoint: something is missing, surplus, of another size or another content, or cannot be read; says
            what.
        UserError: the checkpoint is of a newer format.
        OSError: files or memory have run out here, which is no fault of the checkpoint's.
    """
    try:
        return _verified(folder)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        name = Path(error.filename).name if isinstance(error.filename, str) else "a file of it"
        raise DamagedCheckpoint(f"{name} cannot be read: {error.strerror or error}") from None


def _verified(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / _MANIFEST)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        sound = manifest["sha256"] == _hash_of(body)
        version = manifest["format"]
        files = {str(name): (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{_MANIFEST} cannot be read ({error})") from None
    if not sound:
        raise DamagedCheckpoint(f"{_MANIFEST} does not match its own checksum")
    told = {"format": int, "step": int, "identity": dict}
    if untold := [name for name, kind in told.items() if not isinstance(manifest.get(name), kind)]:
        raise DamagedCheckpoint(f"{_MANIFEST} does not tell its {untold[0]}")
    if version > FORMAT:
        raise UserError(f"{folder}: written in format {version} by a newer farthing; this one reads up to {FORMAT}")
    if folder.name != f"step-{manifest['step']:08d}":
        raise DamagedCheckpoint(f"it is the checkpoint of step {manifest['step']}, under another name")
    if surplus := sorted({file.name for file in folder.iterdir()} - files.keys() - {_MANIFEST}):
        raise DamagedCheckpoint(f"{surplus[0]} does not belong to it")
    for name, (size, sha256) in files.items():
        file = folder / name
        # A checkpoint that somebody made to do harm might name a file elsewhere.
        if Path(name).name != name or len(name) > _MOST_LETTERS or file.is_symlink():
            raise DamagedCheckpoint(f"{name[:80]!r} is not a file of its own")
        if not file.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if file.stat().st_size != size:
            raise DamagedCheckpoint(f"{name} has {file.stat().st_size:,} bytes, not {size:,}")
        if sha256_of(file) != sha256:
            raise DamagedCheckpoint(f"{name} does not match its checksum")
    return dict(manifest)


def load(folder: Path) -> Snapshot:
    """Read a checkpoint whose bytes have been verified.

    Raises:
        CheckpointError: its files agree with its manifest and are none of ours all the same.
    """
    average = folder / "average.safetensors"
    try:
        state = read_json(folder / _STATE)
        if not isinstance(state, dict):
            raise ValueError(f"{_STATE} is not a JSON object")
        return Snapshot(
            model=load_file(folder / "model.safetensors"),
            optimizer=load_file(folder / "optimizer.safetensors"),
            average=load_file(average) if average.exists() else None,
            state=state,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {first_line(error)}") from None


def load_newest(
    run: RunDir, identity: Mapping[str, str], report: Callable[[str], None]
) -> tuple[Snapshot, Path] | None:
    """The newest valid checkpoint; damaged ones are set aside and reported, never deleted.

    Returns:
        the snapshot and its folder, or None if the run has saved nothing yet.

    Raises:
        CheckpointError: there are checkpoints but none is valid; each is named with its reason.
        UserError: the checkpoint belongs to another recipe, text or tokenizer.
    """
    reasons = []
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        folder = run.checkpoint(step)
        try:
            manifest = verify(folder)
        except DamagedCheckpoint as damage:
            reasons.append((folder, str(damage)))
            continue
        for what, mine in identity.items():
            theirs = manifest["identity"].get(what)
            if theirs != mine:
                raise UserError(
                    f"{folder}: belongs to another {what} ({str(theirs)[:12]}, this run has {mine[:12]}); "
                    "start a new run, or put back the run's own files"
                )
        for bad, reason in reasons:
            try:
                moved = f"moved to {run.set_aside(bad)}"
            except OSError as error:
                moved = f"it cannot be moved away: {error.strerror}"
            report(f"{bad.name} is damaged: {reason}; {moved}; going on from {folder.name}")
        return load(folder), folder
    if reasons:
        listed = "; ".join(f"{bad.name}: {reason}" for bad, reason in reasons)
        raise CheckpointError(f"{run.path}: no valid checkpoint left: {listed}")
    return None


@dataclass(frozen=True)
class WeightsFile:
    """The file of one checkpoint that holds the weights to use, verified."""

    path: Path
    step: int
    sha256: str


def weights(run: RunDir, which: str = "last") -> tuple[dict[str, Tensor], int]:
    """The weights to evaluate or sample from, and their step; arguments and errors are those of `weights_file`."""
    found = weights_file(run, which)
    return read_weights(found.path), found.step


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory of their own, aligned as torch's own are.

    As the library gives them they are parts of the file, mapped: where they begin depends on the header's length, and
    with that the last bits of matrix products.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    try:
        return {name: values.clone() for name, values in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {first_line(error)}") from None


def weights_file(run: RunDir, which: str = "last") -> WeightsFile:
    """The file with the weights of a checkpoint, averaged where the run averages them.

    Args:
        run: the run's folder.
        which: `best` (lowest validation bits per byte), `last`, or a step number.

    Raises:
        UserError: there is no such step, or none that was evaluated.
        CheckpointError: there is no valid checkpoint of that description.
    """
    steps = run.checkpoint_steps()
    if which == "best" and steps:
        # Other weights than those that were asked for are no answer, whatever became of these.
        steps = [_best_of(run)]
    elif which not in ("best", "last"):
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(f"{run.path}: no checkpoint {which!r}; there are: {_listed(steps)}; or say best or last")
        steps = [int(which)]
    problems = []
    for step in reversed(steps):
        folder = run.checkpoint(step)
        try:
            files = verify(folder)["files"]
        except DamagedCheckpoint as damage:
            problems.append(f"{folder.name}: {damage}")
            continue
        name = "average.safetensors" if "average.safetensors" in files else "model.safetensors"
        return WeightsFile(folder / name, step, str(files[name]["sha256"]))
    raise CheckpointError(f"{run.path}: no valid checkpoint" + (f": {'; '.join(problems)}" if problems else " yet"))


def _best_of(run: RunDir) -> int:
    best, steps = best_step(run), run.checkpoint_steps()
    if best not in steps:  # a run that goes on may have saved a better one in between
        best, steps = best_step(run), run.checkpoint_steps()
    if best in steps:
        return best
    reason = "nothing was evaluated yet" if best is None else f"step {best} was, and is not kept"
    raise UserError(f"{run.path}: no best checkpoint: {reason}; say last, or a step of {_listed(steps)}")


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def best_step(run: RunDir) -> int | None:
    """The step of the best checkpoint, as the newest readable state tells."""
    for step in reversed(run.checkpoint_steps()):
        try:
            best = read_json(run.checkpoint(step) / _STATE).get("best_step")
            return None if best is None else int(best)
        except (OSError, ValueError, TypeError, AttributeError, OverflowError):
            continue
    return None


def prune(run: RunDir, *, keep: int, protect: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the protected one."""
    doomed = [step for step in run.checkpoint_steps()[:-keep] if step != protect]
    for step in doomed:
        crashpoint("checkpoint.before_delete")
        discard(run.checkpoint(step))


def discard(folder: Path) -> None:
    """Delete a checkpoint so that a crash leaves it whole or out of sight, never half there."""
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    fsync_folder(folder.parent)
    crashpoint("checkpoint.in_delete")
    shutil.rmtree(trash, ignore_errors=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point value is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
