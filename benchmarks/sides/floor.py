"""Worker: the matrix products of a training step and nothing else: the time below which no step of this shape can go.

Every linear layer's product forward, its input's gradient and its weights' gradient, the head's, and attention's six
batched products (whole squares: the causal half is not taken off). Query, key and value are one product, as is best.
Each product is taken in the fastest of the layouts tried, and layers have tensors of their own, as in a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shapes import Shape
from torch import Tensor

from sides.turnstile import Turnstile, asked, peak_memory

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Product = Callable[[], Tensor]


def layer_products(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, dict[str, Product]]:
    """The three products of a linear layer, each in the layouts that it could be computed in."""
    x_RI, dy_RO = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    weight_OI = torch.randn(outputs, inputs).to(dtype)
    weight_IO, x_IR, dy_OR = weight_OI.t().contiguous(), x_RI.t().contiguous(), dy_RO.t().contiguous()
    return {
        "forward": {"linear": lambda: F.linear(x_RI, weight_OI), "matmul": lambda: x_RI @ weight_IO},
        "input gradient": {"linear": lambda: F.linear(dy_RO, weight_IO), "matmul": lambda: dy_RO @ weight_OI},
        "weight gradient": {
            "as autograd calls it": lambda: dy_RO.t() @ x_RI,
            "dy transposed": lambda: dy_OR @ x_RI,
            "both transposed": lambda: F.linear(dy_OR, x_IR),
            "transposed result": lambda: x_IR @ dy_RO,
        },
    }


def attention_products(shape: Shape, dtype: torch.dtype) -> dict[str, dict[str, Product]]:
    """Attention's products, forward and backward, over all heads at once."""
    heads, width = shape.batch * shape.n_head, shape.d_model // shape.n_head
    q, k, v, dy = (torch.randn(heads, shape.context, width).to(dtype) for _ in range(4))
    weights, scores = (torch.randn(heads, shape.context, shape.context).to(dtype) for _ in range(2))
    # One large tensor would stay in the cache; these are small enough that it does for a real step too.
    return {
        "scores": {"bmm": lambda: torch.bmm(q, k.transpose(1, 2))},
        "values": {"bmm": lambda: torch.bmm(weights, v)},
        "weights' gradient": {"bmm": lambda: torch.bmm(dy, v.transpose(1, 2))},
        "values' gradient": {"bmm": lambda: torch.bmm(weights.transpose(1, 2), dy)},
        "queries' gradient": {"bmm": lambda: torch.bmm(scores, k)},
        "keys' gradient": {"bmm": lambda: torch.bmm(scores.transpose(1, 2), q)},
    }


def products(shape: Shape, dtype: torch.dtype) -> dict[str, dict[str, Product]]:
    """All products of a step by name, each in its layouts."""
    width, rows = shape.d_model, shape.tokens
    sizes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    found = {}
    for layer in range(shape.n_layer):
        for name, (inputs, outputs) in sizes.items():
            for kind, layouts in layer_products(rows, inputs, outputs, dtype).items():
                found[f"{layer} {name} {kind}"] = layouts
        for name, layouts in attention_products(shape, dtype).items():
            found[f"{layer} attention {name}"] = layouts
    for kind, layouts in layer_products(rows, width, shape.vocab_size, dtype).items():
        found[f"- head {kind}"] = layouts
    return found


def nothing() -> None:
    """What a device needs to be done with its work where calls return when it is."""


def fastest(layouts: dict[str, Product], settle: Callable[[], object], *, rounds: int = 4) -> tuple[str, float]:
    """The layout with the shortest time of some, in turn, and that time in seconds."""
    best = dict.fromkeys(layouts, float("inf"))
    for _ in range(rounds):
        for name, work in layouts.items():
            settle()
            start = time.perf_counter()
            work()
            settle()
            best[name] = min(best[name], time.perf_counter() - start)
    name = min(best, key=lambda layout: best[layout])
    return name, best[name]


def choose(
    shape: Shape, dtype: torch.dtype, settle: Callable[[], object] = nothing
) -> tuple[dict[str, Product], dict[str, Any]]:
    """Each product in its fastest layout; and by kind of product (summed over layers) the layout and seconds."""
    every = products(shape, dtype)
    layout_of, table = {}, {}
    for name, layouts in every.items():
        layer, kind = name.split(" ", 1)
        if kind not in layout_of:
            layout_of[kind], seconds = fastest(layouts, settle)
            layers = 1 if layer == "-" else shape.n_layer
            table[kind] = {"layout": layout_of[kind], "seconds": seconds * layers}
    return {name: layouts[layout_of[name.split(" ", 1)[1]]] for name, layouts in every.items()}, table


@torch.inference_mode()
def main() -> None:
    """Compute the products when it is our turn."""
    wanted = asked()
    shape, dtype = Shape(**wanted["shape"]), DTYPES[wanted["precision"]]
    device = wanted.get("device", "cpu")
    settle = torch.cuda.synchronize if device == "cuda" else nothing
    with torch.device(device):
        chosen, table = choose(shape, dtype, settle)
    turnstile = Turnstile({"products": table, "peak_bytes_before": peak_memory()}, settle=settle)
    while turnstile.next():
        for product in chosen.values():
            product()


if __name__ == "__main__":
    main()
