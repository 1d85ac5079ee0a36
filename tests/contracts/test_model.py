"""What every model must do, whatever stands in its slots."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from farthing.model.cache import KeyValueCache
from farthing.model.cost import count_parameters, flops_per_token, parameter_table
from farthing.model.generate import Continuation
from farthing.model.gpt import GPT, build_model
from farthing.model.inference import Inference
from farthing.recipe.model import Model, Rope
from model.combinations import CHOICES, MODELS, SLOTS, VOCABULARY, section, shaken, tokens

T = MODELS[0].context_length
every_model = pytest.mark.parametrize("model", MODELS, ids=[str(number) for number in range(len(MODELS))])


def loss_of(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_BTV.float().view(-1, VOCABULARY), targets_BT.reshape(-1))


def gradients(model: GPT) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values()), found
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def in_document(model: Model) -> Model:
    attention = model.attention.model_copy(update={"scope": "document"})
    return model.model_copy(update={"attention": attention})


@every_model
@pytest.mark.parametrize("path", ["sdpa", "math"])
def test_a_later_token_never_changes_an_earlier_logit(model: Model, path: str) -> None:
    gpt = shaken(model, attention=path)
    rows = tokens(2, T)
    changed = rows.clone()
    changed[:, 7:] = (rows[:, 7:] + 11) % VOCABULARY
    before, after = gpt(rows), gpt(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert ((after[:, 7:] - before[:, 7:]).abs().amax(-1) > 1e-2).all()


@every_model
def test_both_attention_paths_are_the_same_function(model: Model) -> None:
    rows, targets = tokens(3, T), tokens(3, T, seed=6)
    fused, explicit = shaken(model, attention="sdpa"), shaken(model, attention="math")
    segments = (rows == 0).cumsum(1) if model.attention.scope == "document" else None
    logits = [gpt(rows, segments) for gpt in (fused, explicit)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    for out in logits:
        loss_of(out, targets).backward()
    torch.testing.assert_close(gradients(fused), gradients(explicit), rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("pieces", [[1] * T, [5, 1, 1, 4, 1], [T]], ids=str)
@torch.no_grad()
def test_a_cache_gives_the_logits_of_the_full_forward(model: Model, pieces: list[int]) -> None:
    for path in ("sdpa", "math"):
        gpt, rows = shaken(model, attention=path), tokens(2, T)
        segments = (rows % 5 == 0).cumsum(1) if model.attention.scope == "document" else None
        cache, outs, start = KeyValueCache(model), [], 0
        for length in pieces:
            stop = start + length
            part = None if segments is None else segments[:, start:stop]
            outs.append(gpt(rows[:, start:stop], part, cache=cache))
            start = stop
        torch.testing.assert_close(torch.cat(outs, 1), gpt(rows, segments), rtol=0, atol=1e-5)


@every_model
@torch.no_grad()
def test_beyond_the_context_logits_are_those_of_a_full_forward_over_the_window(model: Model) -> None:
    gpt = shaken(model)
    continuation = Continuation(gpt, texts=2, separator=0)
    texts: list[list[int]] = [[], []]
    for new in (tokens(2, T + 3), *tokens(2, 3 * T, seed=7).split(1, dim=1)):
        texts = [text + more for text, more in zip(texts, new.tolist(), strict=True)]
        logits = continuation.extend(new.tolist())
        windows = torch.tensor(continuation.windows)
        length = windows.shape[1]
        assert [text[-length:] for text in texts] == continuation.windows
        assert min(len(texts[0]), T // 2) <= length <= T
        segments = (windows == 0).cumsum(1) if model.attention.scope == "document" else None
        torch.testing.assert_close(logits, gpt(windows, segments)[:, -1], rtol=0, atol=1e-5)


@every_model
@pytest.mark.parametrize("layout", ["windows", "rows", "tokens"])
@torch.no_grad()
def test_inference_is_the_same_function(model: Model, layout: str) -> None:
    gpt, rows = shaken(model).train(), tokens(3, T)
    segments = (rows % 5 == 0).cumsum(1) if model.attention.scope == "document" else None
    inference = Inference(gpt, layout=layout)
    found = inference.head(inference.hidden(rows, segments))
    torch.testing.assert_close(found, gpt.eval()(rows, segments), rtol=0, atol=1e-5)


@every_model
@pytest.mark.parametrize("pieces", [[1] * T, [5, 1, 1, 4, 1]], ids=str)
@pytest.mark.parametrize("layout", ["windows", "rows", "tokens"])
@torch.no_grad()
def test_inference_with_a_cache_gives_the_logits_of_the_full_forward(
    model: Model, layout: str, pieces: list[int]
) -> None:
    gpt, rows = shaken(model), tokens(2, T)
    segments = (rows % 5 == 0).cumsum(1) if model.attention.scope == "document" else None
    inference, cache, outs, start = Inference(gpt, layout=layout), KeyValueCache(model), [], 0
    for length in pieces:
        stop = start + length
        part = None if segments is None else segments[:, start:stop]
        outs.append(inference.head(inference.hidden(rows[:, start:stop], part, cache=cache)))
        start = stop
    torch.testing.assert_close(torch.cat(outs, 1), gpt(rows, segments), rtol=0, atol=1e-5)


@every_model
@pytest.mark.parametrize("layout", ["windows", "rows", "tokens"])
@torch.no_grad()
def test_inference_in_bf16_is_as_close_to_fp32_as_autocast(model: Model, layout: str) -> None:
    gpt, rows = shaken(model), tokens(2, T)
    exact, inference = gpt(rows), Inference(gpt, precision="bf16", layout=layout)
    logits = inference.head(inference.hidden(rows))
    assert logits.dtype == (torch.bfloat16 if model.logit_softcap is None else torch.float32)
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


@every_model
@pytest.mark.parametrize("path", ["sdpa", "math"])
def test_other_documents_never_change_a_documents_logits(model: Model, path: str) -> None:
    gpt = shaken(in_document(model), attention=path)
    rows = tokens(2, T)
    segments = torch.tensor([[0] * 4 + [1] * 5 + [2] * 3, [0] * 1 + [1] * 2 + [2] * 9])
    logits = gpt(rows, segments)
    for row, number in ((0, 0), (0, 1), (0, 2), (1, 2)):
        others = segments[row] != number
        changed = rows.clone()
        changed[row, others] = (rows[row, others] + 11) % VOCABULARY
        after = gpt(changed, segments)
        torch.testing.assert_close(after[row, ~others], logits[row, ~others], rtol=0, atol=1e-6)
    if isinstance(model.position, Rope) or model.position.kind == "none":
        alone = gpt(rows[:1, 4:9])
        torch.testing.assert_close(alone[0], logits[0, 4:9], rtol=0, atol=1e-5)


@every_model
def test_without_segments_the_window_is_one_document(model: Model) -> None:
    gpt, rows = shaken(in_document(model)), tokens(2, T)
    torch.testing.assert_close(gpt(rows), gpt(rows, torch.zeros_like(rows)), rtol=0, atol=1e-5)


@every_model
def test_dropout_acts_in_training_only(model: Model) -> None:
    gpt, rows = shaken(model), tokens(2, T)
    assert torch.equal(gpt(rows), gpt(rows))
    gpt.train()
    torch.manual_seed(0)
    assert torch.equal(gpt(rows), gpt(rows)) == (model.dropout == 0)


@every_model
def test_every_parameter_has_a_role_and_is_counted(model: Model) -> None:
    gpt = build_model(model, VOCABULARY, seed=0)
    parameters = dict(gpt.named_parameters())
    roles = gpt.roles()
    assert roles.keys() == parameters.keys() == gpt.state_dict().keys()
    assert {name for name, role in roles.items() if role == "matrix"} == {
        name for name, p in parameters.items() if name.startswith("blocks.") and p.ndim == 2
    }
    assert ("head" in roles.values()) == (not model.tie_embeddings)
    assert_table_is_right(model, gpt)


def assert_table_is_right(model: Model, gpt: GPT) -> None:
    table = parameter_table(model, VOCABULARY)
    counted = dict.fromkeys(table, 0)
    for name, parameter in gpt.named_parameters():
        counted[part_of(name)] += parameter.numel()
    assert counted == table
    assert count_parameters(model, VOCABULARY) == sum(p.numel() for p in gpt.parameters())


def part_of(name: str) -> str:
    if "norm" in name:
        return "norm"
    if name.endswith("_scale"):
        return "other"
    top = {"embed.weight": "embedding", "position.weight": "position", "unembed.weight": "head"}
    return top.get(name) or name.split(".")[2]


any_model = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SLOTS.items()}).map(section)


@given(model=any_model, heads=st.sampled_from([1, 2, 4]), size=st.integers(1, 6), layers=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_parameters_are_counted_exactly_for_any_shape(model: Model, heads: int, size: int, layers: int) -> None:
    shape = {"n_head": 4, "n_kv_head": heads, "d_model": 8 * size, "n_layer": layers, "context_length": size}
    model = Model.model_validate({**model.model_dump(), **shape})
    with torch.device("meta"):
        assert_table_is_right(model, GPT(model, VOCABULARY))


@every_model
def test_flops_are_those_of_the_matrix_products(model: Model) -> None:
    gpt, rows = build_model(model, VOCABULARY, seed=0, attention="math"), tokens(3, T)
    told = flops_per_token(model, VOCABULARY)
    with FlopCounterMode(display=False) as counter:
        loss = loss_of(gpt(rows), rows)
    assert counter.get_total_flops() == pytest.approx(told.forward * rows.numel(), rel=0.01)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(told.backward * rows.numel(), rel=0.01)
    both = flops_per_token(model, VOCABULARY, r_drop=True, sam=True)
    assert (both.total, told.total) == (4 * told.total, told.forward + told.backward)


@every_model
def test_gradients_reach_every_parameter(model: Model) -> None:
    # At zero_projections a block's inner matrices have a gradient only once its projections have moved.
    gpt, rows, targets = build_model(model, VOCABULARY, seed=0), tokens(4, T), tokens(4, T, seed=6)
    for _ in range(2):
        gpt.zero_grad()
        loss_of(gpt(rows), targets).backward()
        found = gradients(gpt)
        with torch.no_grad():
            for parameter in gpt.parameters():
                assert parameter.grad is not None
                parameter -= 0.5 * parameter.grad
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        # One more term for all keys changes no softmax.
        assert gradient.any() or (name.endswith(("key.bias", "key_norm.bias")) and model.position.kind != "rope"), name


@every_model
@pytest.mark.parametrize("path", ["sdpa", "math"])
def test_bf16_autocast_is_close_to_fp32_and_trains(model: Model, path: str) -> None:
    gpt, rows = build_model(model, VOCABULARY, seed=0, attention=path).eval(), tokens(2, T)
    exact = gpt(rows)
    with torch.autocast("cpu", torch.bfloat16):
        logits = gpt(rows)
    assert logits.dtype == (torch.bfloat16 if model.logit_softcap is None else torch.float32)
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))
    gpt.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(gpt(rows), rows).backward()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients(gpt).values())


@every_model
def test_the_same_seed_gives_the_same_weights_and_the_global_state_is_left_alone(model: Model) -> None:
    state = torch.get_rng_state()
    one, same, other = (build_model(model, VOCABULARY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


@every_model
def test_weights_survive_safetensors_and_copies(model: Model) -> None:
    gpt, rows = shaken(model), tokens(2, T)
    fresh = GPT(model, VOCABULARY).eval()
    assert all(parameter.isnan().all() for parameter in fresh.parameters())
    fresh.load_state_dict(safetensors.torch.load(safetensors.torch.save(gpt.state_dict())))
    assert torch.equal(fresh(rows), gpt(rows))
    assert torch.equal(copy.deepcopy(gpt)(rows), gpt(rows))


@every_model
def test_the_head_can_be_called_apart(model: Model) -> None:
    gpt, rows = shaken(model), tokens(2, T)
    x_BTD = gpt.hidden(rows)
    assert x_BTD.shape == (2, T, model.d_model)
    assert torch.equal(gpt.head(x_BTD), gpt(rows))
    torch.testing.assert_close(gpt.head(x_BTD[:, 3:5]), gpt(rows)[:, 3:5])
    if model.logit_softcap is not None:
        assert gpt(rows).abs().max() <= model.logit_softcap


def test_the_combinations_cover_every_pair_of_choices() -> None:
    for a, b in combinations(SLOTS, 2):
        assert len({(str(choice[a]), str(choice[b])) for choice in CHOICES}) == len(SLOTS[a]) * len(SLOTS[b]), (a, b)
