"""The shapes that are measured, and how each library is asked for them.

Only the standard library, so that every side can read it, whatever its environment.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LARGEST_TRAINED = 32_768
"""The standard library's sources are too little text for a larger BPE; beyond it a vocabulary has unused tokens."""


def padded_tokenizer(vocab_size: int) -> Path:
    """Where bench.prepare_tokenizer puts a tokenizer of LARGEST_TRAINED tokens with unused ones up to `vocab_size`."""
    return Path(tempfile.gettempdir()) / f"farthing-bench-tokenizer-{vocab_size}.json"


@dataclass(frozen=True)
class Shape:
    """A GPT-2 of some size and the batch it is trained on.

    Args:
        name: what the tables call it.
        n_layer: blocks.
        n_head: heads a block.
        d_model: width.
        vocab_size: tokens in the vocabulary.
        context: tokens of a window.
        batch: windows of a step.
    """

    name: str
    n_layer: int
    n_head: int
    d_model: int
    vocab_size: int
    context: int
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.context * self.batch

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `Shape(**table)` makes it again."""
        return asdict(self)

    def recipe(self) -> list[str]:
        """Overrides of a Farthing recipe: the shape and the text, none of the choices within it."""
        if self.vocab_size <= LARGEST_TRAINED:
            tokenizer = [f"tokenizer.vocab_size={self.vocab_size}"]
        else:
            tokenizer = ["tokenizer.kind=file", f"tokenizer.path={padded_tokenizer(self.vocab_size)}"]
        return [
            f"model.n_layer={self.n_layer}",
            f"model.n_head={self.n_head}",
            f"model.d_model={self.d_model}",
            f"model.context_length={self.context}",
            f"train.batch_size={self.batch}",
            *tokenizer,
        ]

    def gpt2(self) -> dict[str, Any]:
        """Arguments of transformers' GPT2Config: GPT-2 as it is, without dropout."""
        return {
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_embd": self.d_model,
            "vocab_size": self.vocab_size,
            "n_positions": self.context,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
        }


# A step has 2,048 tokens whatever the size and the context, so that sizes and contexts compare.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("1M/128", n_layer=4, n_head=4, d_model=128, vocab_size=2048, context=128, batch=16),
        Shape("1M/512", n_layer=4, n_head=4, d_model=128, vocab_size=2048, context=512, batch=4),
        Shape("12M/128", n_layer=6, n_head=6, d_model=384, vocab_size=4096, context=128, batch=16),
        Shape("12M/512", n_layer=6, n_head=6, d_model=384, vocab_size=4096, context=512, batch=4),
        Shape("45M/128", n_layer=8, n_head=10, d_model=640, vocab_size=8192, context=128, batch=16),
        Shape("45M/512", n_layer=8, n_head=10, d_model=640, vocab_size=8192, context=512, batch=4),
        Shape("12M/50257", n_layer=6, n_head=6, d_model=384, vocab_size=50257, context=128, batch=16),
    )
}
HEADLINE = "12M/128"
"""what the targets of benchmarks/README.md are about"""
LARGE_VOCABULARY = "12M/50257"
"""the same trunk under GPT-2's vocabulary, where logits are most of the memory"""

# GPT-2's architecture in a recipe: what GPT2LMHeadModel computes, weight for weight (benchmarks/parity.py).
GPT2_ARCHITECTURE = [
    "model.norm.kind=layernorm",
    "model.bias=true",
    "model.position.kind=learned",
    "model.mlp.kind=gelu",
    "model.mlp.approximate=tanh",
    "model.tie_embeddings=true",
]

# What is asked of the default recipe besides a shape. gelu: GPT-2 as transformers computes it, under AdamW; gelu-erf:
# with the exact GELU; default: our own slots (RMS norm, RoPE, exact GELU, no biases) under Muon; relu2: the same with
# squared ReLU.
OURS = {
    "gelu": [*GPT2_ARCHITECTURE, "optimizer.kind=adamw"],
    "gelu-erf": [*GPT2_ARCHITECTURE, "model.mlp.approximate=none", "optimizer.kind=adamw"],
    "default": [],
    "relu2": ["model.mlp.kind=relu2"],
}
PLAIN = ["train.precision=fp32", "train.attention=sdpa", "train.weight_gradient=strided", "train.compile=off"]
"""what the measured choices of auto are held against"""
