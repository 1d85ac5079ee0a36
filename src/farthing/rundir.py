"""A run is a folder: this file alone knows the names inside it, who may write to it, and what state it is in."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import socket
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from farthing.errors import CheckpointError, ResourceError, RunLockedError, UserError, nearest
from farthing.forms import Form, shaped
from farthing.storage import leads_to, new_folder, read_json, write_json, write_text

try:
    import fcntl
except ImportError:  # Windows has no flock; there the lock is advisory only
    fcntl = None  # type: ignore[assignment]

_CHECKPOINT = re.compile(r"step-(\d{8,})")
RESULT_VERSION = 1
"""of a run's result; readers refuse a newer one"""
HELD_OUT_VERSION = 1
"""of its score on the held-out test text"""
NOISE_VERSION = 1
"""of a noise floor"""
MAX_NAME = 80
"""letters of a run's name"""
MAX_NAME_BYTES = 200
"""bytes of it: file systems allow 255, and temporary names are a little longer"""
REPLACED = ".old-"
"""how the name of a checkpoint begins while a new one takes its place"""


Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]


_NUMBERS = (
    "bits_per_byte", "nats_per_token", "nats_per_character", "perplexity", "tokens", "bytes", "legacy_titles",
    "legacy_coverage",
)  # fmt: skip
"""of a result's validation: what is shown as numbers where it is there"""


class _Part(Form):
    fingerprint: str


class _Data(Form):
    kind: str
    parts: dict[str, _Part | None]
    tokenizer: _Part


class _Receipt(Form):
    recipe: str
    directory: str
    data: _Data


class _Status(Form):
    status: str = "finished"


class _Sample(Form):
    prompt: str
    text: str


class _Best(Form):
    step: int
    bits_per_byte: Number


class _Result(Form):
    run: str
    status: str
    validation: dict[str, Number | str | None]
    spent: dict[str, Number]
    wall_seconds: Number
    parameters: Annotated[int, Field(ge=0, lt=2**63)]
    startup: dict[str, Number] = {}
    references: dict[str, Number] | None = None
    best: _Best | None = None
    samples: list[_Sample] = []

    @model_validator(mode="after")
    def _has_a_score(self) -> _Result:
        if self.validation and "bits_per_byte" not in self.validation:
            raise ValueError("validation has no bits_per_byte")
        if words := [name for name in _NUMBERS if isinstance(self.validation.get(name), str)]:
            raise ValueError(f"validation.{words[0]} is no number")
        return self


class RunDir:
    """The folder of one run.

    `recipe.toml` is what was asked, `plan.json` what follows on this machine, `receipt.json` what it ran on,
    `events.jsonl` what happened, `tokenizer.json` and `checkpoints/` what came of it, `result.json` and `samples.txt`
    the end; `held_out.json` is the score on the test text, once that has been taken, and `tasks.json`
    holds tasks that were asked in full after training.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.plan = path / "plan.json"
        self.receipt = path / "receipt.json"
        self.events = path / "events.jsonl"
        self.tokenizer = path / "tokenizer.json"
        self.checkpoints = path / "checkpoints"
        self.quarantine = path / "quarantine"
        self.result = path / "result.json"
        self.held_out = path / "held_out.json"
        self.tasks = path / "tasks.json"
        self.samples = path / "samples.txt"
        self.stacks = path / "stacks.txt"
        self._lock = path / "run.lock"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        recipe: str,
        tokenizer: str,
        plan: Any,
        receipt: Any,
        fill: Callable[[RunDir], None] = lambda run: None,
    ) -> RunDir:
        """Make a run folder in one rename, complete with what is known before the first step.

        Args:
            path: where it goes.
            recipe: TOML.
            tokenizer: the contents of its tokenizer.json.
            plan: JSON-ready.
            receipt: JSON-ready.
            fill: adds what else there is already, before the folder has its name.

        Raises:
            UserError: the name is taken, or the folder cannot be written.
        """
        if path.exists():
            raise _taken(path)
        try:
            with new_folder(path, exclusive=True) as folder:
                new = cls(folder)
                write_text(new.recipe, recipe)
                write_text(new.tokenizer, tokenizer)
                write_json(new.plan, plan)
                write_json(new.receipt, receipt)
                new.checkpoints.mkdir()
                fill(new)
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise UserError(f"{path}: the run folder cannot be written: {error.strerror or error}") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run folder.

        Raises:
            UserError: it is not there, or not a run.
        """
        run = cls(path)
        if not run.recipe.is_file():
            what = "is not a run folder: it has no recipe.toml" if path.is_dir() else "no such run"
            raise UserError(f"{path}: {what}")
        return run

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def mirror(self, tracker: str) -> Path:
        """Where a tracker that follows the events keeps its copy."""
        return self.path / tracker

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first; validity is for the reader of checkpoints to tell."""
        if not self.checkpoints.is_dir():
            return []
        found = (_CHECKPOINT.fullmatch(entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def set_aside(self, checkpoint: Path) -> Path:
        """Move a damaged checkpoint out of the way, never delete it; returns where it is now."""
        self.quarantine.mkdir(exist_ok=True)
        target = self.quarantine / f"{checkpoint.name}-{time.time_ns()}"
        os.rename(checkpoint, target)
        return target

    def sweep(self) -> None:
        """Remove what a killed process left half-written, and put back what it was about to replace.

        Only for the holder of the lock.
        """
        for old in self.checkpoints.glob(f"{REPLACED}*"):
            whole = self.checkpoints / old.name.removeprefix(REPLACED).rpartition("-")[0]
            shutil.rmtree(old, ignore_errors=True) if whole.exists() else os.rename(old, whole)
        for folder in (self.path, self.checkpoints):
            for entry in folder.glob(".*") if folder.is_dir() else ():
                if entry.name.startswith((".tmp-", ".trash-")):
                    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)

    def status(self) -> str:
        """finished, running or stopped, from the files alone."""
        if self.result.is_file():
            return str(_read(self.result, _Status).get("status", "finished"))
        return "running" if self.is_locked() else "stopped"

    def is_locked(self) -> bool:
        """Whether a live process holds this run."""
        if fcntl is None or not self._lock.exists():
            return False
        with self._lock.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this run against other processes; the kernel lets go when the holder dies, however it dies.

        Raises:
            RunLockedError: another process holds it; the message says which.
        """
        try:
            stream = self._lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: the run folder cannot be written: {error.strerror}") from None
        with stream:
            if fcntl is not None:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
                        what = f"this file system cannot lock files ({error.strerror}); keep runs on another"
                        raise ResourceError(f"{self.path}: {what}") from None
                    stream.seek(0)
                    holder = stream.read().strip() or "another process"
                    raise RunLockedError(f"{self.path}: in use by {holder}; wait for it or stop it") from None
            stream.seek(0)
            stream.truncate()
            stream.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
            stream.flush()
            yield


def new_run_path(runs: Path, name: str | None, stem: str) -> Path:
    """Where a new run goes: `runs/name`, or `runs/stem-N` with the first free number.

    Raises:
        UserError: the name is taken or cannot be a folder's name.
    """
    if name is not None:
        check_name(name)
        if (runs / name).exists():
            raise _taken(runs / name)
        return runs / name
    # A recipe's file may be called anything; a run, nothing that a shell or a terminal would take for more than a name.
    stem, number = re.sub(r"[^\w. -]+", "-", stem).strip(".- ")[:60] or "run", 1
    while (runs / f"{stem}-{number}").exists():
        number += 1
    return runs / f"{stem}-{number}"


def check_name(name: str) -> None:
    """Refuse a run name that is empty, hidden, looks like an option, or leaves its folder.

    Raises:
        UserError: with the offending name.
    """
    fine = 0 < len(name) <= MAX_NAME and name[0] not in ".-" and name == name.strip()
    fine = fine and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
    # Many scripts write their vowels as marks on the letter before them.
    if not fine or not all(c.isalnum() or c in "._- " or unicodedata.category(c).startswith("M") for c in name):
        raise UserError(
            f"--name {name!r}: a run name has 1 to {MAX_NAME} letters, digits, spaces and . _ - and does not start with . or -"
        )


def find_run(name: str, runs: Path) -> RunDir:
    """The run that a person means by `name`: a folder, or a name under `runs`.

    Raises:
        UserError: there is none; the nearest name is in the message.
    """
    for path in (runs / name, Path(name)):
        if leads_to(Path.is_file, path / "recipe.toml"):
            return RunDir(path)
    known = [run.name for run in list_runs(runs)]
    if leads_to(Path.is_dir, Path(name)):
        raise UserError(f"{name}: is not a run folder: it has no recipe.toml")
    raise UserError(f"{name[:200]}: no such run in {runs}{nearest(name[:200], known)} (farthing runs lists them)")


def find_model(name: str, runs: Path) -> RunDir | Path:
    """The run that a person means by `name`, or the folder with a model's config.json.

    Raises:
        UserError: there is neither.
    """
    folder = Path(name)
    if leads_to(Path.is_file, folder / "config.json") and not (folder / "recipe.toml").is_file():
        return folder
    if leads_to(Path.is_dir, folder) and not any((one / "recipe.toml").is_file() for one in (runs / name, folder)):
        raise UserError(
            f"{name}: is not a run folder (it has no recipe.toml), nor one of a model (it has no config.json)"
        )
    return find_run(name, runs)


def list_runs(runs: Path) -> list[RunDir]:
    """All runs in a folder, oldest first.

    Raises:
        UserError: it is not a folder.
    """
    if runs.exists() and not runs.is_dir():
        raise UserError(f"{runs}: is a file, not a folder of runs")
    if not runs.is_dir():
        return []
    # A hidden one is a folder that some process has not finished making.
    found = [RunDir(entry) for entry in runs.iterdir() if entry.name[0] != "." and (entry / "recipe.toml").is_file()]
    return sorted(found, key=lambda run: (run.recipe.stat().st_mtime, run.name))


def noise_path(runs: Path, arm: str) -> Path:
    """Where a folder of runs keeps the noise floor of an arm, by the fingerprint of its recipe without the seed."""
    # Hidden, so that no run can be of that name.
    return runs / ".noise" / f"{arm}.json"


def read_result(run: RunDir) -> Mapping[str, Any]:
    """result.json, or an empty mapping while there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    return _read(run.result, _Result) if run.result.is_file() else {}


def read_receipt(run: RunDir) -> dict[str, Any]:
    """The receipt that a run was started with.

    Raises:
        CheckpointError: receipt.json is missing or damaged.
    """
    return _read(run.receipt, _Receipt)


def _read(path: Path, form: type[Form]) -> dict[str, Any]:
    try:
        table = read_json(path)
        shaped(form, table)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    return dict(table)


def _taken(path: Path) -> UserError:
    return UserError(
        f"{path}: a run of that name exists; choose another --name, or continue it with: farthing resume {shlex.quote(str(path))}"
    )
