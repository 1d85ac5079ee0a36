"""Recipes: one base, then overrides; what cannot be is refused in one line; what is written reads back equal."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import config
from farthing.errors import UserError
from farthing.recipe import Recipe, reference
from farthing.section import NEWER, Section

SHIPPED = config.shipped_recipes()


def load(*overrides: str) -> Recipe:
    return config.load(Recipe, None, ["budget.steps=5", *overrides])


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


# --- bases


def test_a_base_gives_what_the_recipe_leaves_out(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", "seed = 1\n[model]\nn_layer = 2\nd_model = 60\n[budget]\nsteps = 5\n")
    top = write(tmp_path / "top.toml", 'base = "base.toml"\nseed = 2\n[model]\nn_layer = 3\n')
    recipe = config.load(Recipe, str(top))
    assert (recipe.seed, recipe.model.n_layer, recipe.model.d_model, recipe.budget.steps) == (2, 3, 60, 5)


def test_a_base_is_found_beside_its_recipe_and_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "deep" / "base.toml", "seed = 7\n[budget]\nsteps = 5\n")
    top = write(tmp_path / "deep" / "top.toml", 'base = "base"\n')
    monkeypatch.chdir(tmp_path)
    assert config.load(Recipe, str(top)).seed == 7
    shipped = write(tmp_path / "mine.toml", 'base = "titles-baseline"\nseed = 3\n')
    assert config.load(Recipe, str(shipped)).tokenizer == config.load(Recipe, "titles-baseline").tokenizer


def test_a_table_of_another_kind_starts_afresh(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", '[optimizer]\nkind = "sgd"\nlr = 0.5\nmomentum = 0.9\n[budget]\nsteps = 5\n')
    same = write(tmp_path / "same.toml", 'base = "base.toml"\n[optimizer]\nkind = "sgd"\nlr = 0.25\n')
    other = write(tmp_path / "other.toml", 'base = "base.toml"\n[optimizer]\nkind = "adamw"\n')
    assert config.load(Recipe, str(same)).optimizer.model_dump()["momentum"] == 0.9
    fresh = config.load(Recipe, str(other)).optimizer
    assert fresh == config.load(Recipe, None, ["budget.steps=5", "optimizer.kind=adamw"]).optimizer
    # The default kind counts as given, so its numbers do not leak into another kind either.
    implied = write(tmp_path / "implied.toml", "[optimizer]\nlr = 0.5\n[budget]\nsteps = 5\n")
    assert config.load(Recipe, str(implied), ["optimizer.kind=adamw"]).optimizer == fresh


def test_bases_in_a_circle_and_too_many(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'base = "b.toml"\n')
    write(tmp_path / "b.toml", 'base = "a.toml"\n')
    with pytest.raises(UserError, match="in a circle"):
        config.load(Recipe, str(tmp_path / "a.toml"))
    own = write(tmp_path / "own.toml", 'base = "own.toml"\n')
    with pytest.raises(UserError, match="in a circle"):
        config.load(Recipe, str(own))
    for number in range(config.MAX_BASES + 2):
        write(tmp_path / f"n{number}.toml", f'base = "n{number + 1}.toml"\n')
    with pytest.raises(UserError, match=f"more than {config.MAX_BASES} bases"):
        config.load(Recipe, str(tmp_path / "n0.toml"))


# --- files


@pytest.mark.parametrize("name", ["default", "recipes/default", "recipes/default.toml", "default.toml", "studies/a1"])
def test_shipped_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    stem = name.removeprefix("recipes/").removesuffix(".toml")
    assert config.find_recipe(name) == config.shipped_folder() / f"{stem}.toml"


def test_a_file_of_that_name_goes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "default.toml", "seed = 99\n[budget]\nsteps = 5\n")
    assert config.load(Recipe, "default").seed == 99


@pytest.mark.parametrize("folder", ["with spaces", "рецепты", "実験"])
def test_recipes_lie_in_folders_of_any_name(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "base é.toml", "seed = 7\n[budget]\nsteps = 5\n")
    assert config.load(Recipe, str(write(tmp_path / folder / "top.toml", 'base = "base é"\n'))).seed == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "not TOML"),
        (b"seed = 1\nseed = 2\n", "not TOML"),
        (b"seed = 1 \xff", "not UTF-8 text: byte 0xff at 9"),
        (b"\x00", "not TOML"),
        (b"a = " + b"[" * 50_000, "not TOML"),
        (b"#" * (config.MAX_BYTES + 1), "1,000,001 bytes"),
        (b"base = 3\n", "base = 3"),
        (b"seed = nan\n[budget]\nsteps=1", "seed=nan"),
        (b"[budget]\nsteps = 1\n[model]\nn_head = 7\n", "bad.toml:3"),
        (b'base = "nowhere"\n', "nowhere: no such recipe file"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load(Recipe, str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 4\n[budget]\nsteps = 1\n")
    assert config.load(Recipe, str(path)).seed == 4


@pytest.mark.parametrize(("name", "hint"), [("defualt", "did you mean default?"), ("studies/a99", "did you mean studies/a"),
                                            (".", "is a folder"), ("", "''"), ("x" * 5_000, "no such recipe"),
                                            ("a\x00b", "no such recipe")])  # fmt: skip
def test_an_unknown_recipe_gets_the_nearest_name(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(Recipe, name)
    assert hint in str(caught.value) and "farthing recipe list" in str(caught.value)


# --- bad settings


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.n_layers=3"], ["model.n_layers", "did you mean model.n_layer?"]),
        (["optimizer.learning_rate=3"], ["optimizer.learning_rate", "no such field"]),
        (["lerning_rate=3"], ["lerning_rate", "no such field"]),
        (["n_layer=3"], ["did you mean model.n_layer?"]),
        (["optimizer.kind=sgd", "optimizer.beta1=0.9"], ["optimizer.beta1", "kind=sgd"]),
        (["optimizer.kind=adam"], ["optimizer.kind", "'adam'", "did you mean adamw?", "muon"]),
        (["model.norm.kind=batch"], ["model.norm.kind", "batch", "rmsnorm"]),
        (["model.d_model=100", "model.n_head=12"], ["d_model=100", "n_head=12", "96 or 108"]),
        (["model.n_head=6", "model.n_kv_head=4"], ["n_kv_head=4", "n_head=6", "1, 2, 3, 6"]),
        (["tokenizer.kind=bpe", "tokenizer.vocab_size=0"], ["tokenizer.vocab_size=0", "257"]),
        (["tokenizer.vocab_size=-5"], ["tokenizer.vocab_size=-5"]),
        (["budget.steps=-3"], ["budget.steps=-3", "greater"]),
        (["budget.minutes=-1"], ["budget.minutes=-1", "greater"]),
        (["budget.minutes=0"], ["budget.minutes=0"]),
        (["budget.steps=none"], ["no budget", "budget.epochs"]),
        (["budget.money=3"], ["budget.money", "budget.price_per_hour"]),
        (["budget.minutes=inf"], ["budget.minutes=inf", "finite"]),
        (["optimizer.lr=nan"], ["optimizer.lr=nan", "finite"]),
        (["optimizer.lr=fast"], ["optimizer.lr='fast'", "number"]),
        (["optimizer.lr=0"], ["optimizer.lr=0"]),
        (["train.batch_size=0"], ["train.batch_size=0"]),
        (["train.batch_size=1.5"], ["train.batch_size=1.5", "integer"]),
        (["train.precision=int8"], ["train.precision='int8'", "bf16"]),
        (["evaluate.every=sometimes"], ["evaluate.every='sometimes'", "'auto'"]),
        (["schedule.kind=wsd", "schedule.warmup=0.9", "schedule.decay=0.5"], ["0.9", "0.5"]),
        (["schedule.kind=inverse_sqrt"], ["warmup above 0"]),
        (["model=3"], ["model=3"]),
        (["data.kind=text"], ["data.path", "must be given"]),
        (["model.dropout=1"], ["model.dropout=1"]),
        (["seed=1" + "0" * 400], []),
        (["model"], ["is not an override", "path=value"]),
        (["=3"], ["is not an override"]),
        (["model..n_layer=3"], ["is not an override"]),
        ([".".join(["a"] * 5_000) + "=1"], ["no such field"]),
        (["model.n_layer=" + "[" * 10_000], ["model.n_layer"]),
    ],
    ids=lambda value: str(value[0])[:40] if value and isinstance(value, list) else "",
)  # fmt: skip
def test_a_bad_setting_is_one_line_with_its_place_and_value(overrides: list[str], parts: list[str]) -> None:
    try:
        made = load(*overrides)
    except UserError as error:
        message = str(error)
        assert error.exit_code == 2
        assert "\n" not in message
        assert len(message) < 500
        for part in parts:
            assert part in message
    else:
        assert not parts, made


def test_an_unknown_name_goes_before_other_faults_and_the_others_are_counted() -> None:
    with pytest.raises(UserError, match=r"model\.n_layers.*\[and 1 more\]"):
        load("model.n_layers=3", "train.batch_size=0")


# --- overrides


PIECES = ["optimizer.kind=adamw", "optimizer.lr=0.25", "optimizer.sharpness.kind=sam", "optimizer.sharpness.rho=0.125",
          "schedule.kind=wsd", "schedule.decay=0.5"]  # fmt: skip


def test_the_order_of_overrides_does_not_matter() -> None:
    made = {config.fingerprint(load(*order)) for order in itertools.permutations(PIECES)}
    assert len(made) == 1
    assert load(*PIECES).optimizer.model_dump()["sharpness"] == {"kind": "sam", "rho": 0.125}


def test_a_table_in_one_override_is_its_settings() -> None:
    pieces = ['optimizer={kind = "adamw", lr = 0.25}', "optimizer.sharpness.kind=sam", "optimizer.beta1=0.5"]
    expected = load("optimizer.kind=adamw", "optimizer.lr=0.25", "optimizer.sharpness.kind=sam", "optimizer.beta1=0.5")
    for order in itertools.permutations(pieces):
        assert load(*order) == expected


def test_of_one_setting_given_twice_the_last_counts() -> None:
    assert load("seed=1", "seed=2").seed == 2


def test_overrides_as_a_mapping_are_the_same(tmp_path: Path) -> None:
    mapping = {"budget.steps": 5, "optimizer.lr": 0.25, "optimizer.kind": "adamw", "train.ema": None, "data.limit": 3}
    made = config.load(Recipe, None, mapping)
    assert made == load("optimizer.lr=0.25", "optimizer.kind=adamw", "data.limit=3")


@pytest.mark.parametrize(("text", "value"), [("1_000", 1000), ("0x10", 16), ("true", True), ("True", True), ('"12"', "12"),
                                             ("[1, 2]", [1, 2]), ("3e-4", 3e-4), ("my file.txt", "my file.txt"),
                                             ("a=b", "a=b"), ("", ""), ("2026-01-01x", "2026-01-01x")])  # fmt: skip
def test_values_are_toml_and_bare_words_are_text(text: str, value: Any) -> None:
    assert config.override({}, [f"a.b={text}"]) == {"a": {"b": value}}


@pytest.mark.parametrize(
    "path", ["train.gradient_clip", "train.ema", "data.limit", "model.layer_scale", "budget.epochs"]
)
def test_none_takes_an_optional_value_back(path: str) -> None:
    made = load(f"{path}=none")
    assert config.flatten(made)[path] is None
    assert config.flatten(config.load(Recipe, None, {"budget.steps": 5, path: None}))[path] is None


def test_none_does_not_take_back_what_is_not_optional() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size='none'"):
        load("train.batch_size=none")


# --- there and back

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**62),
    "data.limit": st.none() | st.integers(1, 10**9),
    "data.validation": st.floats(0.01, 0.99) | st.integers(1, 1000) | st.text(min_size=1).filter(str.strip),
    "tokenizer.vocab_size": st.integers(257, 1000),
    "model.dropout": st.floats(0, 0.99),
    "model.layer_scale": st.none() | st.floats(1e-6, 10),
    "model.n_kv_head": st.sampled_from(["n_head", 1, 2, 3, 6]),
    "train.gradient_clip": st.none() | st.floats(1e-3, 1e3),
    "train.micro_batch": st.just("auto") | st.integers(1, 64),
    "train.ema": st.none() | st.floats(0.1, 0.999),
    "evaluate.stride": st.just("context_length") | st.integers(1, 64),
    "evaluate.every": st.sampled_from(["auto", "end", 3]),
    "budget.money": st.floats(0.01, 100),
    "budget.price_per_hour": st.floats(0.01, 100),
    "sample.prompt": st.text(st.characters(exclude_categories=["Cs"])),
    "sample.top_k": st.none() | st.integers(1, 99),
}  # fmt: skip
KINDS = {
    "optimizer.kind": ["sgd", "adamw", "adafactor", "rmsprop", "lion", "muon"],
    "optimizer.sharpness.kind": ["none", "sam", "asam"],
    "schedule.kind": ["constant", "linear", "cosine", "wsd"],
    "model.norm.kind": ["layernorm", "rmsnorm"],
    "model.position.kind": ["learned", "rope", "none"],
    "model.mlp.kind": ["gelu", "relu2", "swiglu", "geglu"],
    "model.init.kind": ["normal", "gpt2", "zero_projections"],
}
VALUES |= {path: st.sampled_from(kinds) for path, kinds in KINDS.items()}
MONEY = {"budget.money", "budget.price_per_hour"}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    chosen = draw(st.fixed_dictionaries({}, optional=VALUES))
    if chosen.keys() & MONEY != MONEY:
        chosen = {path: value for path, value in chosen.items() if path not in MONEY}
    return config.load(Recipe, None, {"budget.steps": 5, **chosen})


def test_a_field_that_came_later_leaves_no_trace_until_it_is_set() -> None:
    class Before(Section):
        """As it was."""

        width: int = 3

    class After(Before):
        """With a field more."""

        layout: Annotated[str, NEWER] = "auto"

    class Whole(Section):
        """A section in a section."""

        inner: Before | After = Before()

    assert config.fingerprint(After()) == config.fingerprint(Before())
    assert config.fingerprint(Whole(inner=After(width=2))) == config.fingerprint(Whole(inner=Before(width=2)))
    assert config.fingerprint(Whole(inner=After(layout="other"))) != config.fingerprint(Whole())


@given(recipe=recipes())
def test_what_is_written_reads_back_equal(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = config.to_toml(recipe)
    assert config.build(Recipe, tomllib.loads(text)) == recipe
    assert config.build(Recipe, config.to_table(recipe)) == recipe
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(text, "utf-8")
    again = config.load(Recipe, str(path))
    assert again == recipe
    assert config.fingerprint(again) == config.fingerprint(recipe)
    assert config.diff(recipe, again) == []


@given(one=recipes(), other=recipes())
def test_a_difference_is_told_and_only_then_fingerprints_differ(one: Recipe, other: Recipe) -> None:
    changes = config.diff(one, other)
    assert (one == other) == (config.fingerprint(one) == config.fingerprint(other)) == (not changes)
    for change in changes:
        assert config.flatten(one).get(change.path) == change.old
        assert config.flatten(other).get(change.path) == change.new
    # Laid over the first, what differs makes the second.
    kinds = {path for path in config.flatten(other) if path.endswith(".kind")}
    patch = {path: config.flatten(other)[path] for path in kinds} | {
        c.path: c.new for c in changes if c.path in config.flatten(other)
    }
    assert config.build(Recipe, config.override(config.to_table(one), patch)) == other


@pytest.mark.parametrize("name", SHIPPED)
def test_the_schema_holds_for_every_shipped_recipe_as_resolved(name: str) -> None:
    schema = reference.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(config.to_table(config.load(Recipe, name)))))


def test_every_path_of_a_recipe_is_known() -> None:
    known = set(config.paths_of(Recipe))
    for name in SHIPPED:
        assert config.flatten(config.load(Recipe, name)).keys() <= known
