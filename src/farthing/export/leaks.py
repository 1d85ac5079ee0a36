"""What must not be published: secrets, and paths that tell of the machine and the person at it."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from farthing.errors import REMOVED, SECRETS, secrets_in

# A path ends where a quotation, a blank or a bracket does; JSON doubles its backslashes.
_PART = r"[^\s\"'`<>|*?:,;()\[\]{}\\/]+"
_LOCAL_PATHS = (
    rf"(?<![\w.~-])/(?:home|Users|root)(?:/{_PART})+",
    rf"(?<![A-Za-z0-9])[A-Z]:(?:\\{{1,2}}{_PART}){{2,}}",
)
_ACCOUNTS_OF_NOBODY = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "default", "nobody", "guest"}


@dataclass(frozen=True)
class Private:
    """What is private here and now, beyond what can be known by its form.

    Args:
        values: secrets, word for word.
        folders: absolute paths that tell where a run was made.
        user: the account's name; empty where it names nobody.
    """

    values: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    user: str = ""

    @classmethod
    def here(cls, folders: Iterable[Path | str] = (), *, environment: Mapping[str, str] | None = None) -> Private:
        """Of this process: its environment's secrets, the hub's token, the home folder, the user, and `folders`."""
        values = secrets_in(os.environ if environment is None else environment)
        if token := _token_of_the_hub():
            values.add(token)
        told = {str(Path(folder).absolute()) for folder in (*folders, Path.home())}
        # A path of one part (/work, /data) says nothing of a person and would be found in any text on computers.
        told = {folder for folder in told if len(Path(folder).parts) > 2}
        return cls(frozenset(values), frozenset(told), _user())


@dataclass(frozen=True)
class Leak:
    """Something private in a text; `shown` may be told, it does not give the secret away."""

    line: int
    what: str
    shown: str


def leaks(text: str, private: Private, *, prose: bool = True) -> Iterator[Leak]:
    """Everything in `text` that must not be published, in no particular order.

    Args:
        text: a file's text.
        private: what is private here.
        prose: whether the text was written by people or about a run; a tokenizer's vocabulary was not, and holds
            pieces of paths such as every text on computers has.
    """
    for what, pattern in SECRETS.items():
        for match in re.finditer(pattern, text):
            yield _leak(text, match.start(), what, f"{match.group()[:4]}...")
    for value in private.values:
        for start in _places(text, value):
            yield _leak(text, start, "the value of a secret in the environment", f"{value[:2]}...")
    for folder in private.folders:
        for start in _places(text, folder):
            yield _leak(text, start, "a local path", folder)
    if private.user:
        name = re.escape(private.user)
        for match in re.finditer(rf"(?<=[/\\]){name}(?=[/\\])|(?<![\w.]){name}@\w", text):
            yield _leak(text, match.start(), "the user's name", private.user)
    for pattern in _LOCAL_PATHS if prose else ():
        for match in re.finditer(pattern, text):
            yield _leak(text, match.start(), "a local path", match.group())


def redact(text: str, private: Private) -> str:
    """`text` with secrets taken out and local paths cut down to the name of the file."""
    for pattern in SECRETS.values():
        text = re.sub(pattern, REMOVED, text)
    # The longest first, or the rest of a longer one would stay.
    for value in sorted(private.values, key=len, reverse=True):
        text = text.replace(value, REMOVED)
    for folder in sorted(private.folders, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?:[\\/](?=\w))?", "", text)
    for pattern in _LOCAL_PATHS:
        text = re.sub(pattern, lambda match: re.split(r"[\\/]", match.group())[-1], text)
    if private.user:
        name = re.escape(private.user)
        text = re.sub(rf"(?<=[/\\]){name}(?=[/\\])|(?<![\w.]){name}(?=@\w)", REMOVED, text)
    return text


def without_token(message: str, token: str | None) -> str:
    """A message in which a token that somebody echoed is no longer to be read."""
    message = message.replace(token, REMOVED) if token else message
    for pattern in SECRETS.values():
        message = re.sub(pattern, REMOVED, message)
    return message


def _leak(text: str, start: int, what: str, shown: str) -> Leak:
    return Leak(text.count("\n", 0, start) + 1, what, shown)


def _places(text: str, part: str) -> Iterator[int]:
    start = text.find(part)
    while start >= 0:
        yield start
        start = text.find(part, start + len(part))


def _token_of_the_hub() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return ""
    return "" if name in _ACCOUNTS_OF_NOBODY or len(name) < 3 else name


def harmless_environment() -> dict[str, str]:
    """What a program that loads a stranger's folder may know of the environment: none of its secrets."""
    return {name: os.environ[name] for name in _HARMLESS & os.environ.keys()}


_HARMLESS = {
    "PATH", "HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LANG", "LC_ALL", "LD_LIBRARY_PATH",
    "VIRTUAL_ENV", "PYTHONPATH", "PYTHONUTF8", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
}  # fmt: skip
