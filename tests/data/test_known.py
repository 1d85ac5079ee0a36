"""Known corpora are fetched whole, verified and once; the hub here is a local server that speaks its protocol."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.hub import LocalHub, local_hub
from farthing.data.known import KNOWN, fetch, write_titles
from farthing.data.sources.files import known_corpus
from farthing.errors import UserError

FETCH = """
import json, sys
from pathlib import Path
from farthing.data.known import fetch
from farthing.errors import UserError
stages = {}
try:
    shards = int(sys.argv[3]) or None
    path = fetch(sys.argv[1], Path(sys.argv[2]), lambda s, d, t: stages.update({s: [d, t]}), shards=shards)
except UserError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"path": str(path), "stages": stages}))
"""


def get(hub: LocalHub | str, name: str, folder: Path, *, shards: int = 0, offline: bool = False) -> dict[str, object]:
    """Fetch in a process of its own: the hub's client reads its environment when it is imported."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name, str(folder / "data"), str(shards)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out)
    return out.getvalue()


def shard_files() -> dict[tuple[str, str], bytes]:
    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{number:06d}.bin" for number in range(1, 4))]
    return {("kjj0/fineweb10B-gpt2", name): os.urandom(5000) for name in [*names, "README.md"]}


def test_shards_are_fetched_verified_and_not_fetched_again(tmp_path: Path) -> None:
    files = shard_files()
    with local_hub(files) as hub:
        answer = get(hub, "fineweb-10b", tmp_path, shards=2)
        folder = tmp_path / "data" / "fineweb10B"
        assert answer["path"] == str(folder)
        assert answer["stages"] == {
            f"fetching {name}": [5000, 5000] for name in sorted(p.name for p in folder.iterdir())
        }
        names = ["fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"]
        assert sorted(path.name for path in folder.iterdir()) == names
        assert all((folder / name).read_bytes() == files["kjj0/fineweb10B-gpt2", name] for name in names)
        (folder / names[0]).write_bytes(b"damaged")
        hub.gets.clear()
        get(hub, "fineweb-10b", tmp_path, shards=2)
        assert [path.rpartition("/")[2] for path, _ in hub.gets if "/api/" not in path] == names[:1]
        assert (folder / names[0]).read_bytes() == files["kjj0/fineweb10B-gpt2", names[0]]


def test_a_download_that_lies_is_refused(tmp_path: Path) -> None:
    with local_hub(shard_files()) as hub:
        hub.lie = True
        answer = get(hub, "fineweb-10b", tmp_path, shards=1)
        assert "arrived damaged" in str(answer["error"])
        assert not list((tmp_path / "data").rglob("fineweb*.bin"))


def test_a_download_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    text = b"".join(b"story %d\n<|endoftext|>\n" % number for number in range(500_000))
    files = {
        ("roneneldan/TinyStories", "TinyStoriesV2-GPT4-train.txt"): text,
        ("roneneldan/TinyStories", "TinyStoriesV2-GPT4-valid.txt"): b"a story\n",
    }
    with local_hub(files) as hub:
        hub.break_after = 11_000_000
        assert "run the same command again" in str(get(hub, "tinystories", tmp_path)["error"])
        hub.break_after = None
        hub.gets.clear()
        answer = get(hub, "tinystories", tmp_path)
        assert Path(str(answer["path"])).read_bytes() == text
        (wanted,) = (wanted for path, wanted in hub.gets if path.endswith("train.txt"))
        assert wanted is not None and int(wanted.removeprefix("bytes=").removesuffix("-")) > 9_000_000
    assert (tmp_path / "data" / "tinystories_valid.txt").read_bytes() == b"a story\n"


def test_parquet_rows_become_the_text_they_were_cut_from(tmp_path: Path) -> None:
    rows = {
        "train-00000-of-00002": ["", " = A = \n"],
        "train-00001-of-00002": [" b \n"],
        "validation-0": ["v\n"],
        "test-0": ["t"],
    }
    files = {
        ("Salesforce/wikitext", f"wikitext-103-raw-v1/{name}.parquet"): parquet(texts) for name, texts in rows.items()
    }
    files["Salesforce/wikitext", "wikitext-2-raw-v1/train-0.parquet"] = parquet(["no"])
    with local_hub(files) as hub:
        answer = get(hub, "wikitext-103", tmp_path)
        hub.gets.clear()
        assert get(hub, "wikitext-103", tmp_path)["path"] == answer["path"]
        assert not [path for path, _ in hub.gets if "/api/" not in path]
    folder = tmp_path / "data"
    assert Path(str(answer["path"])) == folder / "wikitext103_train.txt"
    assert (folder / "wikitext103_train.txt").read_text() == " = A = \n b \n"
    assert (folder / "wikitext103_valid.txt").read_text() == "v\n"
    assert (folder / "wikitext103_test.txt").read_text() == "t"


def test_a_text_that_is_not_the_known_one_is_refused(tmp_path: Path) -> None:
    files = {
        ("karpathy/tiny_shakespeare", f"default/{name}/0000.parquet"): parquet(["x"]) for name in ("train", "test")
    }
    with local_hub(files) as hub:
        assert "no longer holds the text" in str(get(hub, "tinyshakespeare", tmp_path)["error"])
        assert not (tmp_path / "data" / "tinyshakespeare.txt").exists()


def test_no_way_to_the_hub_is_one_line(tmp_path: Path) -> None:
    with local_hub({}) as hub:
        missing = str(get(hub, "fineweb-edu", tmp_path)["error"])
    nobody = str(get("http://127.0.0.1:9", "fineweb-edu", tmp_path)["error"])
    offline = str(get("http://127.0.0.1:9", "fineweb-edu", tmp_path, offline=True)["error"])
    titles = str(get("http://127.0.0.1:9", "hn-titles", tmp_path, offline=True)["error"])
    for message in (missing, nobody, offline, titles):
        assert message.startswith("cannot fetch") and "\n" not in message and len(message) < 500


def test_titles_come_in_the_benchmarks_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    titles = [f"  title {number}\n" for number in range(1000)] + ["two\nlines"]
    write_titles(datasets.Dataset.from_dict({"title": titles}), tmp_path / "t.txt", count=900)
    order = np.random.default_rng(1337).permutation(1001)[:900]
    wanted = [" ".join(titles[number].split()) for number in order]
    assert (tmp_path / "t.txt").read_text().split("\n") == [*wanted, ""]


def test_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no known corpus 'hn_titles'; did you mean hn-titles"):
        fetch("hn_titles", tmp_path)
    with pytest.raises(UserError, match="shards = 0"):
        fetch("fineweb-10b", tmp_path, shards=0)
    for name, known in KNOWN.items():
        assert all(known_corpus(f"anywhere/{target}") == name for target, _ in known.groups)
