"""What a training step holds in memory at its worst moment, term by term. No torch here.

The model is of the code as it is: tests/model/test_memory.py compares it, to the byte, with what autograd says that it
keeps, and with the most that torch has allocated in a real step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from farthing.model.cost import count_parameters, is_gated, matrix_weights
from farthing.recipe.model import Model, Rope

FLOAT = 4
"""bytes of an fp32 number"""
INDEX = 8
"""bytes of a token's number"""
CHUNK_LOGITS = {"cpu": 1 << 25, "mps": 1 << 25, "cuda": 1 << 27}
"""logits that may exist at once: more are no faster, and fewer make the head's gradient a sum of more parts"""
LEAST_BLOCK = 128
"""positions of the smallest block of explicit attention; smaller products are slower ones"""
R_DROP_ARRAYS = 11
"""fp32 arrays of one pass's logits that exist at once in R-Drop's divergence, measured without z_loss, which takes two
more"""
CPU_PROCESS = 405 * 2**20
"""resident bytes of a `farthing train` process (Python, torch, a tokenizer) besides what it trains"""
CPU_SLACK = {"weights": 0.62, "kept": 0.17, "logits": 0.54, "block": 1.26}
"""bytes that the C library's heap loses to holes, per byte of fp32 weights, kept for backward, of the loss and kept of one
block. torch asks it for aligned blocks, and glibc (2.36) cannot serve an aligned block from a hole of just that size, so
that a block's gradients find no place where tensors were freed, unless a loss has left a large one. Fitted with
CPU_PROCESS to 37 processes, within 5 %; benchmarks/memory.py measures how well."""
CUDA_WORKSPACE = 64 * 2**20
"""bytes of cuBLAS's workspaces and the caching allocator's rounding (an estimate)"""

Device = Literal["cpu", "cuda", "mps"]
Format = Literal["fp32", "bf16", "fp16"]
Path = Literal["sdpa", "math"]


@dataclass(frozen=True)
class Kept:
    """Bytes that forward leaves for backward."""

    activations: int
    attention: int


def block_size(length: int) -> int:
    """Positions of a block of explicit attention, whose weights are one tensor; there are at most four blocks."""
    return min(length, max(LEAST_BLOCK, -(-length // 4)))


def rows_of_a_chunk(count: int, vocab_size: int, most: int) -> int:
    """Rows of logits to compute at once, of `count` rows: as few chunks as `most` logits allow, all of one size."""
    chunks = -(-count // max(1, most // vocab_size))
    return -(-count // chunks)


def memory(
    section: Model,
    vocab_size: int,
    *,
    micro_batch: int,
    precision: Format,
    attention: Path,
    optimizer_bytes_per_parameter: float,
    ema: bool,
    device: Device,
    accumulate: bool = False,
    r_drop: bool = False,
) -> dict[str, int]:
    """Bytes at the peak of a training step by term; their sum is the peak.

    A step is: forward under autocast; the head and its loss, a chunk of logits at a time; backward; the update. Its
    peak is in the loss, with everything kept and hardly a gradient (unless earlier micro-batches left theirs); or where
    backward enters the last block, whose gradients are wider than a small vocabulary's logits; or after backward,
    with all gradients and nothing else kept. The terms are those of the worst of the three, so a term that is
    absent there counts 0.

    Args:
        section: the recipe's [model].
        vocab_size: tokens in the vocabulary.
        micro_batch: sequences of context_length tokens in one forward pass.
        precision: number format of the forward and backward passes.
        attention: how attention is computed.
        optimizer_bytes_per_parameter: of the optimizer's state, averaged over all parameters.
        ema: whether a moving average of the weights is kept beside them.
        device: on cpu the peak is of the process's resident memory, and workspace includes the interpreter, torch's
            libraries and what the heap loses; elsewhere it is of what torch has allocated, without the driver's context.
        accumulate: whether gradients of earlier micro-batches are already there in forward.
        r_drop: whether each sequence passes twice, both passes are kept, and the loss takes their logits whole.

    Returns:
        weights, gradients, optimizer, activations, attention, logits, workspace.
    """
    parameters, low = count_parameters(section, vocab_size), _bytes_of(precision)
    sequences = micro_batch * (2 if r_drop else 1)
    kept = saved(section, micro_batch=sequences, precision=precision, attention=attention, device=device)
    tokens = sequences * section.context_length
    stream, head = tokens * section.d_model, vocab_size * section.d_model
    weights, earlier = parameters * FLOAT, parameters * FLOAT if accumulate else 0
    always = {
        "weights": weights * (2 if ema else 1) + lowered_weights(section, vocab_size, precision=precision),
        "optimizer": round(parameters * optimizer_bytes_per_parameter),
    }
    whole = kept.activations + kept.attention
    if r_drop:
        logits, gradient = _whole_logits(section, vocab_size, tokens // 2, low=low), 0
    else:
        logits, gradient = _chunk_of_logits(section, vocab_size, tokens, low=low, device=device)
    loss = {
        # What the head reads, with the gradient by it; and the tokens with their targets.
        "activations": kept.activations + 2 * stream * FLOAT + 2 * tokens * INDEX,
        "attention": kept.attention,
        "gradients": earlier + gradient,
        "logits": logits,
        "workspace": _around(device, weights, kept=whole, logits=logits),
    }
    inner = _inner_gradients(section, tokens, low=low, attention=attention, device=device)
    if not gradient and low != FLOAT:
        # One chunk leaves the head's gradient in its own format, to be widened first.
        inner = max(inner, low * head)
    turn = {
        "activations": kept.activations + stream * FLOAT + inner,
        "attention": kept.attention,
        "gradients": earlier + head * FLOAT,
        "logits": 0,
        "workspace": _around(device, weights, kept=whole, block=whole // section.n_layer),
    }
    # The embedding's gradient is dense, and made whole before it is added to the head's. Afterwards an optimizer may
    # take as much for the update of the largest parameter, which this is.
    whole_gradient = head * FLOAT * (2 if accumulate and section.tie_embeddings else 1)
    end = {"activations": 0, "attention": 0, "gradients": weights, "logits": 0}
    end["workspace"] = _around(device, weights) + whole_gradient
    peak = max(loss, turn, end, key=lambda terms: sum(terms.values()))
    return {**always, **peak}


def _around(device: Device, weights: int, *, kept: int = 0, logits: int = 0, block: int = 0) -> int:
    """Bytes besides what is computed with, those that a heap loses included."""
    if device != "cpu":
        return CUDA_WORKSPACE
    lossy = {"weights": weights, "kept": kept, "logits": logits, "block": block}
    return CPU_PROCESS + round(sum(CPU_SLACK[what] * size for what, size in lossy.items()))


def lowered_weights(section: Model, vocab_size: int, *, precision: Format) -> int:
    """Bytes of the copies of the matrices, the head's included, in the format of the forward pass."""
    low = _bytes_of(precision)
    return 0 if low == FLOAT else low * (section.n_layer * matrix_weights(section) + vocab_size * section.d_model)


def saved(section: Model, *, micro_batch: int, precision: Format, attention: Path, device: Device) -> Kept:
    """Bytes that autograd keeps of the model's pass up to its head, besides parameters and their copies."""
    tokens = micro_batch * section.context_length
    low = _bytes_of(precision)
    stream = tokens * section.d_model
    mask = low if device == "cpu" else 1
    statistics = tokens * FLOAT * (2 if section.norm.kind == "layernorm" else 1)

    # Each of a block's two branches: the sum before the normalisation, what the branch reads, its dropout and scale.
    branch = stream * (FLOAT + low) + statistics
    branch += stream * mask if section.dropout else 0
    branch += stream * low if section.layer_scale is not None else 0
    block = 2 * branch + _kept_by_mlp(section, tokens=tokens, low=low)
    ends = stream * FLOAT + statistics if section.norm.placement == "pre" else 0
    ends += stream * (FLOAT if device == "cpu" else 1) if section.dropout else 0
    fused = _is_fused(section, attention=attention, device=device)
    heads = section.n_layer * _kept_by_attention(section, tokens, low=low, fused=fused)
    if fused and section.attention.scope == "document":
        # The kernels turn the mask into numbers, block by block.
        heads += tokens * section.context_length * section.n_layer * low
    if isinstance(section.position, Rope):
        # Cosines and sines; below fp32 a copy for each tensor that is turned.
        turned = 1 if low == FLOAT else 2 * section.n_layer
        heads += turned * section.context_length * section.head_dim * low
    return Kept(activations=section.n_layer * block + ends + tokens * INDEX, attention=heads)


def _bytes_of(precision: Format) -> int:
    return FLOAT if precision == "fp32" else 2


def _chunk_of_logits(section: Model, vocab_size: int, tokens: int, *, low: int, device: Device) -> tuple[int, int]:
    """Bytes of a chunk of training/head_objective.py at its worst, and of the head's gradient that it adds to."""
    rows, head = rows_of_a_chunk(tokens, vocab_size, CHUNK_LOGITS[device]), vocab_size * section.d_model
    # Logits and probabilities in fp32; or their gradient with its part of the head's; or that part, widened.
    chunk = max(2 * FLOAT * rows * vocab_size, low * (rows * vocab_size + head))
    if rows == tokens:
        return chunk, 0
    return max(chunk, low * head + (FLOAT * head if low != FLOAT else 0)), FLOAT * head


def _whole_logits(section: Model, vocab_size: int, tokens: int, *, low: int) -> int:
    """Bytes of R-Drop's loss, which takes the logits of both its passes over so many tokens."""
    arrays = R_DROP_ARRAYS
    if section.logit_softcap is not None:
        arrays += 2
    elif low != FLOAT:
        arrays += 1
    return arrays * tokens * vocab_size * FLOAT


def _inner_gradients(section: Model, tokens: int, *, low: int, attention: Path, device: Device) -> int:
    """Bytes of gradients inside the last block where there are most of them."""
    mlp = tokens * section.hidden * low * (2 if is_gated(section) else 1)
    if _is_fused(section, attention=attention, device=device):
        return mlp
    # Those of a block's weights and scores, with dropout also of the dropped ones, when what the MLP kept is gone.
    weights = tokens * section.n_head * block_size(section.context_length) * low
    return max(mlp, weights * (4 if section.dropout else 2) - _kept_by_mlp(section, tokens=tokens, low=low))


def _is_fused(section: Model, *, attention: Path, device: Device) -> bool:
    # torch has no fused CPU kernel with dropout.
    return attention == "sdpa" and not (device == "cpu" and section.dropout)


def _kept_by_mlp(section: Model, *, tokens: int, low: int) -> int:
    # Plain: what the activation reads (squared ReLU: what it makes first) and what it makes. Gated: also the other
    # factor and the product.
    return tokens * section.hidden * low * (4 if is_gated(section) else 2)


def _kept_by_attention(section: Model, tokens: int, *, low: int, fused: bool) -> int:
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
    # Explicit: each block's softmax, and with dropout its mask.
    length = section.context_length
    size = block_size(length)
    stops = [*range(size, length, size), length]
    pairs = sum((stop - start) * stop for start, stop in zip([0, *stops], stops, strict=False))
    return bytes_kept + heads * pairs // length * (low + (1 if section.dropout else 0))
