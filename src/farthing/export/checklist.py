"""What to look at before a model is published: each point is checked in the folder itself, whoever made it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from farthing.data.split import TokenSplit
from farthing.errors import FarthingError, UserError, first_line
from farthing.export.card import CARD, SECTIONS
from farthing.export.huggingface import CODE
from farthing.export.leaks import Leak, Private, harmless_environment, leaks
from farthing.export.licenses import LICENSES
from farthing.export.reading import open_tensors

Status = Literal["pass", "fail", "not checked"]

TOLERANCE = 1e-4
"""how far the score may be from the run's, as a share of it"""
TOLERANCE_ROUNDED = 5e-3
"""the same where weights, or the run's own scoring, have eight bits only"""

_PROGRAM = Path(__file__).with_name("loading.py")
_VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.bpe", "encoder.json", "added_tokens.json"}
_RUNS_CODE = {
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".keras", ".msgpack",
    ".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1", ".js", ".jar", ".whl", ".zip", ".tar", ".gz",
}  # fmt: skip
_BEGINNINGS = {
    b"\x7fELF": "a program", b"MZ": "a program", b"\xcf\xfa\xed\xfe": "a program", b"\xca\xfe\xba\xbe": "a program",
    b"#!": "a script", b"PK\x03\x04": "an archive, as torch.save writes", b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
}  # fmt: skip
_WELCOME_HIDDEN = {".gitattributes", ".gitignore"}


@dataclass(frozen=True)
class Point:
    """One point of the list.

    Args:
        name: what was looked at.
        status: how it came out.
        told: what was found.
        todo: what to do; empty where there is nothing to do.
    """

    name: str
    status: Status
    told: str
    todo: str = ""


@dataclass(frozen=True)
class Recorded:
    """What a run says its model scores, and on what.

    Args:
        recipe: fingerprint of the run's recipe.
        validation: the yardsticks by step of those checkpoints that were scored.
        split: the text, read again.
        document: whether the model sees its own document only.
    """

    recipe: str
    validation: Mapping[int, Mapping[str, Any]]
    split: TokenSplit
    document: bool


def check(
    folder: Path,
    *,
    private: Private | None = None,
    recorded: Recorded | str = "the run is not at hand",
    report: Callable[[str], None] = lambda stage: None,
) -> list[Point]:
    """Go through the list.

    Args:
        folder: an exported model.
        private: what must not be in it; None takes what can be known of this machine.
        recorded: the run's own score, or why it cannot be had.
        report: hears what is being looked at.

    Raises:
        UserError: it is no folder with a config.json.
    """
    if not (folder / "config.json").is_file():
        what = "has no config.json, so it is no exported model" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}")
    report("reading")
    card, problem = _card(folder)
    private = private or Private.here([folder.absolute()])
    points = [_license(card), _complete(card, problem), _private(folder, private), _files(folder)]
    report("loading in a process of its own")
    return [*points, *_weights_and_scores(folder, card, recorded, safe=points[-1].status == "pass")]


def passed(points: Sequence[Point]) -> bool:
    """Whether every point was checked and is as it should be."""
    return all(point.status == "pass" for point in points)


def failures(points: Sequence[Point]) -> list[Point]:
    """The points that are not as they should be."""
    return [point for point in points if point.status == "fail"]


def _card(folder: Path) -> tuple[Any, str]:
    """The card as the hub's own classes read it, or why they do not."""
    from huggingface_hub import ModelCard

    path = folder / CARD
    if not path.is_file():
        return None, f"there is no {CARD}"
    try:
        return ModelCard(path.read_text("utf-8")), ""
    except Exception as error:  # the hub's parser lets through whatever its YAML library raises
        return None, f"{CARD}: its front matter cannot be read: {first_line(error)}"


def _license(card: Any) -> Point:
    data = {} if card is None else card.data.to_dict()
    stated = data.get("license")
    if not stated:
        return Point(
            "licence", "fail", "none is stated", "export again with --license, or add a line to the card's head"
        )
    if stated == "other" and data.get("license_name"):
        return Point("licence", "pass", str(data["license_name"]))
    if stated in LICENSES:
        return Point("licence", "pass", str(stated))
    return Point("licence", "fail", f"{stated!r} is none that the hub knows", "name one of its list, such as mit")


def _complete(card: Any, problem: str) -> Point:
    if card is None:
        return Point("model card", "fail", problem, "export again, or write one")
    data = card.data.to_dict()
    missing = [name for name in ("library_name", "pipeline_tag", "tags") if not data.get(name)]
    # What stands in a code block is no heading, whatever it looks like.
    text = re.sub(r"^(`{3,})[^`\n]*\n.*?^\1 *$", "code", card.text, flags=re.MULTILINE | re.DOTALL)
    sections = dict(re.findall(r"^## +(.+?) *\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    missing += [f'"## {name}"' for name in SECTIONS if not sections.get(name, "").strip()]
    if missing:
        return Point("model card", "fail", f"it lacks {', '.join(missing)}", f"add what is missing to {CARD}")
    results = len(card.data.eval_results or [])
    return Point("model card", "pass", f"all {len(SECTIONS)} sections, {results} scores that the hub can read")


def _private(folder: Path, private: Private) -> Point:
    found = [(file, leak) for file in _all_files(folder) for leak in _leaks(file, private)]
    if not found:
        return Point("secrets and local paths", "pass", "none in any file")
    file, leak = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    told = f"{file.relative_to(folder)}:{leak.line}: {leak.what} ({leak.shown}){more}"
    return Point("secrets and local paths", "fail", told, "take it out; a secret that was ever public must be replaced")


def _leaks(file: Path, private: Private) -> Iterator[Leak]:
    """What a file gives away, in its text and in what its text stands for."""
    yield from (Leak(0, leak.what, leak.shown) for leak in leaks(file.name, private))
    for text, prose in _texts(file):
        yield from leaks(text, private, prose=prose)


def _texts(file: Path) -> Iterator[tuple[str, bool]]:
    """The texts in a file, each with whether people wrote it: a card unescaped, the strings of JSON, a header."""
    if file.is_symlink():
        return  # another point tells of it, and who knows what reading it would do
    prose = file.name not in _VOCABULARIES
    if file.suffix == ".safetensors":
        yield from ((text, True) for text in _strings(_header(file)))
        return
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        yield file.read_bytes().decode("latin-1"), False
        return
    yield text, prose
    if file.suffix == ".md":
        yield re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text), prose
    elif file.suffix == ".json":
        try:
            yield "\n".join(_strings(json.loads(text))), prose
        except (ValueError, RecursionError):
            return


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield str(key)
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _header(file: Path) -> Any:
    """The metadata of a safetensors file; nothing if it cannot be read, which another point will tell."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stored:
            return [stored.metadata() or {}, list(stored.keys())]
    except (SafetensorError, OSError, ValueError):
        return []


def _files(folder: Path) -> Point:
    wrong = [f"{file.relative_to(folder)} is {what}" for file in _all_files(folder) if (what := _unexpected(file))]
    if wrong:
        return Point("files", "fail", "; ".join(wrong[:3]), "remove what does not belong there")
    own = (folder / CODE.name).is_file()
    return Point("files", "pass", "no pickle, no program" + (f" but {CODE.name}, which is Farthing's" if own else ""))


def _unexpected(file: Path) -> str:
    """What is wrong with a file being there; empty if nothing is."""
    if file.is_symlink():
        return "a link to something outside"
    if file.name.startswith(".") and file.name not in _WELCOME_HIDDEN:
        return "hidden"
    if _is_our_code(file):
        return ""
    if file.name == CODE.name:
        return "not the file that Farthing writes: it would run on every reader's machine"
    with file.open("rb") as stream:
        # The first bytes of safetensors are a number, which may look like anything; its header is read elsewhere.
        start = b"" if file.suffix == ".safetensors" else stream.read(8)
    for beginning, what in _BEGINNINGS.items():
        if start.startswith(beginning):
            return what
    if file.suffix.lower() in _RUNS_CODE:
        return "of a kind that can hold or run code"
    if os.name == "posix" and file.stat().st_mode & 0o111:
        return "marked as a program"
    return ""


def _is_our_code(file: Path) -> bool:
    return file.name == CODE.name and file.read_bytes() == CODE.read_bytes()


def _all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _weights_and_scores(folder: Path, card: Any, recorded: Recorded | str, *, safe: bool) -> list[Point]:
    try:
        count = _finite(folder)
    except FarthingError as error:
        skipped = Point("scores", "not checked", "the weights cannot be read", "mend the weights first")
        return [Point("weights", "fail", str(error), "export again"), skipped]
    if not safe:
        todo = "mend the files first"
        return [Point(name, "not checked", "files there should not be", todo) for name in ("weights", "scores")]
    validation, reason = score_to_reproduce(card, recorded)
    split = recorded.split if isinstance(recorded, Recorded) and not reason else None
    document = isinstance(recorded, Recorded) and recorded.document
    try:
        found = _load_elsewhere(folder, split, validation, document=document)
    except FarthingError as error:
        skipped = Point("scores", "not checked", "the model does not load", "mend that first")
        return [Point("weights", "fail", str(error), "export again"), skipped]
    weights = _loaded(found, count)
    if split is None:
        return [weights, Point("scores", "not checked", reason, "name the run: --run RUN")]
    return [weights, _same_score(found["nats"], validation, split, rounded=_rounded(folder))]


def _finite(folder: Path) -> int:
    """Read every tensor, all of which must be finite; returns how many numbers there are."""
    with open_tensors(folder) as tensors:
        return sum(tensors.read(name).numel() for name in sorted(tensors.names))


def _rounded(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text("utf-8")).get("dtype", "float32") != "float32"


def score_to_reproduce(card: Any, recorded: Recorded | str) -> tuple[Mapping[str, Any], str]:
    """The yardsticks that a folder's weights should have, or why none can be told.

    Args:
        card: the folder's, as huggingface_hub reads it; None if it has none.
        recorded: what a run says, or why it says nothing.
    """
    if isinstance(recorded, str):
        return {}, recorded
    said: Mapping[str, Any] = {} if card is None else card.data.to_dict().get("farthing") or {}
    if said.get("recipe") != recorded.recipe:
        return {}, "the card does not say that these weights are from that run"
    validation = recorded.validation.get(said.get("step", -1), {})
    if validation.get("bits_per_byte") is None:
        return {}, f"the run has no score of its checkpoint after step {said.get('step')}"
    if validation["fingerprint"] != recorded.split.fingerprint:
        return {}, "the run's validation text has changed since"
    return validation, ""


def _loaded(found: Mapping[str, Any], count: int) -> Point:
    wrong = ""
    if found["strays"]:
        wrong = f"weights that {found['form']} lacks or does not know: {', '.join(found['strays'][:3])}"
    elif not found["finite"]:
        wrong = "it computes numbers that are not finite"
    elif found["tokens_known"] > found["vocabulary"]:
        wrong = f"the tokenizer knows {found['tokens_known']:,} tokens, the model {found['vocabulary']:,}"
    if wrong:
        return Point("weights", "fail", wrong, "export again")
    return Point("weights", "pass", f"{count:,} numbers, all finite; loads as {found['form']} without a network")


def _same_score(nats: float, validation: Mapping[str, Any], split: TokenSplit, *, rounded: bool) -> Point:
    found, was = nats / math.log(2) / split.bytes, validation["bits_per_byte"]
    rounded = rounded or validation["precision"] != "fp32"
    tolerance = TOLERANCE_ROUNDED if rounded else TOLERANCE
    apart = abs(found - was) / was
    told = f"{found:.6f} bits per byte through transformers, {was:.6f} in the run ({apart:.1e} apart"
    told += f", {tolerance:g} allowed{' for rounded numbers' if rounded else ''})"
    if apart <= tolerance:
        return Point("scores", "pass", told)
    return Point("scores", "fail", told, "these are not the weights that were scored: export the run again")


def write_text_to_score(path: Path, split: TokenSplit, validation: Mapping[str, Any], *, document: bool) -> None:
    """Write a text, and how it was scored, as loading.py takes it.

    Args:
        path: the file.
        split: the text.
        validation: the yardsticks that were taken on it.
        document: whether the model sees its own document only.
    """
    said = {name: str(validation[name]) for name in ("context_length", "stride")}
    said |= {"separator": str(split.separator), "scope": "document" if document else "window"}
    save_file({"tokens": split.tokens_N.astype(np.int32)}, path, said)


def _load_elsewhere(
    folder: Path, split: TokenSplit | None, validation: Mapping[str, Any], *, document: bool
) -> Mapping[str, Any]:
    """What loading.py tells, in a process without our modules, our secrets and a network.

    Raises:
        FarthingError: the folder does not load.
    """
    command = [sys.executable, "-P", str(_PROGRAM), str(folder)]
    if (folder / CODE.name).is_file() and _is_our_code(folder / CODE.name):
        command += ["--code", str(CODE)]
    with tempfile.TemporaryDirectory(prefix="farthing-") as place:
        if split is not None:
            text = Path(place, "text.safetensors")
            write_text_to_score(text, split, validation, document=document)
            command += ["--text", str(text)]
        done = subprocess.run(
            command,
            env={
                **harmless_environment(),
                "HF_HOME": str(Path(place, "home")),
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_VERBOSITY": "error",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if done.returncode == 0:
        found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    said_last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit code {done.returncode}"]
    if "No module named 'transformers'" in said_last[0]:
        raise UserError("publish-check needs the package 'transformers'; install it with: pip install 'farthing[hf]'")
    raise FarthingError(f"does not load: {said_last[0][:200]}")
