"""Known corpora, fetched from the Hugging Face hub: resumed where a download broke off, verified, written whole."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing.data.hub import reach
from farthing.data.store import Report, silent
from farthing.errors import UserError, nearest, need
from farthing.storage import fsync_file, fsync_folder, read_json, sha256_of, temporary_beside, write_json

_TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_DOWNLOADS = ".download"
_TITLES = 100_000
_TITLES_SEED = 1337


Write = Callable[[list[Path], Path, str], None]


@dataclass(frozen=True)
class Known:
    """A corpus of the hub.

    Args:
        repository: the dataset's name on the hub.
        revision: branch, tag or reference of it.
        groups: which of its files make which file here: (target, pattern); the target of shards is their folder.
        write: makes the target from the files, in order; None keeps them as they are.
        recipe: the overrides that train on it, {path} standing for what was fetched.
        field: the column that holds the text, in Parquet files.
        sha256: of the finished file, where it is known.
    """

    repository: str
    groups: tuple[tuple[str, str], ...]
    recipe: str
    revision: str = "main"
    write: Write | None = None
    field: str = "text"
    sha256: str | None = None


def _joined(files: list[Path], target: Path, field: str) -> None:
    """The texts of Parquet rows, one directly after the other: the original file again."""
    need("pyarrow", extra="hf", why="this corpus")
    import pyarrow.parquet as pq

    with target.open("w", encoding="utf-8", newline="") as out:
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000, columns=[field]):
                    out.writelines(text or "" for text in batch.column(0).to_pylist())


def _moved(files: list[Path], target: Path, field: str) -> None:
    (only,) = files
    os.replace(only, target)


KNOWN: dict[str, Known] = {
    "hn-titles": Known(
        "julien040/hacker-news-posts",
        (("hn_titles.txt", ""),),
        "data.kind=text data.path={path} data.documents=line data.split=tail data.validation=10000",
        field="title",
    ),
    "fineweb-10b": Known(
        "kjj0/fineweb10B-gpt2",
        (("fineweb10B", r"fineweb_(val|train)_\d+\.bin"),),
        "data.kind=bin data.path={path}/fineweb_train_*.bin data.validation={path}/fineweb_val_*.bin "
        "tokenizer.kind=gpt2",
    ),
    "fineweb-edu": Known(
        "HuggingFaceFW/fineweb-edu",
        (("fineweb_edu", r"sample/10BT/.*\.parquet"),),
        "data.kind=parquet data.path={path}/*.parquet",
    ),
    "tinystories": Known(
        "roneneldan/TinyStories",
        (
            ("tinystories_valid.txt", r"TinyStoriesV2-GPT4-valid\.txt"),
            ("tinystories_train.txt", r"TinyStoriesV2-GPT4-train\.txt"),
        ),
        'data.kind=text data.path={path} data.documents=marker data.marker="<|endoftext|>"',
        write=_moved,
    ),
    "wikitext-103": Known(
        "Salesforce/wikitext",
        (
            ("wikitext103_valid.txt", r"wikitext-103-raw-v1/validation-.*\.parquet"),
            ("wikitext103_test.txt", r"wikitext-103-raw-v1/test-.*\.parquet"),
            ("wikitext103_train.txt", r"wikitext-103-raw-v1/train-.*\.parquet"),
        ),
        "data.kind=text data.path={path} data.documents=paragraph",
        write=_joined,
    ),
    "tinyshakespeare": Known(
        "karpathy/tiny_shakespeare",
        (("tinyshakespeare.txt", r"default/(train|validation|test)/.*\.parquet"),),
        "data.kind=text data.path={path} data.documents=paragraph",
        revision="refs/convert/parquet",
        write=_joined,
        sha256=_TINY_SHAKESPEARE_SHA256,
    ),
}
"""What `farthing data get` can fetch, by name."""

_SPLIT_ORDER = ("train", "valid", "test")


def fetch(
    name: str, folder: Path, report: Report = silent, *, shards: int | None = None, endpoint: str | None = None
) -> Path:
    """Fetch a known corpus into `folder`; what is there and whole already is not fetched again.

    Args:
        name: one of KNOWN.
        folder: where its files go; made if need be.
        report: hears "fetching FILE" in bytes.
        shards: at most this many training shards, for corpora that come in shards; None fetches all.
        endpoint: the hub's address; None takes HF_ENDPOINT or the public hub.

    Returns:
        The file to train on, or the folder of shards.

    Raises:
        UserError: an unknown name, no way to the hub, a file that is not what the hub says it is, or no room for it.
    """
    if name not in KNOWN:
        raise UserError(f"no known corpus {name!r}{nearest(name, KNOWN)}; there are: {', '.join(KNOWN)}")
    if shards is not None and shards < 1:
        raise UserError(f"shards = {shards}: at least one is needed")
    known = KNOWN[name]
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    with _plain_errors(name, known, endpoint):
        folder.mkdir(parents=True, exist_ok=True)
        if name == "hn-titles":
            return _titles(known, folder / known.groups[0][0], report, endpoint)
        return _files(known, folder, report, shards, endpoint)


def recognised(path: Path, digests: Collection[str]) -> str | None:
    """The hub's name of the known corpus that a text is proven to be; None where nothing proves it.

    Args:
        path: the text's file.
        digests: SHA-256 of the files that were read.
    """
    note = path.parent / _DOWNLOADS / f"{path.name}.json"
    for known in KNOWN.values():
        if known.sha256 in digests:
            return known.repository
        if path.name in {target for target, _ in known.groups} and note.is_file():
            return known.repository if read_json(note).get("sha256") in digests else None
    return None


def _files(known: Known, folder: Path, report: Report, shards: int | None, endpoint: str | None) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    reach(endpoint)
    tree = HfApi(endpoint=endpoint).list_repo_tree(
        known.repository, recursive=True, revision=known.revision, repo_type="dataset"
    )
    there = sorted((item for item in tree if isinstance(item, RepoFile)), key=lambda item: _order(item.path))
    target = folder
    for name, pattern in known.groups:
        chosen = [item for item in there if re.fullmatch(pattern, item.path)]
        if not chosen:
            raise UserError(f"the hub dataset {known.repository} no longer has files like {pattern}")
        target = folder / name
        if known.write is None:
            held_out = [item for item in chosen if "_val_" in item.path]
            training = [item for item in chosen if item not in held_out][:shards]
            for item in held_out + training:
                _kept(known, item, target / Path(item.path).name, folder, report, endpoint)
        else:
            _converted(known, known.write, chosen, target, report, endpoint)
    return target


def _converted(
    known: Known, write: Write, chosen: list[Any], target: Path, report: Report, endpoint: str | None
) -> None:
    """Make `target` from hub files, unless a note beside them says that it was made from just these and is whole."""
    note = target.parent / _DOWNLOADS / f"{target.name}.json"
    made_from = {item.path: item.blob_id for item in chosen}
    if target.exists() and note.exists() and read_json(note) == {"from": made_from, "sha256": sha256_of(target)}:
        return
    paths = [_downloaded(known, item, target.parent, report, endpoint) for item in chosen]
    _written(target, lambda temporary: write(paths, temporary, known.field))
    found = sha256_of(target)
    if known.sha256 not in (None, found):
        target.unlink()
        raise UserError(f"{known.repository} no longer holds the text it is known for: SHA-256 {found}")
    write_json(note, {"from": made_from, "sha256": found})
    for path in paths:
        path.unlink(missing_ok=True)


def _order(path: str) -> tuple[int, str]:
    return next((rank for rank, word in enumerate(_SPLIT_ORDER) if f"/{word}" in path), 0), path


def _kept(known: Known, item: Any, target: Path, folder: Path, report: Report, endpoint: str | None) -> None:
    if target.exists() and _whole(target, item):
        return
    path = _downloaded(known, item, folder, report, endpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    fsync_folder(target.parent)


def _downloaded(known: Known, item: Any, folder: Path, report: Report, endpoint: str | None) -> Path:
    # The hub's own hf_hub_download forgets what it had when its process ends; its parts do not.
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    path = folder / _DOWNLOADS / hashlib.sha256(f"{known.repository}/{item.path}/{item.blob_id}".encode()).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as partial:
        there = partial.tell() if partial.tell() <= item.size else partial.truncate(0)
        url = hf_hub_url(known.repository, item.path, repo_type="dataset", revision=known.revision, endpoint=endpoint)
        bar = _bar(report, item.path, item.size)
        http_get(url, partial, resume_size=there, headers=build_hf_headers(), expected_size=item.size, tqdm_class=bar)
    if not _whole(path, item):
        size, found = path.stat().st_size, sha256_of(path)
        path.unlink()
        raise UserError(
            f"{item.path} of {known.repository} arrived damaged: {size:,} of {item.size:,} bytes, SHA-256 "
            f"{found[:12]}...; run the same command again"
        )
    fsync_file(path)
    return path


def _whole(path: Path, item: Any) -> bool:
    """Whether a file is, by size and hash, what the hub says it is."""
    if path.stat().st_size != item.size:
        return False
    if item.lfs is not None:
        return sha256_of(path) == item.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == item.blob_id


def _titles(known: Known, target: Path, report: Report, endpoint: str | None) -> Path:
    """The benchmark's titles in the benchmark's order: its own shuffle by the `datasets` library, the first 100,000."""
    if target.exists() and target.stat().st_size and _line_count(target) == _TITLES:
        return target
    datasets = need("datasets", extra="hf", why="hn-titles")
    report(f"fetching {known.repository}", 0, 0)
    reach(endpoint)
    posts = datasets.load_dataset(known.repository, split="train", cache_dir=str(target.parent / _DOWNLOADS))
    write_titles(posts, target)
    return target


def write_titles(posts: Any, target: Path, *, count: int = _TITLES) -> None:
    """Write the first `count` titles after the benchmark's shuffle (seed 1337), stripped, one a line.

    Args:
        posts: a `datasets.Dataset` with the column "title".
        target: the text file.
        count: how many titles.
    """
    titles = posts.shuffle(seed=_TITLES_SEED).select(range(count))["title"]
    # A line break inside a title would make two documents of it.
    lines = (" ".join(title.strip().splitlines()) + "\n" for title in titles)
    _written(target, lambda out: out.write_bytes("".join(lines).encode("utf-8")))


def _line_count(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))


def _written(target: Path, write: Callable[[Path], Any]) -> None:
    temporary = temporary_beside(target)
    try:
        write(temporary)
        fsync_file(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(target.parent)


def _bar(report: Report, name: str, total: int) -> type:
    """The hub's progress bar, heard instead of seen."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Heard(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            self.reached = float(settings.get("initial") or 0)
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, more: float | None = 1) -> None:
            self.reached += more or 0
            report(f"fetching {name}", self.reached, total)

    return Heard


@contextmanager
def _plain_errors(name: str, known: Known, endpoint: str | None) -> Iterator[None]:
    """Turn what the hub's client and the disk may raise into one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError, ConnectionError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise UserError(
            f"cannot fetch {name} ({known.repository}) from {endpoint or 'the Hugging Face hub'}: {reason}; check the "
            "network (HF_HUB_OFFLINE, HF_ENDPOINT) and run the same command again: it goes on where it broke off"
        ) from error
    except OSError as error:
        raise UserError(f"cannot fetch {name}: {error.filename or ''} {error.strerror or error}") from error
