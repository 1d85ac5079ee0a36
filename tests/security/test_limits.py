"""What a file claims costs nothing until it is used: contexts without end, brackets without end, messages without end."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.strangers import ours, section
from farthing.errors import LONGEST, UserError
from farthing.evals.tasks.hellaswag import without_tags
from farthing.model import cache as caches
from farthing.model import inference
from farthing.model.cache import KeyValueCache
from farthing.model.gpt import GPT, model_with
from farthing.model.inference import Inference

HUGE = 1 << 40


def logits(model: GPT, tokens: torch.Tensor, pieces: tuple[int, ...]) -> torch.Tensor:
    """The logits of all tokens, read a piece at a time."""
    run, cache, found, at = Inference(model), KeyValueCache(model.section), [], 0
    with torch.inference_mode():
        for length in pieces:
            part = tokens[:, at : at + length]
            # Every fifth token begins a document.
            segments = torch.arange(at, at + length).expand(len(tokens), -1) // 5
            apart = model.section.attention.scope == "document"
            found.append(run.head(run.hidden(part, segments if apart else None, cache=cache)))
            at += length
    return torch.cat(found, 1)


@pytest.mark.parametrize("scope", ["window", "document"])
def test_room_that_is_made_when_it_is_used_changes_no_logit(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours(section(attention={"scope": scope}))
    tokens = torch.randint(0, model.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    whole = logits(model, tokens, (10, 1, 13))
    monkeypatch.setattr(caches, "_FIRST_ROOM", 3)
    monkeypatch.setattr(inference, "_TURNS", 4)
    torch.testing.assert_close(logits(model, tokens, (10, 1, 13)), whole)


def test_a_model_that_claims_a_context_without_end_writes_all_the_same() -> None:
    sound = ours(section())
    claims = model_with(sound.state_dict(), section(context_length=HUGE), sound.vocab_size).eval()
    tokens = torch.randint(0, sound.vocab_size, (1, 12), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(logits(claims, tokens, (8, 4)), logits(sound, tokens, (8, 4)))


@given(st.text(st.sampled_from("[]a \n"), max_size=40))
def test_tags_are_taken_out_as_the_data_sets_own_expression_does(text: str) -> None:
    expected = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
    assert without_tags(text) == expected


@given(st.text())
def test_a_message_is_one_line_of_bounded_length(value: str) -> None:
    said = str(UserError(f"{value}: is wrong; try again"))
    assert len(said.splitlines()) == 1 and said.endswith("try again")
    long = str(UserError(f"{value * 5000}: is wrong; try again"))
    assert len(long) <= LONGEST and long.endswith("try again")
