"""An exported folder on the Hugging Face hub: one commit, or nothing that anybody can see; the folder is only read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing.data.hub import reach
from farthing.errors import UserError, first_line
from farthing.export.leaks import without_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SILENCE_SECONDS = 60.0
"""how long the hub may say nothing before it is given up; its client alone would wait for ever"""
_MESSAGE = "Upload a model trained with Farthing"


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now.

    Args:
        repository: owner/name.
        url: where to look at it.
        commit: the commit that holds the files.
        public: whether everybody can see it.
        created: whether the repository is new.
        files: how many files it was.
        bytes: their size.
        notes: what the hub had to say.
    """

    repository: str
    url: str
    commit: str
    public: bool
    created: bool
    files: int
    bytes: int
    notes: tuple[str, ...] = ()


@dataclass
class _Progress:
    """How far an upload came: what a person must know when it fails."""

    repository: str
    url: str = ""
    created: bool = False
    notes: list[str] = field(default_factory=list)

    def left_behind(self, *, certain: bool) -> str:
        """What is on the hub after a failure; not certain where its answer to the commit itself was lost."""
        if not certain:
            return f"whether the files arrived is not certain: look at {self.url} before you try again"
        if self.created:
            return f"the new repository {self.url} is there and has none of the files"
        return "nothing was uploaded"


def check_repository(name: str) -> str:
    """`name` as the hub allows it: name or owner/name.

    Raises:
        UserError: it does not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"--push {name!r}: should be NAME or OWNER/NAME, of letters, digits, '-', '_' and '.', at most 96 of them"
        ) from None
    return name


def push(
    folder: Path, repository: str, *, public: bool = False, report: Callable[[str], None] = lambda stage: None
) -> Pushed:
    """Upload all files of a folder in one commit; the repository is made if need be, private unless `public`.

    The token is the hub's own: HF_TOKEN, or what `hf auth login` has kept.

    Args:
        folder: with plain files only.
        repository: owner/name, or a name of the token's owner.
        public: whether everybody may see it.
        report: hears what is being done.

    Raises:
        UserError: the hub refuses, cannot be reached or falls silent; one line says what is there now.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    progress, endpoint = _Progress(check_repository(repository)), os.environ.get("HF_ENDPOINT") or None
    token = get_token()
    if token is None:
        raise UserError(f"--push {repository}: no token: set HF_TOKEN, or log in once with: hf auth login")
    with _plain_errors(progress, token, endpoint), _patience(), _quiet(progress.notes):
        report("signing in")
        reach(endpoint)
        api = HfApi(endpoint=endpoint, token=token)
        owner = api.whoami()["name"]
        name = repository if "/" in repository else f"{owner}/{repository}"
        progress.repository, progress.url = name, f"{api.endpoint}/{name}"
        visible = _opened(api, name, public, progress)
        size = sum(path.stat().st_size for path in files.values())
        report(f"uploading {len(files)} files, {size / 1e6:,.1f} MB")
        operations = [CommitOperationAdd(path_in_repo=inside, path_or_fileobj=path) for inside, path in files.items()]
        commit = api.create_commit(name, operations=operations, commit_message=_MESSAGE)
        report("checking what arrived")
        _arrived(api, name, commit.oid, files)
    return Pushed(
        repository=name,
        url=progress.url,
        commit=commit.oid,
        public=visible,
        created=progress.created,
        files=len(files),
        bytes=size,
        notes=tuple(progress.notes),
    )


def _opened(api: HfApi, name: str, public: bool, progress: _Progress) -> bool:
    """Make the repository unless it is there; returns whether everybody can see it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = api.model_info(name).private
    except RepositoryNotFoundError:
        api.create_repo(name, private=not public)
        progress.created = True
        return public
    if not private and not public:
        raise UserError(
            f"--push {name}: that repository exists and is public; nothing was uploaded. Say --public if everybody may "
            "see this model, or name another repository"
        )
    if private and public:
        progress.notes.append(f"{name} exists and is private; it stays so (change it in its settings on the hub)")
    return not private


def _arrived(api: HfApi, name: str, commit: str, files: dict[str, Path]) -> None:
    """Compare what the commit holds with the folder: the hub leaves out what a .gitignore of its own names."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(name, recursive=True, revision=commit)
    there = {item.path: item.size for item in tree if isinstance(item, RepoFile)}
    missing = [inside for inside, path in files.items() if there.get(inside) != path.stat().st_size]
    if missing:
        raise UserError(
            f"--push {name}: {len(missing)} of {len(files)} files are not there as they are here, {missing[0]} first; "
            f"the repository is incomplete: look at {api.endpoint}/{name}"
        )


@contextmanager
def _patience() -> Iterator[None]:
    """Give the hub's client a limit to its waiting, for the time of the block."""
    from huggingface_hub import get_session

    session: Any = get_session()
    before = getattr(session, "timeout", None)
    session.timeout = SILENCE_SECONDS
    try:
        yield
    finally:
        session.timeout = before


@contextmanager
def _quiet(notes: list[str]) -> Iterator[None]:
    """Keep the hub's client from the terminal; its warnings become notes."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if shown:
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            yield
        notes.extend(" ".join(str(warning.message).split()) for warning in heard if warning.category is UserWarning)
    finally:
        logging.set_verbosity(level)
        if shown:
            enable_progress_bars()


@contextmanager
def _plain_errors(progress: _Progress, token: str, endpoint: str | None) -> Iterator[None]:
    """Turn whatever the hub's client may raise into one line that says what is on the hub now."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    hub, certain = endpoint or "the Hugging Face hub", True
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        reason = _refusal(error, progress.repository)
        certain = error.response.status_code < 500 or not _at_commit(error)
    except (TransportError, OSError) as error:
        reason = f"{_cause(error)}; check the network (HF_HUB_OFFLINE, HF_ENDPOINT) and try again"
        certain = not _at_commit(error)
    except (ValueError, RuntimeError) as error:
        broken = error.__cause__
        reason = (
            _refusal(broken, progress.repository) if isinstance(broken, HfHubHTTPError) else _cause(broken or error)
        )
    else:
        return
    line = f"--push {progress.repository}: {hub} did not take it: {reason}; {progress.left_behind(certain=certain)}"
    raise UserError(" ".join(without_token(line, token).split())) from None


def _at_commit(error: Any) -> bool:
    """Whether it was the request for the commit that failed: the only one that makes files visible."""
    answer = getattr(error, "response", None)
    try:
        return "/commit/" in str((error if answer is None else answer).request.url)
    except (AttributeError, RuntimeError):
        return False


def _refusal(error: Any, repository: str) -> str:
    """What an answer of the hub means, by its code."""
    status = error.response.status_code
    said = first_line(ValueError(error.server_message)) if error.server_message else ""
    meaning = {
        401: "it does not know the token: set HF_TOKEN to a valid one, or log in again with: hf auth login",
        403: f"the token may not write to {repository}: make one with write access, or name a repository of yours",
        404: f"{repository} is not there, or not for this token",
        409: f"something else changed {repository} at the same time; try again",
        413: "a file is larger than it takes",
        429: "too many requests; wait a few minutes and try again",
    }.get(status, "it has trouble of its own; try again later" if status >= 500 else "it refused")
    return f"{meaning} (HTTP {status}{': ' + said if said and status != 401 else ''})"


def _cause(error: BaseException) -> str:
    name = type(error).__name__
    if "Timeout" in name:
        return f"it said nothing for {SILENCE_SECONDS:g} seconds"
    said = first_line(error)
    return said if said != name else name
