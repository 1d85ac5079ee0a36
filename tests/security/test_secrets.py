"""S18: what is secret in the environment, in a URL or in a git remote is in no file and no line that Farthing writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from cli.small import RECIPE, TITLES, Answer, Command
from export.hub import upload_hub
from farthing.errors import REMOVED, UserError, without_secrets
from farthing.training.loop import Trainer

MARK = "canary"
SECRETS = {
    "HF_TOKEN": f"hf_{MARK}0123456789abcdefgh",
    "OPENAI_API_KEY": f"sk-{MARK}-0123456789abcdef",
    "WANDB_API_KEY": f"{MARK}7f1e0123456789",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/wJalrXUtnFEMI/K7MDENG",
    "DATABASE_PASSWORD": f"{MARK} with a blank",
    "GITHUB_TOKEN": f"ghp_{MARK}0123456789ABCDEFGHIJ",
}
PASSWORD = f"{MARK}pw"
URL = f"https://anna:{PASSWORD}@data.example/books.txt"


@pytest.fixture
def farthing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, with all that it and its children print."""
    monkeypatch.setenv("COLUMNS", "80")
    return Command(capfd)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder under git, with a remote that holds a password, in an environment full of secrets."""
    (tmp_path / "titles.txt").write_text(TITLES, "utf-8")
    (tmp_path / "small.toml").write_text(RECIPE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "cache"))
    # Outside of what is searched: the secret's own place.
    git = tmp_path.parent / f"{tmp_path.name}-git"
    git.mkdir()
    (git / "config").write_text(f'[remote "origin"]\n\turl = https://anna:{PASSWORD}@github.com/a/b.git\n', "utf-8")
    (git / "HEAD").write_text("ref: refs/heads/main\n", "utf-8")
    (tmp_path / ".git").symlink_to(git)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    yield tmp_path


def silent(*answers: Answer) -> None:
    for answer in answers:
        assert MARK not in answer.out + answer.err, answer


def nowhere(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert files
    assert not [path for path in files if MARK.encode() in path.read_bytes() or MARK in path.name]


def test_no_verb_writes_or_says_what_is_secret(farthing: Command, desk: Path) -> None:
    trained = farthing("train", "small.toml", "--name", "one")
    assert trained.code == 0, trained.err
    silent(trained, farthing("train", "small.toml", "seed=2", "--name", "two", "--quiet", "--json"))
    for words in (
        ["plan", "small.toml", "--json"],
        ["eval", "one", "--json"],
        ["sample", "one", "--tokens", "4"],
        ["compare", "one", "two"],
        ["report", "one", "two", "--out", "report.html"],
        ["runs", "--json"],
        ["recipe", "show", "small.toml"],
        ["export", "one", "out", "--license", "mit", "--quiet"],
        ["doctor", "--json"],
    ):
        answer = farthing(*words)
        assert answer.code == 0, (words, answer)
        silent(answer)
    assert (desk / "report.html").is_file()
    # S17: an export is weights, tables and words; nothing in it can run.
    names = {path.name for path in (desk / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if Path(name).suffix not in (".json", ".safetensors", ".md", ".txt")]
    assert "auto_map" not in json.loads((desk / "out" / "config.json").read_text("utf-8"))
    nowhere(desk)


def test_a_url_with_a_password_is_refused_without_it(farthing: Command, desk: Path) -> None:
    for words in (
        ["train", "small.toml", f"data.path={URL}"],
        ["train", "small.toml", f"data.path={URL}", "--quiet", "--json"],
        ["train", URL],
        ["plan", "small.toml", f"tokenizer.kind={URL}"],
        ["plan", "small.toml", f"tokenizer.path={URL}"],
        ["import", "huggingface", URL],
        ["sample", URL],
        ["compare", URL],
        ["report", URL],
        ["search", URL],
        ["data", "get", URL],
    ):
        answer = farthing(*words)
        assert answer.code == 2 and answer.err.count("\n") == 1, (words, answer)
        silent(answer)
    search = 'recipe = "small.toml"\n[space]\n"optimizer.lr" = { kind = "float", low = 0.1, high = 0.2 }\n[budget]\ntrials = 1\n'
    (desk / "s.toml").write_text(search, "utf-8")
    for storage in (f"postgresql://anna:{PASSWORD}@[broken/x", f"mysql://anna:{PASSWORD}@127.0.0.1/x"):
        answer = farthing("search", "s.toml", "--storage", storage)
        assert answer.code in (2, 6) and answer.err.count("\n") == 1, answer
        silent(answer)
    nowhere(desk)


def test_a_crash_tells_what_happened_and_no_secret(
    farthing: Command, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer) -> None:
        raise RuntimeError(f"connection to {URL} refused for {SECRETS['HF_TOKEN']}, {SECRETS['DATABASE_PASSWORD']}")

    monkeypatch.setattr(Trainer, "train", fail)
    answer = farthing("train", "small.toml", "--name", "one")
    assert answer.code == 1 and "RuntimeError: connection to" in answer.err and REMOVED in answer.err
    silent(answer)
    assert "connection to" in (desk / "runs" / "one" / "events.jsonl").read_text("utf-8")
    nowhere(desk)


def test_a_refused_push_says_why_and_no_token(farthing: Command, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    (desk / "model").mkdir()
    (desk / "model" / "config.json").write_text("{}", "utf-8")
    with upload_hub() as hub:
        # Its token is another one, so that this hub refuses whoever comes with ours.
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        checked = farthing("publish-check", "model", "--push", "anna/tiny", "--quiet")
        anyway = farthing("publish-check", "model", "--push", "anna/tiny", "--quiet", "--anyway")
    assert (checked.code, anyway.code) == (2, 2) and "nothing was uploaded" in checked.err
    silent(checked, anyway)
    nowhere(desk)


def test_errors_are_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "correct horse battery")
    for secret in (
        *(value for name, value in SECRETS.items() if name in ("HF_TOKEN", "OPENAI_API_KEY")),
        "correct horse battery",
        "AKIAIOSFODNN7EXAMPLE",
    ):
        said = str(UserError(f"{secret}: no such file"))
        assert secret not in said and said == f"{REMOVED}: no such file"
    assert without_secrets("postgresql://anna:secret@host/db") == f"{REMOVED}host/db"
    assert without_secrets("https://host:8000/a@b and 3:4@5") == "https://host:8000/a@b and 3:4@5"
    monkeypatch.setenv("SHORT_KEY", "false")
    assert without_secrets("false") == "false"


def test_the_search_would_find_a_secret(desk: Path) -> None:
    (desk / "leak.txt").write_text(f"x{SECRETS['WANDB_API_KEY']}", "utf-8")
    with pytest.raises(AssertionError):
        nowhere(desk)
    with pytest.raises(AssertionError):
        silent(Answer(0, "", PASSWORD))
