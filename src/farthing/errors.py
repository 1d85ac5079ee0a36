"""What can go wrong, as the person at the keyboard meets it: one line, one exit code.

Codes: 2 the request is refused before anything is spent; 3 data, 4 checkpoints, 5 divergence, 6 resources and
7 a locked run stop work already begun; 75 asks to be resumed (sysexits.h calls it "temporary failure").
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

LONGEST = 2_000
"""characters of a message; what is cut out of a longer one is absurd values, and at last its middle"""

SECRETS = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}",
    "an API key": r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{16,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{20,})",
    "an AWS key": r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a URL with a password": r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^\s/:@\"'<>]+:[^\s/@\"'<>]+@",
}
"""what a secret looks like, wherever it stands; a URL that was taken for a path has lost one of its slashes"""
_NAMED_SECRET = re.compile("TOKEN|KEY|SECRET|PASS", re.IGNORECASE)
_SHORTEST_VALUE = 8
"""shorter values of such variables are settings (TOKENIZERS_PARALLELISM=false) and would be found in any text"""
REMOVED = "[removed]"


class FarthingError(Exception):
    """A failure with a message meant for a person and an exit code meant for a script."""

    exit_code = 1

    def __str__(self) -> str:
        """The message as one line of bounded length and without secrets, whatever the value that it repeats."""
        line = " ".join(super().__str__().splitlines()).strip()
        if len(line) > LONGEST:
            line = re.sub(r"\S{1000,}", lambda value: f"{value[0][:100]}...{value[0][-20:]}", line)
        line = without_secrets(line)
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 4 :]}"


class UserError(FarthingError, ValueError):
    """The request cannot be carried out as it stands; nothing has been written."""

    exit_code = 2


class DataError(FarthingError):
    """Data that was good when the run began has changed, vanished or turned out damaged."""

    exit_code = 3


class CheckpointError(FarthingError):
    """No valid checkpoint is left to continue from."""

    exit_code = 4


class DivergedError(FarthingError):
    """The loss became non-finite or ran away, and the policy was to stop."""

    exit_code = 5


class ResourceError(FarthingError):
    """Memory or disk ran out and there was nothing left to shrink."""

    exit_code = 6


class RunLockedError(FarthingError):
    """Another live process is working in this run folder."""

    exit_code = 7


class Preempted(FarthingError):
    """A signal or a deadline stopped the run after a checkpoint; `farthing resume` continues it."""

    exit_code = 75


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.ESTALE)
"""a disk, a network file system or a limit of the system that failed: nobody's request and no fault of ours"""


def of_the_system(error: OSError) -> FarthingError | None:
    """What the operating system refused, as the person at the keyboard meets it; None if it should not have happened."""
    if error.errno in _REFUSED:
        return UserError(f"{error.filename or 'a file'}: cannot be written: {error.strerror}")
    if error.errno in _NO_PATH:
        return UserError(f"{str(error.filename or 'a path')[:200]}: cannot be used: {error.strerror}")
    if error.errno in _MACHINE:
        return ResourceError(f"{error.filename or 'a file'}: {error.strerror}; when that is mended, try again")
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def secrets_in(environment: Mapping[str, str]) -> set[str]:
    """Values of variables whose names say that they are secret."""
    values = {value.strip() for name, value in environment.items() if _NAMED_SECRET.search(name)}
    return {value for value in values if len(value) >= _SHORTEST_VALUE and not Path(value).is_absolute()}


def without_secrets(text: str) -> str:
    """`text` without what looks like a secret, and without the values of the environment's own."""
    for pattern in SECRETS.values():
        text = re.sub(pattern, REMOVED, text)
    # The longest first, or the rest of a longer one would stay.
    for value in sorted(secrets_in(os.environ), key=len, reverse=True):
        text = text.replace(value, REMOVED)
    return text


def first_line(error: BaseException) -> str:
    """What an error says first, cut to 160 characters; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def need(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{why} needs the package {module!r}; install it with: pip install 'farthing[{extra}]'"
        ) from error
