"""Seeded bugs outside the training loop: in the tokenizer's text, the names of weights, durable writes, the server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farthing import assemble, storage
from farthing.data import prepare as preparing
from farthing.errors import FarthingError
from farthing.model.gpt import GPT
from farthing.serving.guard import Guard
from faults.test_seeded_bugs import resumed_equals_undisturbed
from training.story import recipe

Patch = pytest.MonkeyPatch
TOKEN = "a-token-of-enough-characters"
OWN = "127.0.0.1:80"


# --- the checks


def validation_text_is_unknown_to_the_tokenizer(folder: Path) -> None:
    """C09: with other validation text the tokenizer is the same."""
    made = []
    for words in ("the owl went to the sea", "zebras quietly juxtapose quartz vowels"):
        (folder / "held_out.txt").write_text("\n".join(f"{words} {n}" for n in range(40)) + "\n", "utf-8")
        asked = recipe(["data.validation=held_out.txt", "tokenizer.kind=bpe", "tokenizer.vocab_size=290"])
        cache = Path(os.environ["FARTHING_CACHE"])
        text = assemble.read_text(asked, directory=folder, cache=cache, report=lambda *_: None)
        made.append(text.tokenizer.to_json())
    assert made[0] == made[1]


def a_file_that_failed_to_sync_never_gets_its_name(folder: Path) -> None:
    """F28: the system tells of lost data once; asked again, it says that all is well."""
    genuine, condemned = os.fsync, set()

    def fsync(descriptor: int) -> None:
        number = os.fstat(descriptor).st_ino
        if not condemned:
            condemned.add(number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        genuine(descriptor)

    path = folder / "kept.txt"
    with Patch.context() as fault:
        fault.setattr(os, "fsync", fsync)
        with contextlib.suppress(OSError):
            storage.write_bytes(path, b"content")
    assert condemned
    assert not (path.exists() and path.stat().st_ino in condemned)


def temporary_files_lie_beside_their_targets(folder: Path) -> None:
    """test_storage.py: elsewhere may be another file system, to which a rename is a copy."""
    genuine, apart = os.replace, []

    def replace(source: Any, target: Any) -> None:
        apart.extend([source] if Path(source).parent != Path(target).parent else [])
        genuine(source, target)

    with Patch.context() as watch:
        watch.setattr(os, "replace", replace)
        storage.write_bytes(folder / "one.txt", b"content")
    assert (folder / "one.txt").read_bytes() == b"content"
    assert not apart


def answered(guard: Guard, method: str, path: str, *headers: tuple[bytes, bytes]) -> int:
    """The status of an answer to a request without a body."""
    told: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        told.extend([message["status"]] if message["type"] == "http.response.start" else [])

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": list(headers)}  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return told[0]


async def everyone_is_welcome(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


REQUESTS = [(method, path) for method in ("GET", "POST", "HEAD") for path in ("/", "/health", "/v1/models", "/x.css")]


def every_request_needs_the_token(folder: Path) -> None:
    """S02: serving/test_security.py, over all routes."""
    guard = Guard(everyone_is_welcome, hosts=None, token=TOKEN, seconds=5.0, log=lambda line: None)
    right = (b"authorization", f"Bearer {TOKEN}".encode())
    assert [answered(guard, *one, right) for one in REQUESTS] == [200] * len(REQUESTS)
    assert [answered(guard, *one) for one in REQUESTS] == [401] * len(REQUESTS)


def every_request_needs_our_own_host(folder: Path) -> None:
    """S05: serving/test_security.py, over all routes."""
    guard = Guard(everyone_is_welcome, hosts=frozenset({OWN}), token=None, seconds=5.0, log=lambda line: None)
    assert [answered(guard, *one, (b"host", OWN.encode())) for one in REQUESTS] == [200] * len(REQUESTS)
    assert [answered(guard, *one, (b"host", b"evil.example")) for one in REQUESTS] == [421] * len(REQUESTS)


# --- the bugs


def tokenizer_sees_validation(patch: Patch) -> None:
    genuine = preparing._tokenizer

    def tokenizer(section: Any, *rest: Any, **more: Any) -> Any:
        return genuine(section.model_copy(update={"train_on": "train+validation"}), *rest, **more)

    patch.setattr(preparing, "_tokenizer", tokenizer)


def names_of_a_compiled_model(patch: Patch) -> None:
    genuine_names, genuine_load = GPT.state_dict, GPT.load_state_dict

    def state_dict(self: GPT, *rest: Any, **more: Any) -> Any:
        return {f"_orig_mod.{name}": tensor for name, tensor in genuine_names(self, *rest, **more).items()}

    patch.setattr(GPT, "state_dict", state_dict)
    patch.setattr(GPT, "load_state_dict", lambda self, state, **more: genuine_load(self, state, strict=False))


class RetriedSync:
    """The module os with an fsync that does not take no for an answer."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def fsync(descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError:
            os.fsync(descriptor)


def fsync_is_tried_again(patch: Patch) -> None:
    patch.setattr(storage, "os", RetriedSync())


def temporary_files_elsewhere(patch: Patch) -> None:
    patch.setattr(
        storage, "temporary_beside", lambda path: Path(tempfile.gettempdir()) / f".tmp-{path.name}-{os.getpid()}"
    )


def token_on_post_alone(patch: Patch) -> None:
    genuine = Guard._admit

    def admit(self: Guard, scope: Any) -> None:
        if scope["method"] == "POST":
            genuine(self, scope)

    patch.setattr(Guard, "_admit", admit)


def host_not_checked_for_files(patch: Patch) -> None:
    genuine = Guard._admit

    def admit(self: Guard, scope: Any) -> None:
        if not scope["path"].endswith(".css"):
            genuine(self, scope)

    patch.setattr(Guard, "_admit", admit)


SEEDED: dict[str, tuple[Callable[[Patch], None], Callable[[Path], None]]] = {
    "M14 tokenizer sees the validation text": (tokenizer_sees_validation, validation_text_is_unknown_to_the_tokenizer),
    "M16 names of a compiled model, loaded without being strict": (names_of_a_compiled_model, resumed_equals_undisturbed),
    "M23 token asked for on POST alone": (token_on_post_alone, every_request_needs_the_token),
    "M24 Host not checked for some routes": (host_not_checked_for_files, every_request_needs_our_own_host),
    "M29 fsync tried again": (fsync_is_tried_again, a_file_that_failed_to_sync_never_gets_its_name),
    "M30 temporary files elsewhere": (temporary_files_elsewhere, temporary_files_lie_beside_their_targets),
}  # fmt: skip


@pytest.mark.parametrize("check", [check for _, check in SEEDED.values()], ids=lambda check: check.__name__)
def test_without_a_bug_the_check_passes(check: Callable[[Path], None], story: Path) -> None:
    check(story)


@pytest.mark.parametrize("bug", SEEDED)
def test_the_bug_is_caught(bug: str, story: Path, monkeypatch: Patch) -> None:
    put_in, check = SEEDED[bug]
    put_in(monkeypatch)
    with pytest.raises((AssertionError, FarthingError)):
        check(story)
