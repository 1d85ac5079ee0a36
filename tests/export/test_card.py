"""The model card says what the run's files say, and no more; nothing that a user wrote can break it."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from export.finished import SETTINGS, config_only, train
from farthing import config
from farthing.api.importing import import_huggingface
from farthing.api.publish import exportable
from farthing.budget import Budget
from farthing.errors import UserError
from farthing.export import huggingface
from farthing.export.card import SECTIONS, Stated, front_matter, write_card
from farthing.export.leaks import Private, leaks
from farthing.export.provenance import Provenance, TaskScore, provenance
from farthing.recipe import Recipe
from farthing.rundir import RunDir
from farthing.sinks.markdown import block, code, escape
from farthing.storage import read_json, sha256_of, write_json

STATED = Stated(license="mit", data_license="public domain", language=["en"], repository="somebody/tiny")
INIT = {"kind": "run", "run": "theirs", "checkpoint": "0", "weights": "abc"}
SCORE = TaskScore(
    name="hellaswag", measure="accuracy_per_byte", value=0.26, low=0.24, high=0.28, error=0.01, chance=0.25,
    verdict="at chance", questions=500, of=10042, shots=0, source="hellaswag_val.jsonl",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def told(run: RunDir) -> Provenance:
    return provenance(run, step=4)


def card(folder: Path, told: Provenance, stated: Stated = STATED, **more: Any) -> ModelCard:
    """The card as the hub's own classes read it."""
    if not folder.exists():
        config_only(folder)
    write_card(folder, told, stated, **more)
    return ModelCard.load(folder / "README.md")


def section(found: ModelCard, name: str) -> str:
    return found.text.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_the_hub_reads_what_it_needs(told: Provenance, run: RunDir, tmp_path: Path) -> None:
    data = card(tmp_path / "out", told).data
    assert (data.license, data.language, data.library_name) == ("mit", ["en"], "transformers")
    assert (data.pipeline_tag, data.model_name) == ("text-generation", "tiny")
    assert "farthing" in data.tags
    result = read_json(run.result)
    scores = {one.metric_type: one.metric_value for one in data.eval_results}
    assert scores.keys() == {"bits_per_byte", "perplexity", "nats_per_token"}
    for name, value in scores.items():
        assert value == pytest.approx(result["validation"][name], abs=1e-6)
    assert data.eval_results[0].dataset_args == {"sha256": result["validation"]["fingerprint"]}
    assert data["farthing"] == {
        "recipe": read_json(run.receipt)["recipe"],
        "step": 4,
    }
    assert "datasets" not in data.to_dict(), "the text is nobody's dataset"


def test_people_read_what_the_files_say(told: Provenance, run: RunDir, tmp_path: Path) -> None:
    found = card(tmp_path / "out", told)
    result, receipt, plan = read_json(run.result), read_json(run.receipt), read_json(run.plan)
    assert re.findall(r"^## (.+)$", found.text, re.MULTILINE) == list(SECTIONS)
    assert all(section(found, name).strip() for name in SECTIONS)
    assert f"{plan['parameters']:,} parameters" in section(found, "What it is")
    bits = f"{result['validation']['bits_per_byte']:.4f}"
    assert bits in section(found, "What it is") and bits in section(found, "Yardsticks")
    for name in ("xz", "zstd", "unigram"):
        assert f"| {name} | {result['references'][name]:.4f} |" in section(found, "Yardsticks")
    assert "No interval is known" in section(found, "Yardsticks")
    data = section(found, "Data")
    for name, part in receipt["data"]["parts"].items():
        assert (
            f"| {name} | {part['documents']:,} | {part['bytes']:,} | {part['tokens']:,} | `{part['fingerprint']}` |"
            in data
        )
    assert f"| story.txt | {(run.path.parents[1] / 'story.txt').stat().st_size:,} | `" in data
    assert sha256_of(run.path.parents[1] / "story.txt") in data
    assert "public domain" in data
    budget = section(found, "Budget")
    assert "| optimizer steps | 4 | 4 |" in budget
    assert f"| training tokens | no limit | {result['spent']['tokens']:,} |" in budget
    assert "| money | no limit | unknown |" in budget
    assert "Unknown: no power" in section(found, "Energy and carbon")
    assert "No tasks were scored" in section(found, "Task scores")
    assert receipt["numeric"]["torch"] in section(found, "Machine and versions")
    written = result["samples"][0]
    assert block(written["prompt"] + written["text"]).split("\0")[0] in section(found, "Samples")
    assert '"somebody/tiny"' in section(found, "How to use")


def test_the_recipe_in_the_card_is_the_runs_own(told: Provenance, run: RunDir, tmp_path: Path) -> None:
    found = card(tmp_path / "out", told)
    (recipe,) = re.findall(r"```toml\n(.*?)```", found.text, re.DOTALL)
    ours = config.load(Recipe, str(run.recipe))
    (tmp_path / "recipe.toml").write_text(recipe, "utf-8")
    theirs = config.load(Recipe, str(tmp_path / "recipe.toml"))
    assert [change.path for change in config.diff(ours, theirs)] == ["data.path"]
    assert theirs.data.model_dump()["path"] == "story.txt"
    assert "before the folders in its paths were taken out" in found.text


def test_settings_that_differ_are_told_without_paths(told: Provenance, run: RunDir, tmp_path: Path) -> None:
    recipe = config.load(Recipe, str(run.recipe))
    changes = config.diff(Recipe(budget=Budget(steps=1)), recipe)
    assert any(change.path == "data.path" and change.new.startswith("/") for change in changes)
    settings = section(card(tmp_path / "out", told, changes=changes), "Recipe")
    assert f"| data.path | {escape('story.txt')} | none |" in settings
    assert f"| model.d\\_model | {SETTINGS['model.d_model']} | 384 |" in settings
    assert "tmp" not in settings


def test_nothing_private_is_in_it(
    told: Provenance, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "Zx9Qw3Er7Ty1Ui5Op0As")
    private = Private.here([run.path, run.path.parents[1]])
    card(tmp_path / "out", told)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert not list(leaks(text, private))
    assert str(run.path.parents[1]) not in text


def test_secrets_in_a_run_do_not_reach_the_card(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "Zx9Qw3Er7Ty1Ui5Op0As"
    monkeypatch.setenv("WANDB_API_KEY", f"{canary}-of-wandb")
    other = train(tmp_path, {"sample.prompt": f"hf_{canary} {canary}-of-wandb /home/anna/secret.txt "}, name="leaky")
    stated = Stated(license=f"licence of sk-{canary}", data_license=f"see https://anna:{canary}@example.org/")
    notes = [f"made in /home/anna/work with {canary}-of-wandb"]
    found = card(tmp_path / "out", provenance(other, step=4), stated, notes=notes)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert canary not in text and "anna" not in text
    assert found.data.license == "other"
    assert found.data["license_name"] == "licence of [removed]"


def test_what_is_not_stated_is_said_to_be_so(told: Provenance, tmp_path: Path) -> None:
    found = card(tmp_path / "out", told, Stated())
    assert "license" not in found.data.to_dict()
    assert "language" not in found.data.to_dict()
    assert "**not stated**" in section(found, "What it is")
    assert "| language | not stated |" in section(found, "Data")
    assert "| licence of the text | not stated |" in section(found, "Data")


def test_energy_is_arithmetic_on_what_was_stated(told: Provenance, tmp_path: Path) -> None:
    hour = replace(told, wall_seconds=3600.0)
    energy = section(card(tmp_path / "out", hour, replace(STATED, watts=50, grams_per_kwh=400)), "Energy and carbon")
    assert "About 0.0500 kWh: 50 W" in energy
    assert "20.0 g of CO2" in energy
    without = section(card(tmp_path / "out", hour, replace(STATED, watts=50)), "Energy and carbon")
    assert "0.0500 kWh" in without and "Carbon: unknown" in without


def test_task_scores_stand_beside_chance(told: Provenance, tmp_path: Path) -> None:
    perplexity = replace(
        SCORE, name="wikitext", measure="word_perplexity", value=812.5, chance=None, verdict="", low=None
    )
    found = card(tmp_path / "out", replace(told, scores=[SCORE, perplexity]))
    tasks = section(found, "Task scores")
    assert "| hellaswag | accuracy per byte | 26.0 % | 24.0 % to 28.0 % | 25.0 % | 500 of 10,042 | at chance |" in tasks
    assert "| wikitext | word perplexity | 812.50 | unknown | none | 500 of 10,042 | none |" in tasks
    hub = {(one.dataset_type, one.metric_type): one for one in found.data.eval_results}
    assert hub["hellaswag", "accuracy_per_byte"].metric_value == 0.26
    assert hub["hellaswag", "accuracy_per_byte"].metric_args == {"standard_error": 0.01}


def test_task_scores_are_those_of_the_exported_checkpoint(run: RunDir, tmp_path: Path) -> None:
    def scored(step: int, items: int, value: float | None) -> str:
        reading = {
            "value": value,
            "standard_error": 0.1,
            "low": 0.1,
            "high": 0.4,
            "chance": 0.25,
            "verdict": "at chance",
        }
        result = {
            "task": "piqa", "items": items, "of": 9, "shots": 0, "scores": {"accuracy": reading}, "source": "/home/a/p.jsonl",
        }  # fmt: skip
        event = {"kind": "task", "time": 1.0, "step": step, "task": "piqa", "value": value, "result": result}
        return json.dumps({**event, "spent": {}, "seconds": 0.1}) + "\n"

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.path.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    other = RunDir(copy)
    other.events.write_text(other.events.read_text("utf-8") + scored(2, 5, 0.2) + scored(4, 9, 0.3), "utf-8")
    (last,), (midway,) = provenance(other, step=4).scores, provenance(other, step=2).scores
    assert (last.value, last.questions, last.source) == (0.3, 9, "p.jsonl")
    assert (midway.value, midway.questions) == (0.2, 5)


def test_a_checkpoint_on_the_way_is_told_as_one(run: RunDir, tmp_path: Path) -> None:
    midway = provenance(run, step=2)
    scored = [json.loads(line) for line in run.events.read_text("utf-8").splitlines()]
    (event,) = [one for one in scored if one["kind"] == "evaluation" and one["step"] == 2]
    assert midway.validation == event["validation"] != provenance(run, step=4).validation
    found = card(tmp_path / "out", midway)
    assert "checkpoint on the way, after step 2" in section(found, "Budget")
    assert "None were written" in section(found, "Samples")
    assert "xz" not in section(found, "Yardsticks")
    unscored = card(tmp_path / "out", provenance(run, step=3))
    assert unscored.data.eval_results is None
    assert "were not scored" in section(unscored, "Yardsticks")


def test_a_model_with_code_of_its_own_says_so(told: Provenance, tmp_path: Path) -> None:
    folder = config_only(
        tmp_path / "own", {"architectures": ["FarthingForCausalLM"], "auto_map": {"AutoConfig": "x.Y"}}
    )
    use = section(card(folder, told, notes=["it needs a *star*"]), "How to use")
    assert "from_pretrained(name, trust_remote_code=True)" in use
    assert "modeling_farthing.py" in use
    assert r"- it needs a \*star\*" in use
    plain = section(card(tmp_path / "out", told), "How to use")
    assert "trust_remote_code" not in plain


def test_a_model_from_elsewhere_is_not_told_as_ours(told: Provenance, run: RunDir, tmp_path: Path) -> None:
    huggingface_folder = tmp_path / "theirs"
    huggingface_folder.mkdir()
    made = exportable(run)
    huggingface.lay_out(huggingface_folder, made, huggingface.stock_class(made.section))
    other = import_huggingface(huggingface_folder, runs=tmp_path / "runs").run
    found = card(tmp_path / "out", provenance(RunDir(other.path), step=0), changes=[config.Change("seed", 1, 2)])
    assert "It was not trained here" in section(found, "What it is") and "theirs" in section(found, "What it is")
    assert "not known here" in section(found, "Data") and "not known here" in section(found, "Budget")
    assert "seed" not in section(found, "Recipe") and "| blocks | 1 |" in section(found, "Recipe")
    assert "farthing train" not in section(found, "How to reproduce")
    assert found.data.eval_results is None and "model_name" not in found.data.to_dict()
    assert all(section(found, name).strip() for name in SECTIONS)
    went_on = replace(told, table={**told.table, "model": {**told.table["model"], "init": INIT}})
    from_it = card(tmp_path / "later", went_on)
    assert "from the weights of another run" in section(from_it, "What it is")
    assert "| initial weights | those of the run theirs, checkpoint 0, SHA-256 abc |" in section(from_it, "Recipe")


def test_the_snippet_is_python(told: Provenance, tmp_path: Path) -> None:
    nasty = replace(told, samples=[('"""\\\n```', "x")])
    (snippet,) = re.findall(r"```python\n(.*?)```", card(tmp_path / "out", nasty).text, re.DOTALL)
    compile(snippet, "card", "exec")


@given(st.text(max_size=80))
def test_no_text_leaves_its_place(text: str) -> None:
    line = escape(text)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_<>|#\[\]!]", line)
    fenced = block(text).replace("\0", "\n").split("\n")
    assert fenced[0] == fenced[-1] + "text"
    assert not any(fenced[-1] in inner for inner in fenced[1:-1])
    assert "\n" not in code(text)


NASTY = [
    "---\nlicense: mit\n---\n",
    "x\n\n## Data\n\nforged",
    "```\n# out of the fence\n```",
    "````",
    "| a | b |\n|---|---|",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://evil/x.png)",
    "{{ 7 * 7 }} {% include 'x' %}",
    "\x1b[31mred\x1b[0m \u202etxt.exe",
    "a: b: c # d\n- e\n? f",
    "\r\n\r\n---\r\n",
]


@pytest.mark.parametrize("text", NASTY)
def test_words_of_a_user_stay_words(text: str, told: Provenance, tmp_path: Path) -> None:
    evil = replace(
        told, run=text, samples=[(text, text)], scores=[replace(SCORE, source=text)],
        table={**told.table, "data": {**told.table["data"], "kind": "hub", "path": text, "hub_split": "train"}},
    )  # fmt: skip
    found = card(tmp_path / "out", evil, Stated(license=f"Mine {text}", data_license=text), notes=[text])
    written = (tmp_path / "out" / "README.md").read_text("utf-8")
    prose = outside_fences(found.text)
    assert [line for line in prose if line.startswith("#")][1:] == [f"## {name}" for name in SECTIONS]
    assert found.data.license == "other"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", written)
    assert not any("<script>" in re.sub("`[^`]*`", "", line) for line in prose)
    assert yaml.safe_load(written.split("\n---\n")[0].removeprefix("---\n"))["library_name"] == "transformers"
    assert "49" not in section(found, "Samples")


def outside_fences(text: str) -> list[str]:
    """The lines of Markdown that are in no code block."""
    lines, fence = [], None
    for line in text.split("\n"):
        mark = re.match(r"(`{3,})", line)
        if fence is None and mark:
            fence = mark[1]
        elif fence is None:
            lines.append(line)
        elif line.strip() == fence:
            fence = None
    assert fence is None
    return lines


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"license": "apache2"}, ["--license 'apache2'", "did you mean apache-2.0?"]),
        ({"license": " "}, ["--license ' '"]),
        ({"language": ["english"]}, ["--language 'english'", "ISO 639"]),
        ({"watts": 0.0}, ["--watts 0.0"]),
        ({"watts": float("nan")}, ["--watts nan"]),
        ({"grams_per_kwh": 400.0}, ["--grams-per-kwh 400.0", "needs --watts"]),
    ],
)
def test_what_makes_no_sense_is_refused(stated: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        Stated(**stated)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in words), refused.value


def test_the_hubs_names_of_licences_are_taken_in_any_case(told: Provenance) -> None:
    assert front_matter(told, Stated(license="MIT")).license == "mit"
    own = front_matter(told, Stated(license="The Licence of My Aunt")).to_dict()
    assert (own["license"], own["license_name"]) == ("other", "The Licence of My Aunt")


def test_a_hub_dataset_is_named(told: Provenance, run: RunDir, tmp_path: Path) -> None:
    hub = {"kind": "hub", "path": "roneneldan/TinyStories", "hub_split": "train", "revision": "abc"}
    from_hub = replace(told, table={**told.table, "data": hub}, datasets=["roneneldan/TinyStories"])
    found = card(tmp_path / "out", from_hub)
    assert found.data.datasets == ["roneneldan/TinyStories"]
    assert "the dataset roneneldan/TinyStories of the Hugging Face hub, split train, revision abc" in section(
        found, "Data"
    )


def test_a_known_corpus_is_named_only_where_its_bytes_prove_it(run: RunDir, tmp_path: Path) -> None:
    from farthing.export.provenance import known_datasets

    text = tmp_path / "tinystories_train.txt"
    text.write_text("once\n", "utf-8")
    receipt = {"directory": str(tmp_path), "data": {"files": [{"name": text.name, "sha256": sha256_of(text)}]}}
    data = {"kind": "text", "path": "tinystories_train.txt"}
    assert known_datasets(data, receipt) == []
    (tmp_path / ".download").mkdir()
    note = tmp_path / ".download" / "tinystories_train.txt.json"
    write_json(note, {"from": {}, "sha256": "0" * 64})
    assert known_datasets(data, receipt) == []
    write_json(note, {"from": {}, "sha256": sha256_of(text)})
    assert known_datasets(data, receipt) == ["roneneldan/TinyStories"]


@pytest.mark.parametrize("name", ["receipt", "plan", "recipe"])
def test_a_damaged_file_of_a_run_is_one_line(run: RunDir, name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.path.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    other = RunDir(copy)
    getattr(other, name).write_text("{", "utf-8")
    with pytest.raises(UserError) as refused:
        provenance(other, step=4)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_configuration_gets_no_card(told: Provenance, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        write_card(tmp_path, told, STATED)
    assert not list(tmp_path.iterdir())


def test_recipes_are_toml(told: Provenance) -> None:
    assert tomllib.loads(told.recipe) == told.table
