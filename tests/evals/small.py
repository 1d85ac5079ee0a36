"""Small causal models and splits whose scores can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from farthing.data.split import TokenSplit

SEPARATOR = 256
VOCAB = 257


def byte_split(texts: Sequence[str], *, separator: int = SEPARATOR) -> TokenSplit:
    tokens = [token for text in texts for token in [*text.encode(), separator]]
    return token_split(np.array(tokens, dtype=np.uint16), texts, separator=separator)


def token_split(tokens_N: np.ndarray, texts: Sequence[str], *, separator: int) -> TokenSplit:
    return TokenSplit(
        name="validation",
        tokens_N=tokens_N,
        separator=separator,
        documents=len(texts),
        bytes=sum(len(text.encode()) for text in texts),
        characters=sum(map(len, texts)),
        fingerprint="0" * 64,
        texts=lambda: iter(texts),
    )


class Uniform(nn.Module):
    """Every token is as likely as any other."""

    def __init__(self, vocab: int = VOCAB) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        return torch.zeros(*tokens_BT.shape, self.vocab)


class CausalMean(nn.Module):
    """Predicts from the mean of all embeddings so far in its window (or segment), so every bit of context counts."""

    def __init__(self, vocab: int = VOCAB, d_model: int = 16, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab, d_model)
            self.body = nn.Sequential(nn.Linear(2 * d_model, d_model), nn.Tanh(), nn.Dropout(0.5))
            self.head = nn.Linear(d_model, vocab)
            nn.init.normal_(self.head.weight, std=0.5)
        self.saw_grad: set[bool] = set()
        self.dtypes: set[torch.dtype] = set()

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.embedding(tokens_BT)
        T = tokens_BT.shape[1]
        seen_BTT = torch.ones(T, T).tril().expand(len(tokens_BT), T, T)
        if segments_BT is not None:
            seen_BTT = seen_BTT * (segments_BT[:, :, None] == segments_BT[:, None, :])
        # Left to right, one position after the other: a row's sums do not depend on its neighbours.
        mean_BTD = (seen_BTT[..., None] * x_BTD[:, None]).sum(2) / seen_BTT.sum(2)[..., None]
        x_BTD = self.body(torch.cat([x_BTD, mean_BTD], dim=-1))
        self.saw_grad.add(x_BTD.requires_grad)
        self.dtypes.add(x_BTD.dtype)
        return x_BTD

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(tokens_BT, segments_BT))


class WholeLogits(nn.Module):
    """The same model without its two halves showing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        return self.model(tokens_BT, segments_BT)


def brute_force(model: nn.Module, split: TokenSplit, *, context_length: int, stride: int) -> np.ndarray:
    """The cost of each token, one forward pass for each, context worked out from the definition alone."""
    model.eval()
    stream = [split.separator, *map(int, split.tokens_N)]
    nats = []
    for position, target in enumerate(stream[1:]):
        if position < context_length:
            first = 0
        else:
            block = (position - context_length) // stride
            first = context_length + block * stride - (context_length - stride)
        with torch.no_grad():
            logits = model(torch.tensor([stream[first : position + 1]]), None)[0, -1].double()
        nats.append(float(logits.logsumexp(0) - logits[target]))
    return np.array(nats)


def bits(nats: float) -> float:
    return nats / math.log(2)
