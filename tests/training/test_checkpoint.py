"""F14 to F18, F32, F47: a checkpoint is used only if every byte is as it was written, and none is ever lost by reading."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from farthing.errors import CheckpointError, UserError
from farthing.rundir import RunDir
from farthing.storage import read_json, write_json
from farthing.training import checkpoint as checkpoints
from farthing.training.checkpoint import DamagedCheckpoint, Snapshot
from training.story import new_run, recipe, tensors_of

IDENTITY = {"recipe": "r" * 64, "text": "t" * 64, "tokenizer": "k" * 64}


def snapshot(step: int, *, average: bool = True) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    tensors = {"a.weight": torch.randn(7, 5, generator=generator), "b": torch.randn(1_500, generator=generator)}
    return Snapshot(
        model=tensors,
        optimizer={f"{name}/exp_avg": tensor * 2 for name, tensor in tensors.items()},
        average={name: tensor / 2 for name, tensor in tensors.items()} if average else None,
        state={"step": step, "best_step": None, "text": "žluťoučký"},
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs" / "owl", recipe="", tokenizer="{}", plan={}, receipt={})


@pytest.fixture
def saved(run: RunDir) -> Path:
    return checkpoints.save(run, 3, snapshot(3), IDENTITY).path


@pytest.mark.parametrize("average", [True, False])
def test_it_comes_back_bit_for_bit(run: RunDir, average: bool) -> None:
    before = snapshot(3, average=average)
    told = checkpoints.save(run, 3, before, IDENTITY)
    assert told.bytes == sum(file.stat().st_size for file in told.path.iterdir())
    after = checkpoints.load(told.path)
    assert after.state == before.state
    for part in ("model", "optimizer", "average"):
        one, other = getattr(before, part), getattr(after, part)
        assert (one is None) == (other is None)
        assert one is None or all(torch.equal(one[name], other[name]) for name in one | other)


def test_no_file_of_it_is_a_pickle(saved: Path) -> None:
    assert sorted(file.suffix for file in saved.iterdir()) == [".json", ".json"] + [".safetensors"] * 3
    assert not any(file.read_bytes()[:2] == b"\x80\x04" for file in saved.iterdir())


def detected(folder: Path) -> bool:
    try:
        checkpoints.verify(folder)
    except DamagedCheckpoint:
        return True
    return False


def test_F15_every_flipped_byte_of_the_manifest_is_detected(saved: Path) -> None:
    checkpoints.verify(saved)
    manifest = saved / "manifest.json"
    sound = manifest.read_bytes()
    meant = json.loads(sound)
    missed = []
    for at in range(len(sound)):
        for bit in (0x01, 0x20):
            flipped = bytearray(sound)
            flipped[at] ^= bit
            manifest.write_bytes(flipped)
            # A flip may turn one white space into another, which says the same.
            if not detected(saved) and read_json(manifest) != meant:
                missed.append(at)
    assert not missed


def test_F15_a_flipped_bit_of_any_file_is_detected(saved: Path) -> None:
    checkpoints.verify(saved)
    tried = 0
    for file in sorted(saved.iterdir()):
        sound = file.read_bytes()
        places = {*range(min(120, len(sound))), *range(0, len(sound), max(1, len(sound) // 40)), len(sound) - 1}
        for at in places if file.name != "manifest.json" else ():
            flipped = bytearray(sound)
            flipped[at] ^= 1 << (at % 8)
            file.write_bytes(flipped)
            assert detected(saved), (file.name, at)
            tried += 1
        file.write_bytes(sound)
    assert tried > 500
    checkpoints.verify(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json",
                                  "manifest.json"])  # fmt: skip
def test_F14_a_file_cut_off_anywhere_or_gone_is_detected(saved: Path, name: str) -> None:
    file = saved / name
    sound = file.read_bytes()
    # Without its last line break the manifest still says all that it did.
    for length in {0, 1, 7, 8, 9, *range(0, len(sound) - 1, len(sound) // 23), len(sound) - 2}:
        file.write_bytes(sound[:length])
        assert detected(saved), length
    file.write_bytes(sound + b"x")
    assert detected(saved)
    file.unlink()
    with pytest.raises(DamagedCheckpoint, match=name):
        checkpoints.verify(saved)


def test_F16_a_page_of_zeros_is_detected(saved: Path) -> None:
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[1024:5120] = bytes(4096)
    file.write_bytes(content)
    load_file(file)  # the format itself does not notice
    with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors does not match its checksum"):
        checkpoints.verify(saved)


def test_F16_files_of_another_step_are_detected(run: RunDir, saved: Path) -> None:
    other = checkpoints.save(run, 4, snapshot(4), IDENTITY).path
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        before = (saved / name).read_bytes()
        shutil.copy(other / name, saved / name)
        assert detected(saved), name
        (saved / name).write_bytes(before)
    checkpoints.verify(saved)
    shutil.rmtree(saved)
    shutil.copytree(other, saved)
    with pytest.raises(DamagedCheckpoint, match="step 4, under another name"):
        checkpoints.verify(saved)


def test_a_file_that_does_not_belong_is_detected(run: RunDir) -> None:
    folder = checkpoints.save(run, 3, snapshot(3, average=False), IDENTITY).path
    save_file({"a.weight": torch.zeros(7, 5)}, folder / "average.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"average\.safetensors"):
        checkpoints.verify(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{}", b'{"sha256": 1}', b'{"a": 1, "a": 1}', b'{"a": NaN}',
                                     b"\xff\xfe", b"[" * 100_000, b'{"sha256": "x", "format": "1", "files": 3}'])  # fmt: skip
def test_F18_whatever_stands_in_the_manifest(saved: Path, content: bytes) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedCheckpoint):
        checkpoints.verify(saved)


def test_F18_a_newer_format_is_refused_by_name_and_left_where_it_is(run: RunDir, saved: Path) -> None:
    manifest = read_json(saved / "manifest.json")
    body = {key: value for key, value in manifest.items() if key != "sha256"} | {"format": checkpoints.FORMAT + 1}
    write_json(saved / "manifest.json", {**body, "sha256": checkpoints._hash_of(body)})
    with pytest.raises(UserError, match=f"format {checkpoints.FORMAT + 1} by a newer farthing"):
        checkpoints.load_newest(run, IDENTITY, lambda message: None)
    assert saved.is_dir()


def damage(folder: Path) -> None:
    (folder / "state.json").write_bytes(b"{}")


def test_F14_the_newest_valid_one_is_used_and_the_damaged_one_kept_aside(run: RunDir) -> None:
    for step in (1, 2, 3):
        checkpoints.save(run, step, snapshot(step), IDENTITY)
    damage(run.checkpoint(3))
    told: list[str] = []
    found = checkpoints.load_newest(run, IDENTITY, told.append)
    assert found is not None and found[1] == run.checkpoint(2)
    assert torch.equal(found[0].model["b"], snapshot(2).model["b"])
    [message] = told
    assert "step-00000003" in message and "state.json" in message and "step-00000002" in message
    assert "\n" not in message
    assert run.checkpoint_steps() == [1, 2]
    [aside] = run.quarantine.iterdir()
    assert sorted(file.name for file in aside.iterdir()) == sorted(file.name for file in run.checkpoint(2).iterdir())


@pytest.mark.parametrize("trouble", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_F16_one_that_the_disk_does_not_give_back_is_damaged_and_an_older_one_used(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, trouble: int
) -> None:
    for step in (1, 2):
        checkpoints.save(run, step, snapshot(step), IDENTITY)
    genuine = checkpoints.sha256_of

    def sha256_of(file: Path) -> str:
        if file.parent == run.checkpoint(2):
            raise OSError(trouble, os.strerror(trouble), str(file))
        return genuine(file)

    monkeypatch.setattr(checkpoints, "sha256_of", sha256_of)
    assert checkpoints.weights(run, "last")[1] == 1
    told: list[str] = []
    found = checkpoints.load_newest(run, IDENTITY, told.append)
    assert found is not None and found[1] == run.checkpoint(1)
    assert os.strerror(trouble) in told[0] and "quarantine" in told[0]


def test_F23_a_checkpoint_is_not_blamed_for_files_that_have_run_out(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(run, step, snapshot(step), IDENTITY)

    def sha256_of(file: Path) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(file))

    monkeypatch.setattr(checkpoints, "sha256_of", sha256_of)
    with pytest.raises(OSError, match="Too many open files"):
        checkpoints.load_newest(run, IDENTITY, lambda message: None)
    assert run.checkpoint_steps() == [1, 2]


def test_F17_all_but_the_oldest_damaged_then_all(run: RunDir) -> None:
    for step in (1, 2, 3):
        checkpoints.save(run, step, snapshot(step), IDENTITY)
    for step in (2, 3):
        damage(run.checkpoint(step))
    found = checkpoints.load_newest(run, IDENTITY, lambda message: None)
    assert found is not None and found[1] == run.checkpoint(1)
    assert len(list(run.quarantine.iterdir())) == 2

    checkpoints.save(run, 4, snapshot(4), IDENTITY)
    damage(run.checkpoint(1))
    (run.checkpoint(4) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_newest(run, IDENTITY, lambda message: None)
    assert caught.value.exit_code == 4
    for word in ("step-00000001", "state.json", "step-00000004", "model.safetensors is missing"):
        assert word in str(caught.value)
    assert run.checkpoint_steps() == [1, 4], "nothing is changed when nothing can be used"


def test_a_run_that_has_saved_nothing_has_nothing(run: RunDir) -> None:
    assert checkpoints.load_newest(run, IDENTITY, lambda message: None) is None
    with pytest.raises(CheckpointError, match="no valid checkpoint yet"):
        checkpoints.weights(run)


@pytest.mark.parametrize("what", list(IDENTITY))
def test_a_checkpoint_of_another_recipe_text_or_tokenizer(run: RunDir, saved: Path, what: str) -> None:
    with pytest.raises(UserError, match=f"belongs to another {what}") as caught:
        checkpoints.load_newest(run, {**IDENTITY, what: "f" * 64}, lambda message: None)
    assert "\n" not in str(caught.value)
    assert saved.is_dir()


def test_saving_one_step_again_replaces_it(run: RunDir, saved: Path) -> None:
    checkpoints.save(run, 3, snapshot(9), IDENTITY)
    assert checkpoints.load(saved).state["step"] == 9
    assert [entry.name for entry in run.checkpoints.iterdir()] == [saved.name]


@pytest.mark.parametrize("fails", ["save_file", "write_json", "sha256_of", "verify"])
def test_F28_a_save_that_fails_leaves_the_old_one(
    run: RunDir, saved: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def no_space(*args: object, **kwargs: object) -> None:
        raise DamagedCheckpoint("it rotted") if fails == "verify" else OSError(28, "No space left on device")

    before = tensors_of(saved)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, fails, no_space)
        for step in (3, 4):
            with pytest.raises(OSError):
                checkpoints.save(run, step, snapshot(9), IDENTITY)
    assert [entry.name for entry in run.checkpoints.iterdir()] == [saved.name]
    checkpoints.verify(saved)
    assert tensors_of(saved) == before


def test_F28_a_folder_that_cannot_be_made_durable_leaves_the_old_one(
    run: RunDir, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from farthing import storage

    def broken(path: Path) -> None:
        if path.name == "model.safetensors":
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "fsync_file", broken)
        with pytest.raises(OSError):
            checkpoints.save(run, 3, snapshot(9), IDENTITY)
    assert checkpoints.load(saved).state["step"] == 3
    checkpoints.verify(saved)


@pytest.mark.parametrize(("keep", "protect", "left"), [(2, None, [4, 5]), (2, 1, [1, 4, 5]), (3, 4, [3, 4, 5]),
                                                       (9, None, [1, 2, 3, 4, 5])])  # fmt: skip
def test_prune_keeps_the_newest_and_the_best(run: RunDir, keep: int, protect: int | None, left: list[int]) -> None:
    for step in range(1, 6):
        checkpoints.save(run, step, snapshot(step), IDENTITY)
    checkpoints.prune(run, keep=keep, protect=protect)
    assert run.checkpoint_steps() == left
    assert sorted(entry.name for entry in run.checkpoints.iterdir()) == [run.checkpoint(step).name for step in left]


def test_weights_are_the_averaged_ones_and_the_asked_ones(run: RunDir) -> None:
    for step in (1, 2):
        made = snapshot(step, average=step == 2)
        made.state["best_step"] = 1
        checkpoints.save(run, step, made, IDENTITY)
    for asked, step, divisor in (("best", 1, 1), ("last", 2, 2), ("1", 1, 1), ("2", 2, 2)):
        found, at = checkpoints.weights(run, asked)
        assert at == step
        assert torch.equal(found["b"], snapshot(step).model["b"] / divisor)
    for asked in ("3", "-1", "newest", "²"):
        with pytest.raises(UserError, match="there are: 1, 2"):
            checkpoints.weights(run, asked)
    damage(run.checkpoint(1))
    with pytest.raises(CheckpointError, match="step-00000001"):
        checkpoints.weights(run, "best")
    with pytest.raises(CheckpointError, match="step-00000001"):
        checkpoints.weights(run, "1")


@pytest.mark.parametrize(("best", "reason"), [(None, "nothing was evaluated yet"), (1, "step 1 was, and is not kept")])
def test_other_weights_are_no_answer_to_the_best_ones(run: RunDir, best: int | None, reason: str) -> None:
    for step in (2, 3):
        made = snapshot(step)
        made.state["best_step"] = best
        checkpoints.save(run, step, made, IDENTITY)
    with pytest.raises(UserError, match=f"{reason}; say last, or a step of 2, 3"):
        checkpoints.weights(run, "best")


def test_the_only_checkpoint_is_not_the_best_before_anything_was_evaluated(run: RunDir) -> None:
    checkpoints.save(run, 0, snapshot(0), IDENTITY)
    with pytest.raises(UserError, match="nothing was evaluated yet; say last, or a step of 0"):
        checkpoints.weights(run, "best")


@pytest.mark.parametrize("part", ["recipe", "text"])
def test_a_checkpoint_moved_into_another_run_is_refused(story: Path, part: str) -> None:
    from training.story import resume

    other = new_run(story / "runs" / "other", recipe(["seed=7"] if part == "recipe" else ["data.split_seed=7"]))
    run = new_run(story / "runs" / "own", recipe())
    run.result.unlink()
    target = run.checkpoint(10)
    shutil.rmtree(target)
    shutil.copytree(other.checkpoint(10), target)
    with pytest.raises(UserError, match="belongs to another") as caught:
        resume(run)
    assert caught.value.exit_code == 2
