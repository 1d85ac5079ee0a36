"""What a model costs before it is built: parameters and floating-point operations. No torch here.

Memory is in memory.py. Letters: D model width, F feed-forward width, H heads, K head width, T context length,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from farthing.recipe.model import GeGlu, LayerNorm, LearnedPosition, Model, SwiGlu


@dataclass(frozen=True)
class Flops:
    """Floating-point operations for each training token; a multiplication and an addition are two."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def parameter_table(section: Model, vocab_size: int) -> dict[str, int]:
    """Exact parameter counts by part: embedding, position, attention, mlp, norm, other (layer scales), head.

    A tied head has no parameters of its own.
    """
    width, layers = section.d_model, section.n_layer
    norms = 2 * layers + (section.norm.placement == "pre")
    norm = norms * width * _norm_vectors(section.norm.kind, section)
    if section.attention.qk_norm != "none":
        norm += 2 * layers * section.head_dim * _norm_vectors(section.attention.qk_norm, section)
    return {
        "embedding": vocab_size * width,
        "position": section.context_length * width if isinstance(section.position, LearnedPosition) else 0,
        "attention": layers * sum(rows * columns + _bias(rows, section) for rows, columns in _attention(section)),
        "mlp": layers * sum(rows * columns + _bias(rows, section) for rows, columns in _mlp(section)),
        "norm": norm,
        "other": 0 if section.layer_scale is None else 2 * layers * width,
        "head": 0 if section.tie_embeddings else vocab_size * width,
    }


def count_parameters(section: Model, vocab_size: int) -> int:
    """Exact number of parameters."""
    return sum(parameter_table(section, vocab_size).values())


def flops_per_token(section: Model, vocab_size: int, *, r_drop: bool = False, sam: bool = False) -> Flops:
    """Operations of the matrix products for each training token, the head and attention's T^2 terms included.

    Attention is counted in full, as PaLM's appendix B does (Chowdhery et al. 2022), although a causal token sees half
    the window on average: the explicit path computes all of it, and a count that depended on the kernel could not be
    compared between machines. Elementwise work, normalisation and the embedding's lookup are not counted. Backward is
    twice forward: each product has two gradients.

    Args:
        section: the recipe's [model].
        vocab_size: tokens in the vocabulary.
        r_drop: each token passes twice, with two dropout masks (R-Drop).
        sam: each token passes twice, before and after the ascent (SAM).
    """
    weights = section.n_layer * matrix_weights(section) + vocab_size * section.d_model
    attention = section.n_layer * 2 * section.context_length * section.d_model
    passes = (2 if r_drop else 1) * (2 if sam else 1)
    forward = passes * 2 * (weights + attention)
    return Flops(forward=forward, backward=2 * forward)


def matrix_weights(section: Model) -> int:
    """Weights of one block's matrices."""
    return sum(rows * columns for rows, columns in _attention(section) + _mlp(section))


def is_gated(section: Model) -> bool:
    """Whether the feed-forward block has a gate."""
    return isinstance(section.mlp, SwiGlu | GeGlu)


def _attention(section: Model) -> list[tuple[int, int]]:
    width, kv_width = section.d_model, section.kv_heads * section.head_dim
    gate = [(section.n_head, width)] if section.attention.gate == "head" else []
    return [(width, width), (kv_width, width), (kv_width, width), (width, width), *gate]


def _mlp(section: Model) -> list[tuple[int, int]]:
    width, hidden = section.d_model, section.hidden
    return [(hidden, width)] * (2 if is_gated(section) else 1) + [(width, hidden)]


def _bias(rows: int, section: Model) -> int:
    return rows if section.bias else 0


def _norm_vectors(kind: str, section: Model) -> int:
    return 2 if section.bias and kind == LayerNorm().kind else 1
