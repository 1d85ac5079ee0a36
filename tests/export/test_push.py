"""An upload is one commit or nothing; whatever the hub does, one line says what is there, and the token is in none."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import get_session

from export.hub import COMMIT, TOKEN, Repository, UploadHub, silence, upload_hub
from farthing.errors import UserError
from farthing.export import push as pushing
from farthing.export.push import check_repository, push

CARD = "---\nlicense: mit\nlibrary_name: transformers\n---\n\n# tiny\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UploadHub]:
    """A hub that everything here talks to, over the protocol that needs no second server."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The client waits between its tries; how long is no concern of these tests.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with upload_hub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "inner").mkdir(parents=True)
    (made / "README.md").write_text(CARD, "utf-8")
    (made / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', "utf-8")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (made / "inner" / "note.txt").write_text("ü", "utf-8")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, *words: str, repository: str = "somebody/tiny", public: bool = False) -> str:
    """Push, be refused in one line without the token, and find the folder as it was."""
    before = contents(folder)
    with pytest.raises(UserError) as error:
        push(folder, repository, public=public)
    line = str(error.value)
    assert "\n" not in line and TOKEN not in line, line
    assert TOKEN[4:] not in line
    for word in words:
        assert word in line, line
    assert contents(folder) == before
    return line


def test_everything_arrives_in_one_commit_in_a_private_repository(hub: UploadHub, folder: Path) -> None:
    stages: list[str] = []
    done = push(folder, "tiny", report=stages.append)
    there = hub.repositories["somebody/tiny"]
    assert there.private
    assert there.files == contents(folder)
    weights = contents(folder)["model.safetensors"]
    assert hub.stored == {hashlib.sha256(weights).hexdigest(): weights}, "large files go by their own way"
    assert sum("/commit/" in one for one in hub.requests) == 1
    assert (done.repository, done.commit, done.public, done.created) == ("somebody/tiny", COMMIT, False, True)
    assert (done.url, done.files) == (f"{hub.address}/somebody/tiny", 4)
    assert done.bytes == sum(map(len, contents(folder).values()))
    assert stages[0] == "signing in" and len(stages) == 3


def test_it_is_public_only_if_that_is_said(hub: UploadHub, folder: Path) -> None:
    done = push(folder, "somebody/open", public=True)
    assert done.public and not hub.repositories["somebody/open"].private


def test_a_repository_that_is_there_is_added_to(hub: UploadHub, folder: Path) -> None:
    hub.repositories["team/tiny"] = Repository(private=True, files={"LICENSE": b"mine", "config.json": b"old"})
    done = push(folder, "team/tiny")
    assert not done.created
    assert hub.repositories["team/tiny"].files == {"LICENSE": b"mine", **contents(folder)}
    assert not any("repos/create" in one for one in hub.requests)


def test_a_public_repository_is_not_filled_by_accident(hub: UploadHub, folder: Path) -> None:
    hub.repositories["somebody/tiny"] = Repository(private=False, files={"LICENSE": b"mine"})
    refused(folder, "exists and is public", "nothing was uploaded", "--public")
    assert hub.repositories["somebody/tiny"].files == {"LICENSE": b"mine"}
    assert push(folder, "somebody/tiny", public=True).public


def test_a_private_repository_stays_private_and_that_is_told(hub: UploadHub, folder: Path) -> None:
    hub.repositories["somebody/tiny"] = Repository(private=True)
    done = push(folder, "somebody/tiny", public=True)
    assert not done.public and hub.repositories["somebody/tiny"].private
    assert any("stays so" in note for note in done.notes)


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("GET /api/whoami-v2", 401, ["does not know the token", "HTTP 401", "nothing was uploaded"]),
        ("GET /api/whoami-v2", 500, ["trouble of its own", "HTTP 500", "nothing was uploaded"]),
        ("POST /api/repos/create", 403, ["may not write to somebody/tiny", "HTTP 403", "nothing was uploaded"]),
        ("POST /api/repos/create", 409, ["at the same time", "HTTP 409", "nothing was uploaded"]),
        ("POST /api/repos/create", 500, ["HTTP 500", "nothing was uploaded"]),
        ("POST .*/preupload/main", 500, ["HTTP 500", "/somebody/tiny is there and has none of the files"]),
        ("POST .*/preupload/main", 403, ["HTTP 403", "/somebody/tiny is there and has none of the files"]),
        ("POST .*/objects/batch", 413, ["larger than it takes", "has none of the files"]),
        ("PUT /lfs/.*", 403, ["HTTP 403", "has none of the files"]),
        ("PUT /lfs/.*", 500, ["HTTP 500", "has none of the files"]),
        ("POST .*/commit/main", 409, ["at the same time", "has none of the files"]),
        ("POST .*/commit/main", 429, ["too many requests", "has none of the files"]),
        ("POST .*/commit/main", 500, ["HTTP 500", "not certain", "/somebody/tiny before you try again"]),
    ],
)
def test_a_hub_that_refuses(hub: UploadHub, folder: Path, fault: str, status: int, words: list[str]) -> None:
    hub.faults[fault] = status
    refused(folder, *words)
    assert not any(there.files for there in hub.repositories.values())
    assert ("somebody/tiny" in hub.repositories) == (
        "is there" in " ".join(words) or "none of" in " ".join(words) or "certain" in " ".join(words)
    )
    hub.faults.clear()
    push(folder, "somebody/tiny")
    assert hub.repositories["somebody/tiny"].files == contents(folder), "and the next try works"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("GET /api/whoami-v2", ["said nothing for 0.3 seconds", "nothing was uploaded"]),
        ("POST .*/commit/main", ["said nothing for 0.3 seconds", "not certain"]),
    ],
)
def test_a_hub_that_falls_silent(
    hub: UploadHub, folder: Path, fault: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "SILENCE_SECONDS", 0.3)
    hub.faults[fault] = silence(2)
    refused(folder, *words)


def test_a_connection_that_breaks_over_the_commit(hub: UploadHub, folder: Path) -> None:
    hub.faults["POST .*/commit/main"] = silence(0)
    refused(folder, "not certain", "try again")


def test_the_clients_patience_is_as_it_was(hub: UploadHub, folder: Path) -> None:
    before = get_session().timeout
    push(folder, "somebody/tiny")
    assert get_session().timeout == before


def test_no_hub_at_all(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        refused(folder, "check the network", "nothing was uploaded")


def test_no_network_by_wish(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(folder, "HF_HUB_OFFLINE", "nothing was uploaded")
    assert hub.requests == []


def test_no_token(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused(folder, "no token", "hf auth login")
    assert hub.requests == []


def test_a_card_that_the_hub_does_not_take(hub: UploadHub, folder: Path) -> None:
    (folder / "README.md").write_text(CARD.replace("mit", "nonsense"), "utf-8")
    refused(folder, "has none of the files")
    assert hub.repositories["somebody/tiny"].files == {}


def test_files_that_did_not_arrive_are_told(hub: UploadHub, folder: Path) -> None:
    hub.ignored.add("inner/note.txt")
    refused(folder, "1 of 4 files", "inner/note.txt", "incomplete")


@pytest.mark.parametrize("name", ["", "a/b/c", "sp ace", "-x", "a--b", "x" * 97, "../up", "https://huggingface.co/a/b"])
def test_a_name_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(UserError) as error:
        check_repository(name)
    assert "\n" not in str(error.value) and repr(name) in str(error.value)


def test_the_token_is_written_nowhere(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    push(folder, "somebody/tiny")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    assert not (Path(os.environ["FARTHING_CACHE"]) / "token").exists()
