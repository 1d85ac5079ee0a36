"""Every shipped recipe is a recipe, says what the facts of its study say, and has the size that was reported."""

from __future__ import annotations

import tomllib
from typing import Any

import jsonschema
import pytest

from farthing import config
from farthing.model.cost import count_parameters
from farthing.recipe import Recipe, reference

SHIPPED = config.shipped_recipes()
EXPECTED = {
    "default", "titles-baseline", "titles-best",
    *(f"studies/a{step}" for step in range(9)),
    *(f"studies/b-{name}" for name in ("124m", "350m", "gpt2-124m")),
    *(f"studies/c-{name}" for name in ("sgd", "adamw", "optuna", "sam", "asam", "smaller", "smallest")),
    *(f"studies/d-{name}" for name in ("tiny", "large")),
    *(
        f"studies/e-{name}"
        for name in ("baseline", "swiglu-rmsnorm-gqa-rope", "rope-gelu", "rope-gqa", "baseline-wide", "rope-gqa-wide")
    ),
}  # fmt: skip

SCHEMA = jsonschema.Draft202012Validator(reference.json_schema())


def recipe(name: str) -> Recipe:
    return config.load(Recipe, name)


def settings(name: str) -> dict[str, Any]:
    return config.flatten(recipe(name))


def own_table(name: str) -> dict[str, Any]:
    return tomllib.loads((config.shipped_folder() / f"{name}.toml").read_text("utf-8"))


def test_the_shipped_recipes_are_these() -> None:
    assert set(SHIPPED) == EXPECTED


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_and_survives_a_round_trip(name: str) -> None:
    loaded = recipe(name)
    again = config.build(Recipe, tomllib.loads(config.to_toml(loaded)))
    assert again == loaded
    assert config.fingerprint(again) == config.fingerprint(loaded)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_begins_with_a_comment_and_fits_the_schema(name: str) -> None:
    path = config.shipped_folder() / f"{name}.toml"
    assert path.read_text("utf-8").startswith("# ")
    SCHEMA.validate(own_table(name))


@pytest.mark.parametrize("name", [name for name in SHIPPED if "base" in own_table(name)])
def test_a_recipe_with_a_base_repeats_none_of_its_settings(name: str) -> None:
    table = own_table(name)
    base = config.find_recipe(table.pop("base"), beside=(config.shipped_folder() / name).parent)
    before = settings(str(base))
    changed = {change.path for change in config.diff(recipe(str(base)), recipe(name))}
    # A table of a new kind starts afresh, so what it repeats there is said for the first time.
    fresh = {path.rpartition(".")[0] for path in changed if path.endswith(".kind")}
    idle = [
        path
        for path, value in leaves(table)
        if before.get(path) == value and path.rpartition(".")[0] not in fresh and not path.endswith(".kind")
    ]
    assert changed
    assert not idle, f"already so in the base: {idle}"


def leaves(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in table.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


@pytest.mark.parametrize(
    ("name", "vocabulary", "parameters"),
    [
        ("titles-baseline", 16_000, 27_172_864),
        ("studies/a0", 16_000, 27_172_864),
        ("studies/c-sgd", 16_000, 27_172_864),
        ("studies/c-adamw", 16_000, 27_172_864),
        ("studies/c-optuna", 16_000, 27_172_864),
        ("studies/c-asam", 16_000, 27_172_864),
        ("studies/c-smaller", 4_000, 12_208_128),
        ("studies/c-smallest", 4_000, 2_560_128),
        ("studies/b-gpt2-124m", 50_257, 124_439_808),
        ("studies/e-baseline", 50_257, 124_439_808),
    ],
)
def test_it_has_the_reported_number_of_parameters(name: str, vocabulary: int, parameters: int) -> None:
    assert count_parameters(recipe(name).model, vocabulary) == parameters


def test_titles_best_has_46_million_parameters() -> None:
    assert round(count_parameters(recipe("titles-best").model, 16_000) / 1e6) == 46


@pytest.mark.parametrize("name", ["studies/d-tiny", "studies/d-large"])
def test_study_d_stays_within_its_own_limits(name: str) -> None:
    megabytes = 4 * count_parameters(recipe(name).model, 50_257) / 1e6
    limits = recipe(name).limits
    assert limits.min_megabytes is not None
    assert limits.max_megabytes is not None
    assert limits.min_megabytes <= megabytes <= limits.max_megabytes


A = ("model.n_layer", "model.n_head", "model.d_model", "model.context_length", "train.batch_size", "model.dropout")


@pytest.mark.parametrize(
    ("step", "shape", "lr", "mlp"),
    [
        (0, (6, 8, 512, 128, 64, 0.1), 6e-3, "gelu"),
        (1, (6, 12, 768, 128, 64, 0.05), 3e-4, "gelu"),
        (2, (8, 12, 768, 256, 256, 0.05), 3e-4, "gelu"),
        (3, (6, 12, 768, 128, 128, 0.05), 3e-4, "gelu"),
        (4, (8, 12, 768, 128, 64, 0.05), 3e-4, "gelu"),
        (5, (8, 16, 1024, 128, 64, 0.05), 3e-4, "gelu"),
        (6, (8, 16, 1024, 256, 64, 0.05), 3e-4, "gelu"),
        (7, (8, 16, 1024, 128, 64, 0.1), 1e-3, "gelu"),
        (8, (8, 16, 1024, 128, 64, 0.1), 1e-3, "swiglu"),
    ],
)
def test_study_a_step_by_step(step: int, shape: tuple[float, ...], lr: float, mlp: str) -> None:
    found = settings(f"studies/a{step}")
    assert tuple(found[path] for path in A) == shape
    assert found["optimizer.lr"] == lr
    assert found["optimizer.kind"] == ("adamw" if step else "sgd")
    assert found["optimizer.weight_decay"] == (0.01 if step else 0.0)
    assert found["model.mlp.kind"] == mlp
    assert found["train.micro_batch"] == (64 if step == 6 else "auto")
    assert (found["budget.epochs"], found["seed"], found["train.gradient_clip"]) == (7.0, 1337, 1.0)


C = ("model.n_layer", "model.n_head", "model.d_model", "model.context_length", "tokenizer.vocab_size", "model.dropout")


@pytest.mark.parametrize(
    ("row", "shape", "lr", "decay", "sharpness", "warmup", "lowest"),
    [
        ("sgd", (6, 8, 512, 128, 16_000, 0.1), 6e-3, 0.0, "none", 0.0, 0.0),
        ("adamw", (6, 8, 512, 128, 16_000, 0.1), 6e-3, 0.0, "none", 0.0, 0.0),
        ("optuna", (6, 8, 512, 128, 16_000, 0.2012), 3e-4, 0.01, "none", 0.0, 0.0),
        ("sam", (6, 8, 512, 128, 16_000, 0.153), 5e-4, 0.01, "sam", 0.1, 0.0),
        ("asam", (6, 8, 512, 128, 16_000, 0.153), 5e-4, 0.01, "asam", 0.1, 0.0),
        ("smaller", (6, 6, 384, 64, 4_000, 0.051), 1.1e-3, 0.01, "asam", 0.1, 1e-5),
        ("smallest", (4, 3, 192, 64, 4_000, 0.0603), 2.1e-3, 0.01, "asam", 0.1, 1e-5),
    ],
)
def test_study_c_row_by_row(
    row: str, shape: tuple[float, ...], lr: float, decay: float, sharpness: str, warmup: float, lowest: float
) -> None:
    found = settings(f"studies/c-{row}")
    assert tuple(found[path] for path in C) == shape
    assert (found["optimizer.lr"], found["optimizer.weight_decay"]) == (lr, decay)
    assert found["optimizer.sharpness.kind"] == sharpness
    assert found["schedule.warmup"] == warmup
    assert found["schedule.floor"] * lr == pytest.approx(lowest, rel=1e-6)
    assert sharpness == "none" or found["optimizer.sharpness.rho"] == 0.05


def test_study_b_trains_half_a_million_tokens_a_step() -> None:
    for name in ("b-124m", "b-350m", "b-gpt2-124m"):
        found = settings(f"studies/{name}")
        assert found["train.batch_size"] * found["model.context_length"] == 524_288
        assert round(found["schedule.warmup"] * found["budget.steps"], 3) == 715
        assert found["schedule.floor"] == found["schedule.warmup_from"] == 0.1
    model = recipe("studies/b-124m").model
    assert (model.hidden, model.n_head // model.kv_heads) == (2048, 2)
    assert recipe("studies/b-350m").model.hidden == int(2 / 3 * 4 * 1024)


def test_study_d_anneals_from_ten_times_the_lowest_rate() -> None:
    found = settings("studies/d-large")
    assert found["budget.steps"] * found["schedule.warmup"] == pytest.approx(1259)
    assert found["optimizer.lr"] * found["schedule.floor"] == pytest.approx(5e-4)
    assert found["train.batch_size"] == 256 * 4


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("studies/e-")])
def test_study_e_warms_up_for_1500_iterations(name: str) -> None:
    found = settings(name)
    assert round(found["schedule.warmup"] * found["budget.steps"], 1) == 1500
    assert (found["optimizer.lr"], found["schedule.floor"], found["optimizer.weight_decay"]) == (4e-3, 0.85, 0.1)
    assert found["train.precision"] == "fp16"
    assert found["train.batch_size"] * found["model.context_length"] == 524_288
