"""What must not be published is found, taken out, and never told."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.export.leaks import Private, leaks, redact, without_token

NOBODY = Private()
CANARY = "Zx9Qw3Er7Ty1Ui5Op0As"
SECRETS = [
    f"hf_{CANARY}",
    f"sk-{CANARY}",
    f"sk-proj-{CANARY}",
    f"ghp_{CANARY}",
    f"github_pat_{CANARY}_x",
    "AKIAIOSFODNN7EXAMPLE",
    f"https://anna:{CANARY}@example.org/data.txt",
    f"postgresql://anna:{CANARY}@db/x",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
]
PATHS = [
    "/home/anna/corpus.txt",
    "/Users/anna/x y.txt",
    "/root/runs/one",
    r"C:\Users\anna\text.txt",
    r"D:\\data\\a.txt",
]
HARMLESS = [
    "hf_device_map and hf_hub_download",
    "a task-specific_low_rank_adaptation_of_everything",
    "https://example.org/a:b and user@example.org",
    "/usr/bin/python3 and /homepage and ./home/anna/x",
    r"print('a:\n\n')",
    "sha256 " + "0123456789abcdef" * 4,
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", 'path = "{}"', "x={}, y", "({})", "`{}`"])
def test_a_secret_is_found_taken_out_and_not_told(secret: str, around: str) -> None:
    text = "first line\n" + around.format(secret)
    (found,) = list(leaks(text, NOBODY))
    assert found.line == 2
    assert CANARY not in found.shown + found.what
    after = redact(text, NOBODY)
    assert CANARY not in after
    assert not list(leaks(after, NOBODY))
    assert CANARY not in without_token(text, None)


@pytest.mark.parametrize("path", PATHS)
def test_a_local_path_is_found_and_cut_down_to_its_name(path: str) -> None:
    text = f'path = "{path}"'
    assert [leak.what for leak in leaks(text, NOBODY)] == ["a local path"]
    after = redact(text, NOBODY)
    assert not list(leaks(after, NOBODY))
    assert "anna" not in after.replace("x y", "")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text: str) -> None:
    assert not list(leaks(text, NOBODY))
    assert redact(text, NOBODY) == text


def test_a_vocabulary_may_hold_pieces_of_paths_but_no_secrets() -> None:
    assert not list(leaks('"/home/user"', NOBODY, prose=False))
    assert list(leaks('"/home/user"', NOBODY))
    assert list(leaks(f'"hf_{CANARY}"', NOBODY, prose=False))


def test_what_this_machine_hides_is_found_in_any_form() -> None:
    environment = {
        "MY_API_KEY": "correct horse battery",
        "db_password": "hunter2hunter2",
        "TOKENIZERS_PARALLELISM": "false",
        "SSH_ASKPASS": "/usr/libexec/ssh-askpass",
        "HARMLESS": "nothing of note",
    }
    private = Private.here(["/srv/anna/runs"], environment=environment)
    assert {"correct horse battery", "hunter2hunter2"} <= private.values
    assert not {"false", "nothing of note", "/usr/libexec/ssh-askpass"} & private.values
    text = "a correct horse battery staple; hunter2hunter2; in /srv/anna/runs/one; false; nothing of note"
    found = list(leaks(text, private))
    assert [leak.what for leak in found].count("the value of a secret in the environment") == 2
    assert [leak.shown for leak in found if leak.what == "a local path"] == ["/srv/anna/runs"]
    assert redact(text, private) == "a [removed] staple; [removed]; in one; false; nothing of note"


def test_a_folder_of_one_part_tells_nothing() -> None:
    assert "/data" not in Private.here(["/data"], environment={}).folders


def test_the_account_is_known_by_where_its_name_stands() -> None:
    private = Private(user="anna")
    assert list(leaks("/scratch/anna/x", private))
    assert list(leaks("anna@machine", private))
    assert not list(leaks("anna writes; anna/model; joanna@x; hanna/anna", private))
    assert not list(leaks(redact("/scratch/anna/x anna@machine", private), private))


@given(st.text(string.ascii_letters + string.digits + " /\\:@.-_'\"\n", max_size=60), st.sampled_from(SECRETS + PATHS))
def test_nothing_is_left_after_redaction(text: str, secret: str) -> None:
    private = Private(values=frozenset({"swordfish1"}), folders=frozenset({"/srv/anna"}), user="anna")
    after = redact(f"{text} {secret} swordfish1 /srv/anna/x {text}", private)
    assert CANARY not in after and "swordfish1" not in after and "/srv/anna" not in after
