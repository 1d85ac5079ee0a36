"""What a training step holds in memory at its worst moment, term by term. No torch here.

The model is of the code as it is: each tensor below is one that autograd keeps from forward to backward, which
tests/model/test_memory.py compares with what autograd says that it keeps.

Letters: B sequences, T tokens of each, D model width, F feed-forward width, H heads, K head width, G key/value heads,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from farthing.model.cost import count_parameters, is_gated, matrix_weights, parameter_table
from farthing.recipe.model import Model

FLOAT = 4
"""bytes of an fp32 number"""
CPU_PROCESS = 490 * 2**20
"""resident bytes of a `farthing train` process (Python, torch, a tokenizer) after a few steps of a tiny model"""
CPU_SLACK_KEPT, CPU_SLACK_PARAMETERS = 0.28, 6.0
"""bytes that the C library's heap loses to holes, per byte kept for backward and per parameter. torch asks it for
aligned blocks, and glibc (2.36) cannot serve an aligned block from a hole of just that size. Fitted with CPU_PROCESS to
whole training processes; benchmarks/memory.py measures how well."""
CUDA_WORKSPACE = 64 * 2**20
"""bytes of cuBLAS's workspaces and the caching allocator's rounding (an estimate)"""


@dataclass(frozen=True)
class Kept:
    """Bytes that forward leaves for backward."""

    activations: int
    attention: int
    logits: int


def memory(
    section: Model,
    vocab_size: int,
    *,
    micro_batch: int,
    precision: Literal["fp32", "bf16", "fp16"],
    attention: Literal["sdpa", "math"],
    optimizer_bytes_per_parameter: float,
    ema: bool,
    device: Literal["cpu", "cuda"],
    accumulate: bool = False,
) -> dict[str, int]:
    """Bytes at the peak of a training step by term; their sum is the peak.

    The step is: forward under autocast, fp32 cross-entropy of all logits at once, backward, optimizer. Its peak is
    either where backward enters the loss, with everything kept and hardly a gradient (unless earlier micro-batches
    left theirs), or in its last lines, with all gradients and nothing else kept. The terms are those of the worse of
    the two, so a term that is absent there counts 0.

    Args:
        section: the recipe's [model].
        vocab_size: tokens in the vocabulary.
        micro_batch: sequences of context_length tokens in one forward pass.
        precision: number format of the forward and backward passes.
        attention: how attention is computed.
        optimizer_bytes_per_parameter: of the optimizer's state, averaged over all parameters.
        ema: whether a moving average of the weights is kept beside them.
        device: on cpu the peak is of the process's resident memory, and workspace includes the interpreter, torch's
            libraries and what the heap loses; on cuda it is of what torch has allocated, without the driver's context.
        accumulate: whether gradients of earlier micro-batches are already there in forward.

    Returns:
        weights, gradients, optimizer, activations, attention, logits, workspace.
    """
    parameters = count_parameters(section, vocab_size)
    kept = saved(section, vocab_size, micro_batch=micro_batch, precision=precision, attention=attention, device=device)
    always = {
        "weights": parameters * FLOAT * (2 if ema else 1),
        "optimizer": round(parameters * optimizer_bytes_per_parameter),
    }
    gradients = parameters * FLOAT
    tokens = micro_batch * section.context_length
    loss = {
        **always,
        "weights": always["weights"] + lowered_weights(section, vocab_size, precision=precision),
        "gradients": gradients if accumulate else 0,
        "activations": kept.activations,
        "attention": kept.attention,
        # Cross-entropy's own output, its gradient and the log-softmax's gradient; what the head keeps besides.
        "logits": 3 * tokens * vocab_size * FLOAT + kept.logits,
        "workspace": 0,
    }
    # The embedding's gradient is dense, and made whole before it is added to the head's.
    embedding = parameter_table(section, vocab_size)["embedding"] * FLOAT
    end = {
        **always,
        "gradients": gradients,
        "activations": 0,
        "attention": 0,
        "logits": 0,
        "workspace": embedding * (2 if accumulate and section.tie_embeddings else 1),
    }
    peak = max(loss, end, key=lambda terms: sum(terms.values()))
    slack = CPU_SLACK_KEPT * (kept.activations + kept.attention) + CPU_SLACK_PARAMETERS * parameters
    around = CPU_PROCESS + round(slack) if device == "cpu" else CUDA_WORKSPACE
    return {**peak, "workspace": peak["workspace"] + around}


def lowered_weights(section: Model, vocab_size: int, *, precision: str) -> int:
    """Bytes of the copies of the matrices and their biases that autocast makes and keeps for backward."""
    if precision == "fp32":
        return 0
    biases = 0
    if section.bias:
        kv_width = section.kv_heads * section.head_dim
        gate = section.n_head if section.attention.gate == "head" else 0
        biases = 3 * section.d_model + 2 * kv_width + gate + section.hidden * (2 if is_gated(section) else 1)
    return 2 * (section.n_layer * (matrix_weights(section) + biases) + vocab_size * section.d_model)


def saved(section: Model, vocab_size: int, *, micro_batch: int, precision: str, attention: str, device: str) -> Kept:
    """Bytes that autograd keeps from forward to backward, besides parameters and the loss's own."""
    tokens = micro_batch * section.context_length
    low = FLOAT if precision == "fp32" else 2
    stream = tokens * section.d_model
    mask = 1 if device == "cuda" else low
    statistics = tokens * FLOAT * (2 if section.norm.kind == "layernorm" else 1)

    # Each of a block's two branches: the sum before the normalisation, what the branch reads, its dropout and scale.
    branch = stream * (FLOAT + low) + statistics
    branch += stream * mask if section.dropout else 0
    branch += stream * low if section.layer_scale is not None else 0
    block = 2 * branch + _kept_by_mlp(section, tokens=tokens, low=low)
    ends = stream * (FLOAT + low) + statistics if section.norm.placement == "pre" else stream * low
    ends += stream * (1 if device == "cuda" else FLOAT) if section.dropout else 0
    softcap = tokens * vocab_size * FLOAT if section.logit_softcap is not None else 0
    fused = attention == "sdpa" and not (device == "cpu" and section.dropout)
    heads = section.n_layer * _kept_by_attention(section, tokens, low=low, fused=fused, device=device)
    if section.attention.scope == "document":
        # The kernels turn the mask into numbers, block by block; the explicit path shares it as it is.
        heads += tokens * section.context_length * (section.n_layer * low if fused else 1)
    return Kept(activations=section.n_layer * block + ends + 2 * tokens * 8, attention=heads, logits=softcap)


def _kept_by_mlp(section: Model, *, tokens: int, low: int) -> int:
    # Plain: what the activation reads (squared ReLU: what it makes first) and what it makes. Gated: also the other
    # factor and the product.
    return tokens * section.hidden * low * (4 if is_gated(section) else 2)


def _kept_by_attention(section: Model, tokens: int, *, low: int, fused: bool, device: str) -> int:
    kv_width = section.kv_heads * section.head_dim
    queries_and_keys, heads = section.d_model + kv_width, tokens * section.n_head
    # Queries, keys, values and the heads' outputs.
    bytes_kept = tokens * (queries_and_keys + kv_width + section.d_model) * low
    if (kind := section.attention.qk_norm) != "none":
        statistics = FLOAT * (2 if kind == "layernorm" else 1)
        bytes_kept += tokens * queries_and_keys * FLOAT + (heads + tokens * section.kv_heads) * statistics
    if section.attention.gate == "head":
        bytes_kept += tokens * section.d_model * low + heads * low
    if fused:
        return bytes_kept + heads * FLOAT
    # Explicit: the softmax; with dropout its mask and its product; what the second matrix product reads.
    scores = FLOAT
    if section.dropout:
        scores += (1 if device == "cuda" else FLOAT) + (FLOAT if low == FLOAT else 0)
    scores += low if low != FLOAT else 0
    return bytes_kept + heads * section.context_length * scores
