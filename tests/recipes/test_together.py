"""Settings that are each fine and do not fit together, and values of a kind that a setting does not take."""

from __future__ import annotations

import pytest

from farthing import config
from farthing.errors import UserError
from farthing.recipe import Recipe


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluate.stride=300"], r"evaluate\.stride=300 is more than model\.context_length=256"),
        (["seed=true"], "seed=true"),
        (["data.validation=true"], "validation=true"),
        (["base=titles-best"], "belongs into the recipe file"),
        (["model.norm=layernorm"], r"model\.norm\.kind"),
        (["train.batch_size=1000000000000"], r"train\.batch_size"),
        ({1: 2}, "is not a setting's path"),
    ],
)
def test_it_is_refused_in_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        config.load(Recipe, "default", overrides)
    assert "\n" not in str(refused.value)


def test_the_hint_is_never_the_name_that_was_refused() -> None:
    with pytest.raises(UserError) as refused:
        config.load(Recipe, "default", ["schedule.kind=constant", "schedule.floor=0.1"])
    assert "did you mean schedule.floor?" not in str(refused.value)


def test_a_hidden_width_is_rounded_up_and_never_nothing() -> None:
    narrow = config.load(Recipe, "default", ["model.mlp.ratio=0.01", "model.mlp.multiple_of=8"])
    assert narrow.model.hidden == 8
    llama = config.load(Recipe, "default", ["model.d_model=768", "model.n_head=12", "model.mlp.ratio=2.6666667"])
    assert llama.model.hidden == 2048
