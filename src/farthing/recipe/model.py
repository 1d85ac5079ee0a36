"""The network: one GPT whose slots are unions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from farthing.section import Section

Dropout = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Norm(Section):
    """Normalisation of the residual stream's branches."""

    placement: Literal["pre", "post"] = "pre"
    """pre: before each branch and once before the head; post: after each residual addition"""
    eps: Positive = 1e-5
    """added to the variance"""


class LayerNorm(Norm):
    """Layer normalisation (Ba et al. 2016); has a bias where model.bias is on."""

    kind: Literal["layernorm"] = "layernorm"


class RmsNorm(Norm):
    """Root-mean-square normalisation (Zhang and Sennrich 2019); never has a bias."""

    kind: Literal["rmsnorm"] = "rmsnorm"


class LearnedPosition(Section):
    """A learned vector for each position of the window, added to the token's embedding."""

    kind: Literal["learned"] = "learned"


class Rope(Section):
    """Rotary position embedding of queries and keys (Su et al. 2021), in the half-split layout of GPT-NeoX and Llama."""

    kind: Literal["rope"] = "rope"
    base: Positive = 10_000.0
    """wavelength base"""


class NoPosition(Section):
    """No position information but causality (Kazemnejad et al. 2023)."""

    kind: Literal["none"] = "none"


class Attention(Section):
    """Causal self-attention."""

    scope: Literal["window", "document"] = "window"
    """how far back a token sees: to the window's start, or only to its own document's start (block-diagonal mask)"""
    qk_norm: Literal["none", "rmsnorm", "layernorm"] = "none"
    """normalise each head's queries and keys, with a learned scale shared by the heads (before RoPE)"""
    gate: Literal["none", "head"] = "none"
    """head: each head's output is multiplied by a sigmoid gate computed from the token (one number a head)"""


class Mlp(Section):
    """Feed-forward block."""

    ratio: Positive = 4.0
    """hidden width as a multiple of d_model; 2.6666667 (2/3 of 4) gives gated blocks the plain block's parameters"""
    multiple_of: Annotated[int, Field(ge=1)] = 1
    """round the hidden width up to a multiple of this; 1 rounds to the nearest whole number"""


class Gelu(Mlp):
    """Two layers with GELU between (Hendrycks and Gimpel 2016)."""

    kind: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = "none"
    """none: exact (erf); tanh: GPT-2's approximation"""


class Relu2(Mlp):
    """Two layers with squared ReLU between (So et al. 2021)."""

    kind: Literal["relu2"] = "relu2"


class SwiGlu(Mlp):
    """Gated block, SiLU(x W_gate) * (x W_up) W_down (Shazeer 2020)."""

    kind: Literal["swiglu"] = "swiglu"


class GeGlu(Mlp):
    """Gated block, GELU(x W_gate) * (x W_up) W_down (Shazeer 2020)."""

    kind: Literal["geglu"] = "geglu"
    approximate: Literal["none", "tanh"] = "none"
    """none: exact (erf); tanh: GPT-2's approximation"""


class Init(Section):
    """Initial weights drawn from the seed: normal with mean 0; biases 0, norm scales 1."""

    std: Positive = 0.02
    """standard deviation"""


class NormalInit(Init):
    """The same standard deviation everywhere."""

    kind: Literal["normal"] = "normal"


class Gpt2Init(Init):
    """GPT-2's: projections back into the residual stream are scaled by 1/sqrt(2 n_layer)."""

    kind: Literal["gpt2"] = "gpt2"


class ZeroInit(Init):
    """Projections back into the residual stream start at zero, so that every block starts as the identity."""

    kind: Literal["zero_projections"] = "zero_projections"


class RunInit(Section):
    """The weights of another run, trained here or imported; the rest of [model] must be that run's own.

    Its tokenizer comes with them: `tokenizer.kind` is set to "file" where it would be one to train.
    """

    kind: Literal["run"] = "run"
    run: str
    """that run's folder, or its name among the runs"""
    checkpoint: Annotated[int, Field(ge=0)] | Literal["last", "best"] = "last"
    """which of its weights: the last, the best, or those after so many steps; a number once the run has begun"""
    weights: str | None = None
    """SHA-256 of the file that holds them, filled in when a run begins, so that it starts from nothing else ever after"""


class Model(Section):
    """A decoder-only transformer."""

    n_layer: Annotated[int, Field(ge=1)] = 6
    """number of blocks"""
    n_head: Annotated[int, Field(ge=1)] = 6
    """query heads a block"""
    n_kv_head: Annotated[int, Field(ge=1)] | Literal["n_head"] = "n_head"
    """key and value heads a block; fewer than n_head is grouped-query attention (Ainslie et al. 2023)"""
    d_model: Annotated[int, Field(ge=1)] = 384
    """width of the residual stream"""
    context_length: Annotated[int, Field(ge=1)] = 256
    """tokens in a window"""
    dropout: Dropout = 0.0
    """probability of zeroing, after the embedding, on attention weights and on each branch's output"""
    tie_embeddings: bool = True
    """the output head shares the token embedding's weights"""
    bias: bool = False
    """biases in linear layers and layer norms"""
    layer_scale: Positive | None = None
    """initial value of a learned scale on each branch's output (Touvron et al. 2021); none has no such scale"""
    logit_softcap: Positive | None = None
    """bound logits to this size by cap * tanh(logits / cap); none does not"""
    norm: Annotated[LayerNorm | RmsNorm, Field(discriminator="kind")] = RmsNorm()
    """normalisation"""
    position: Annotated[LearnedPosition | Rope | NoPosition, Field(discriminator="kind")] = Rope()
    """how the model knows token order"""
    attention: Attention = Attention()
    """attention"""
    mlp: Annotated[Gelu | Relu2 | SwiGlu | GeGlu, Field(discriminator="kind")] = Gelu()
    """feed-forward block"""
    init: Annotated[NormalInit | Gpt2Init | ZeroInit | RunInit, Field(discriminator="kind")] = Gpt2Init()
    """initial weights"""

    @property
    def kv_heads(self) -> int:
        """n_kv_head as a number."""
        return self.n_head if self.n_kv_head == "n_head" else self.n_kv_head

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_head

    @property
    def hidden(self) -> int:
        """Width of the feed-forward block's hidden layer."""
        whole = max(1, round(self.mlp.ratio * self.d_model))
        return -(-whole // self.mlp.multiple_of) * self.mlp.multiple_of

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.d_model % self.n_head:
            below, above = (self.d_model // self.n_head) * self.n_head, -(-self.d_model // self.n_head) * self.n_head
            near = " or ".join(str(width) for width in (below, above) if width)
            raise ValueError(f"d_model={self.d_model} is not divisible by n_head={self.n_head}; nearest widths: {near}")
        if self.n_head % self.kv_heads:
            fits = ", ".join(str(k) for k in range(1, self.n_head + 1) if self.n_head % k == 0)
            raise ValueError(f"n_kv_head={self.kv_heads} does not divide n_head={self.n_head}; it may be {fits}")
        if isinstance(self.position, Rope) and self.head_dim % 2:
            raise ValueError(f"RoPE needs an even head width; d_model/n_head is {self.head_dim}")
        return self
