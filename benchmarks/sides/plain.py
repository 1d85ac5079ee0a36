"""Worker: the plain eager loop that people write first: a GPT with fused attention, fp32, fused AdamW, nothing else."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from shapes import Shape
from torch import Tensor, nn

from sides.turnstile import Turnstile, asked, peak_memory


class Block(nn.Module):
    """Attention and feed-forward block of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        batch, length, width = x_BTD.shape
        qkv = self.qkv(self.norm_1(x_BTD)).view(batch, length, 3, self.heads, width // self.heads)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x_BTD = x_BTD + self.out(y_BHTK.transpose(1, 2).reshape(batch, length, width))
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2's architecture with a tied head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.d_model)
        self.position = nn.Parameter(0.02 * torch.randn(shape.context, shape.d_model))
        self.blocks = nn.Sequential(*(Block(shape.d_model, shape.n_head) for _ in range(shape.n_layer)))
        self.norm = nn.LayerNorm(shape.d_model)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        x_BTD = self.embed(tokens_BT) + self.position[: tokens_BT.shape[1]]
        return F.linear(self.norm(self.blocks(x_BTD)), self.embed.weight)


def main() -> None:
    """Take steps when it is our turn."""
    wanted = asked()
    shape = Shape(**wanted["shape"])
    before = peak_memory()
    torch.manual_seed(1337)
    tokens_N = np.load(wanted["tokens"], mmap_mode="r")
    random = np.random.default_rng(1337)
    model = PlainGPT(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    turnstile = Turnstile({"parameters": count, "peak_bytes_before": before})
    while turnstile.next():
        starts_B = random.integers(len(tokens_N) - shape.context - 1, size=shape.batch)
        windows_BT = torch.from_numpy(
            np.stack([tokens_N[at : at + shape.context + 1] for at in starts_B]).astype(np.int64)
        )
        logits_BTV = model(windows_BT[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), windows_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
