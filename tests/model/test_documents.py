"""Attention within documents by blocks: the mask and the numbers of masked attention, and only where it can train."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farthing.model import documents
from farthing.model.attention import fused_attention, visibility
from farthing.model.gpt import build_model
from farthing.recipe import Model

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def segments(rows: int, length: int, seed: int) -> torch.Tensor:
    """Documents of random lengths, numbered as batches number them."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, length, generator=generator) < 0.05).long().cumsum(1)


@given(rows=st.integers(1, 3), length=st.integers(1, 50), seed=st.integers(0, 1000))
def test_the_mask_is_the_one_of_visibility(rows: int, length: int, seed: int) -> None:
    segments_BT = segments(rows, length, seed)
    sees = documents._sees(segments_BT)
    b, t, s = torch.arange(rows).view(-1, 1, 1), torch.arange(length).view(1, -1, 1), torch.arange(length)
    assert torch.equal(sees(b, b, t, s), visibility(segments_BT, segments_BT).squeeze(1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_by_blocks_is_masked_attention(groups: int) -> None:
    segments_BT = segments(2, 300, 1)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, heads, 300, 16, generator=generator) for heads in (4, groups, groups))
    with torch.no_grad():
        found = fused_attention(q, k, v, documents.blocks(segments_BT), dropout=0.0)
        expected = fused_attention(q, k, v, visibility(segments_BT, segments_BT), dropout=0.0)
    torch.testing.assert_close(found, expected)


def test_blocks_that_see_nothing_are_left_out() -> None:
    segments_BT = torch.arange(512).div(128, rounding_mode="floor").unsqueeze(0)
    mask = documents.blocks(segments_BT)
    assert mask.kv_num_blocks.flatten().tolist() == [1, 1, 1, 1]


def section(**changes: object) -> Model:
    shape: dict[str, object] = {"n_layer": 2, "n_head": 2, "d_model": 64, "context_length": 256}
    return Model.model_validate({**shape, "attention": {"scope": "document"}, **changes})


def test_a_processor_never_takes_it() -> None:
    assert not documents.suits(section(), CPU)
    why = documents.trouble(CPU, torch.float32)
    assert why is not None and "backward" in why
    assert not build_model(section(), 11, seed=1).blockwise


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.1}, {"attention": {"scope": "window"}}, {"context_length": 128}, {"d_model": 16}]
)
def test_what_it_does_not_suit(changes: dict[str, object]) -> None:
    gpu = torch.device("cuda")
    assert documents.suits(section(), gpu)
    assert not documents.suits(section(**changes), gpu)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_model_trains_by_blocks_as_it_does_by_masks(dtype: torch.dtype) -> None:
    gpu = torch.device("cuda")
    assert documents.trouble(gpu, dtype) is None
    tokens_BT = torch.randint(11, (3, 256), generator=torch.Generator().manual_seed(3)).to(gpu)
    segments_BT = segments(3, 256, 4).to(gpu)
    gradients = []
    for blockwise in (False, True):
        model = build_model(section(), 11, seed=1).to(gpu)
        model.blockwise = blockwise
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            model.hidden(tokens_BT, segments_BT).float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.02
