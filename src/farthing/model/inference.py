"""A model's function without gradients, laid out for speed: what scoring and generation run on.

Shapes: B batch, T new positions, S positions attended to (S = T without a cache), D model width, F hidden width,
H query heads, G key/value heads, N = H + G of both, K width of a head, V vocabulary.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.model.attention import Attention, explicit_attention, fused_attention, visibility
from farthing.model.cache import KeyValueCache
from farthing.model.gpt import GPT, Block
from farthing.model.mlp import Mlp
from farthing.model.norm import Normalize
from farthing.model.position import rotations
from farthing.recipe.model import GeGlu, Gelu, Relu2, Rope, SwiGlu

Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["windows", "rows", "tokens"]
Function = Callable[[Tensor], Tensor]

_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_EXPLICIT_UP_TO = 512
"""positions up to which explicit attention is the faster one in bf16 on a CPU: 2 times at 128, even at 512"""
_PACKED_FOR = 64
"""rows that packed weights are laid out for; one row is no slower for it, and a prompt is faster"""
_ACTIVE_INSIDE_FROM = 16
"""rows from which packed products apply an activation themselves; a single row would cost more for it"""


class Inference:
    """What a GPT in evaluation mode computes, from the weights it has now; its modules are not called.

    Kept apart from the modules because it can do what backward forbids: overwrite what is no longer needed, apply an
    activation inside the matrix product before it, and read weights in a layout of their own. tests/contracts holds
    it to the modules' function, whatever stands in the model's slots.

    Weights that are not cast or packed are the model's own tensors: it is of no use once they have changed.

    Args:
        model: on any device; neither its modes nor its weights are touched.
        precision: of matrix products and attention; the residual stream, norms and softmax are fp32 always. With
            layout = "tokens", fp32 on a CPU that has no fast products of that kind.
        layout: windows: whole windows at once, from the model's own weights where precision allows; rows: the same
            from weights that are packed once (a copy of them), a tenth faster; tokens: a few positions at a time, which
            is bound by the reading of weights, so they are packed too.
    """

    def __init__(self, model: GPT, *, precision: Precision = "fp32", layout: Layout = "windows") -> None:
        section, self._embed = model.section, model.embed.weight.detach()
        self.section, self.vocab_size = section, model.vocab_size
        make = _Maker(model, precision, layout)
        # A single query in bf16 takes torch's CPU kernel five times as long as in fp32.
        low_on_cpu = precision != "fp32" and self._embed.device.type == "cpu"
        attend_in = self._embed.dtype if low_on_cpu and layout == "tokens" else make.dtype
        with torch.inference_mode():
            self._positions = None if model.position is None else model.position.weight.detach()
            self._more_turns = partial(_turns, model, attend_in)
            self._turns = self._more_turns(0)
            self._blocks = [_Layer(block, make, attend_in) for block in model.blocks if isinstance(block, Block)]
            self._norm = None if model.norm is None else _norm(model.norm)
            self._lower = make.lower
            self._logits = make.linear(self._embed if model.unembed is None else model.unembed.weight, None)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._embed.device

    @torch.inference_mode()
    def hidden(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
        only_B: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, [B, T, D]; arguments and errors are those of GPT.hidden, and the cache may have a gap.

        Args:
            tokens_BT, segments_BT, cache: see GPT.hidden.
            only_B: the one of the T positions that is wanted of each row: the answer is [B, 1, D], and what the
                last block does after the projections is done for it alone. The cache is filled as ever.
        """
        section, length = self.section, tokens_BT.shape[1]
        start = 0 if cache is None else cache.length
        end = start + length
        if end > section.context_length:
            raise ValueError(f"{end} positions do not fit into context_length={section.context_length}")
        gap = None if cache is None else cache.gap
        numbers = slice(start, end) if gap is None else gap.numbers_BT(start, end)
        x_BTD = F.embedding(tokens_BT, self._embed)
        if self._positions is not None:
            x_BTD += self._positions[numbers]
        visible = None if gap is None else gap.open_B1TS(start, end)
        if segments_BT is not None:
            assert section.attention.scope == "document", "segments given to a model that attends to the whole window"
            within = visibility(segments_BT, segments_BT if cache is None else cache.append_segments(segments_BT))
            visible = within if visible is None else visible & within
        while self._turns is not None and (known := len(self._turns[0])) < end:
            cos_T1K, sin_T1K = self._more_turns(known) or self._turns
            self._turns = torch.cat((self._turns[0], cos_T1K)), torch.cat((self._turns[1], sin_T1K))
        turns = None if self._turns is None else (self._turns[0][numbers], self._turns[1][numbers])
        around = _Around(turns, visible, cache)
        for block in self._blocks[:-1]:
            x_BTD = block(x_BTD, around)
        x_BTD = self._blocks[-1](x_BTD, replace(around, only_B=only_B))
        if cache is not None:
            cache.advance(length)
        return x_BTD if self._norm is None else self._norm(x_BTD)

    @torch.inference_mode()
    def head(self, x_BTD: Tensor) -> Tensor:
        """Logits [..., V] of what `hidden` returned; in fp32 where a soft-cap bounds them."""
        logits_BTV = self._logits(self._lower(x_BTD))
        if (cap := self.section.logit_softcap) is None:
            return logits_BTV
        return logits_BTV.float().div_(cap).tanh_().mul_(cap)


@dataclass(frozen=True)
class _Around:
    """What a pass works out once for all blocks; see attention.Surroundings."""

    turns: tuple[Tensor, Tensor] | None
    visible_B1TS: Tensor | None
    cache: KeyValueCache | None
    only_B: Tensor | None = None

    def wanted(self, x_BTX: Tensor) -> Tensor:
        """Of each row the position that is wanted, [B, 1, ...]; all of them where nothing is said."""
        if self.only_B is None:
            return x_BTX
        return x_BTX[torch.arange(len(x_BTX), device=x_BTX.device), self.only_B][:, None]

    def seen(self, length: int, seen: int) -> Tensor | None:
        """What the wanted ones of the last T positions see of all S, [B, 1, T, S]."""
        if self.only_B is None:
            return self.visible_B1TS
        if self.visible_B1TS is not None:
            return self.wanted(self.visible_B1TS[:, 0])[:, None]
        positions_S = torch.arange(seen, device=self.only_B.device)
        return (positions_S <= (seen - length + self.only_B)[:, None])[:, None, None]


class _Layer:
    """One block."""

    def __init__(self, block: Block, make: _Maker, attend_in: torch.dtype) -> None:
        self.pre, self.lower = block.pre, make.lower
        self.attention_norm, self.mlp_norm = _norm(block.attention_norm), _norm(block.mlp_norm)
        self.attention = _Attention(block.attention, make, attend_in)
        self.attention_scale, self.mlp_scale = block.attention_scale, block.mlp_scale
        self.mlp = _feed_forward(block.mlp, make)

    def __call__(self, x_BTD: Tensor, around: _Around) -> Tensor:
        """[B, T, D] to [B, T, D], or to [B, 1, D] where one position is wanted; x is overwritten."""
        if self.pre:
            branch_BTD = self.attention(self.lower(self.attention_norm(x_BTD)), around)
            x_BTD = around.wanted(x_BTD)
            x_BTD += _scaled(branch_BTD, self.attention_scale)
            x_BTD += _scaled(self.mlp(self.lower(self.mlp_norm(x_BTD))), self.mlp_scale)
            return x_BTD
        branch_BTD = self.attention(self.lower(x_BTD), around)
        x_BTD = around.wanted(x_BTD)
        x_BTD += _scaled(branch_BTD, self.attention_scale)
        x_BTD = self.attention_norm(x_BTD)
        x_BTD += _scaled(self.mlp(self.lower(x_BTD)), self.mlp_scale)
        return self.mlp_norm(x_BTD)


class _Attention:
    """Query, key and value in one product, heads of queries and keys normalised and turned together."""

    def __init__(self, module: Attention, make: _Maker, attend_in: torch.dtype) -> None:
        self.layer, self.attend_in = module.layer, attend_in
        self.heads, self.width = (module.n_head, module.kv_heads, module.kv_heads), module.head_dim
        self.both = module.n_head + module.kv_heads
        parts = (module.query, module.key, module.value)
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        self.project = make.linear(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)
        self.norm = _head_norm(module)
        self.gate = None if module.gate is None else make.linear(module.gate.weight, module.gate.bias)
        self.output, self.lower = make.linear(module.output.weight, module.output.bias), make.lower
        low = attend_in in (torch.bfloat16, torch.float16) and module.output.weight.device.type == "cpu"
        self.explicit_up_to = _EXPLICIT_UP_TO if low else 0

    def __call__(self, x_BTD: Tensor, around: _Around) -> Tensor:
        batch, length, _ = x_BTD.shape
        qkv_BTNK = self.project(x_BTD).view(batch, length, -1, self.width).to(self.attend_in)
        if self.norm is not None or around.turns is not None:
            qk_BTNK = qkv_BTNK.narrow(2, 0, self.both)
            if self.norm is not None:
                qk_BTNK = self.norm(qk_BTNK)
            if around.turns is not None:
                qk_BTNK = _turned(qk_BTNK, *around.turns)
            q_BTHK, k_BTGK = torch.split_with_sizes(qk_BTNK, self.heads[:2], 2)
            v_BTGK = qkv_BTNK.narrow(2, self.both, self.heads[2])
        else:
            q_BTHK, k_BTGK, v_BTGK = torch.split_with_sizes(qkv_BTNK, self.heads, 2)
        q_BHTK, k_BGSK, v_BGSK = around.wanted(q_BTHK).transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        if around.cache is not None:
            k_BGSK, v_BGSK = around.cache.append(self.layer, k_BGSK, v_BGSK)
        attend = explicit_attention if length <= self.explicit_up_to else fused_attention
        visible = around.seen(length, k_BGSK.shape[2])
        y_BTHK = attend(q_BHTK, k_BGSK, v_BGSK, visible, dropout=0.0).transpose(1, 2)
        if self.gate is not None:
            y_BTHK = y_BTHK * torch.sigmoid(self.gate(around.wanted(x_BTD))).unsqueeze(-1)
        return self.output(self.lower(y_BTHK.reshape(*y_BTHK.shape[:2], -1)))


class _Maker:
    """Makes matrix products in one number format."""

    def __init__(self, model: GPT, precision: Precision, layout: Layout) -> None:
        own, on_cpu = model.embed.weight.dtype, model.embed.weight.device.type == "cpu"
        self.packed = layout != "windows"
        dtype = _DTYPES.get(precision, own)
        self.product = _onednn(dtype) if on_cpu else None
        if on_cpu and layout == "tokens" and self.product is None and dtype != own:
            dtype, self.product = own, _onednn(own)
        self.dtype = dtype
        self.lower: Function = _same if dtype == own else lambda x: x.to(dtype)
        """to the format of the products"""

    def linear(self, weight: Tensor, bias: Tensor | None, activation: str = "none", algorithm: str = "") -> Function:
        """x to activation(x W^T + b); the activations are those of `_overwritten`, and of oneDNN."""
        weight = weight.detach().to(self.dtype)
        bias = None if bias is None else bias.detach().to(self.dtype)
        if (product := self.product) is None:
            return lambda x: _overwritten(F.linear(x, weight, bias), activation, algorithm)
        if self.packed:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
            width = weight.shape[1]

            def packed_product(x: Tensor) -> Tensor:
                if x.numel() >= _ACTIVE_INSIDE_FROM * width:
                    return product(x, packed, bias, activation, [], algorithm)
                return _overwritten(product(x, packed, bias, "none", [], ""), activation, algorithm)

            return packed_product
        return lambda x: product(x, weight, bias, activation, [], algorithm)


def _feed_forward(mlp: Mlp, make: _Maker) -> Function:
    activation, algorithm = _named(mlp.section)
    up, gate = mlp.up, mlp.gate
    down = make.linear(mlp.down.weight, mlp.down.bias)
    if gate is not None:
        gated, plain = make.linear(gate.weight, gate.bias, activation, algorithm), make.linear(up.weight, up.bias)
        return lambda x_BTD: down(gated(x_BTD).mul_(plain(x_BTD)))
    active = make.linear(up.weight, up.bias, activation, algorithm)
    if isinstance(mlp.section, Relu2):
        return lambda x_BTD: down(active(x_BTD).square_())
    return lambda x_BTD: down(active(x_BTD))


def _named(section: Gelu | Relu2 | SwiGlu | GeGlu) -> tuple[str, str]:
    match section:
        case Gelu() | GeGlu():
            return "gelu", section.approximate
        case Relu2():
            return "relu", ""
        case SwiGlu():
            return "swish", ""


def _overwritten(x: Tensor, activation: str, algorithm: str) -> Tensor:
    match activation:
        case "gelu":
            return torch.ops.aten.gelu_.default(x, approximate=algorithm)
        case "relu":
            return x.relu_()
        case "swish":
            return F.silu(x, inplace=True)
    return x


def _norm(module: Normalize) -> Function:
    weight_D, bias_D, width, eps = module.weight.detach(), module.bias, (module.width,), module.eps
    if module.kind == "layernorm":
        return lambda x: torch.layer_norm(x, width, weight_D, bias_D, eps)
    return _rms(module, weight_D)


def _rms(module: Normalize, weight: Tensor) -> Function:
    if weight.device.type != "cpu":
        return lambda x: F.rms_norm(x, (module.width,), eps=module.eps) * weight
    # x / sqrt(mean(x^2) + eps) = x sqrt(D) / sqrt(|x|^2 + D eps), in half of the operations of F.rms_norm's CPU chain.
    weight = weight * module.width**0.5
    floor = torch.tensor((module.width * module.eps) ** 0.5, dtype=weight.dtype)
    return lambda x: x.div(torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(floor)).mul_(weight)


def _head_norm(module: Attention) -> Function | None:
    """Queries and keys [B, T, N, K], each normalised with the scale of its kind."""
    query, key = module.query_norm, module.key_norm
    if query is None or key is None:
        return None

    def of_heads(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([one.expand(module.n_head, -1), other.expand(module.kv_heads, -1)])

    weight_NK = of_heads(query.weight, key.weight)
    if query.kind != "layernorm":
        rms = _rms(query, weight_NK)
        return lambda x: rms(x.to(weight_NK.dtype)).to(x.dtype)
    bias_NK = None if query.bias is None or key.bias is None else of_heads(query.bias, key.bias)

    def layer_norm(x: Tensor) -> Tensor:
        y = F.layer_norm(x.to(weight_NK.dtype), (query.width,), eps=query.eps).mul_(weight_NK)
        return (y if bias_NK is None else y.add_(bias_NK)).to(x.dtype)

    return layer_norm


_TURNS = 1 << 16
"""positions whose turns are kept from the start: a model from elsewhere may claim a context that fills any memory"""


def _turns(model: GPT, dtype: torch.dtype, start: int) -> tuple[Tensor, Tensor] | None:
    """RoPE's cosines and signed sines for the positions of a window from `start` on, [T, 1, K] each."""
    section = model.section
    if not isinstance(section.position, Rope):
        return None
    length = min(_TURNS, section.context_length - start)
    device = model.embed.weight.device
    cos, sin = rotations(start, length, section.head_dim, base=section.position.base, device=device).to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def _turned(x_BTNK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
    # position.rotate in a third of the operations.
    return (x_BTNK * cos_T1K).addcmul_(x_BTNK.roll(x_BTNK.shape[-1] // 2, -1), sin_T1K)


def _same(x: Tensor) -> Tensor:
    return x


def _scaled(branch_BTD: Tensor, scale_D: nn.Parameter | None) -> Tensor:
    return branch_BTD if scale_D is None else branch_BTD * scale_D


@cache
def _onednn(dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """torch's oneDNN linear layer: (x, weight, bias, activation, [], its algorithm); None where it does not work.

    On x86 F.linear multiplies fp32 by MKL, which on processors that Intel did not make leaves AVX-512 unused: 205
    GFLOP/s against oneDNN's 460 on two cores of an AMD Zen 5. In bf16 both are oneDNN's, but only here can weights be
    packed: one row through 12 M parameters takes 0.6 ms instead of 1.3.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return None
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    x, weight = torch.ones(1, 2, dtype=dtype), torch.ones(3, 2, dtype=dtype)
    product: Any
    try:
        product = torch.ops.mkldnn._linear_pointwise.default
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
        found = [product(x, one, None, "relu", [], "") for one in (weight, packed)]
    except (AttributeError, RuntimeError, TypeError):
        return None  # torch's own interface, used by its compiler: another torch, or an old processor, may lack it
    works: Callable[..., Tensor] = product
    return works if all(torch.equal(one, x.new_full((1, 3), 2)) for one in found) else None
