"""The network drawn from its recipe: blocks, shapes and parameter counts, as a small SVG of our own.

Letters: T tokens of a window, D model width, F feed-forward width, H query heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from farthing.recipe.model import GeGlu, LearnedPosition, Model, Rope, SwiGlu
from farthing.report.figures import FONT, INK, PALETTE, REST, Figure
from farthing.sinks.legible import legible

_WIDTH, _BOX, _LEFT, _GAP = 760, 250, 60, 16
_LINE = 17
_COLOURS = {"table": PALETTE[4], "attention": PALETTE[0], "mlp": PALETTE[1], "norm": REST, "sum": INK, "edge": INK}


@dataclass(frozen=True)
class Part:
    """One box of the drawing.

    Args:
        title: what it is.
        kind: which colour it has.
        notes: lines beside it: shapes, options.
        parameters: of one such part; None where it has none of its own.
        inside: whether it is repeated with the block.
        branches: whether the residual stream goes around it, to the next sum.
    """

    title: str
    kind: str
    notes: Sequence[str] = ()
    parameters: int | None = None
    inside: bool = False
    branches: bool = False


def draw(model: Model, vocabulary: int, by_part: Mapping[str, int]) -> Figure:
    """A model as a picture, from the text at the top to its prediction at the bottom.

    Args:
        model: the recipe's [model].
        vocabulary: tokens.
        by_part: parameter counts as the plan has them: embedding, position, attention, mlp, norm, other, head.
    """
    parts = list(_parts(model, vocabulary, by_part))
    total = sum(by_part.values())
    caption = (
        f"The network from top to bottom: {total:,} parameters. The framed part is repeated {model.n_layer} times; counts in "
        f"it are those of one block. T = {model.context_length} tokens, D = {model.d_model}."
    )
    return Figure("architecture", _svg(parts, model.n_layer, title=f"{total:,} parameters"), caption)


def _parts(model: Model, vocabulary: int, by_part: Mapping[str, int]) -> Iterator[Part]:
    layers, norms = model.n_layer, 2 * model.n_layer + (model.norm.placement == "pre")
    norm = by_part.get("norm", 0)
    pre = model.norm.placement == "pre"
    one_norm = Part(_norm_name(model), "norm", ("(T, D)",), None, inside=True, branches=pre)
    yield Part("tokens", "edge", (f"(T)   T = {model.context_length} in a window, {vocabulary:,} different ones",))
    yield Part(
        "token embedding", "table", (f"{vocabulary:,} × {model.d_model}  →  (T, D)",), by_part.get("embedding", 0)
    )
    if isinstance(model.position, LearnedPosition):
        yield Part(
            "+ learned positions", "table", (f"{model.context_length} × {model.d_model}",), by_part.get("position", 0)
        )
    if pre:
        yield one_norm
    yield Part("attention", "attention", _attention(model), by_part.get("attention", 0) // layers, True, not pre)
    yield Part("+", "sum", _branch(model), inside=True)
    if not pre:
        yield one_norm
    if pre:
        yield one_norm
    yield Part(_mlp_name(model), "mlp", _mlp(model), by_part.get("mlp", 0) // layers, True, not pre)
    yield Part("+", "sum", _branch(model), inside=True)
    if not pre:
        yield one_norm
    else:
        # What queries and keys are normed by is counted with the norms; here it is left in their sum.
        yield Part(_norm_name(model), "norm", (f"{norms} norms in all, {norm:,} parameters",))
    tied = ("tied: the token embedding's own weights",) if model.tie_embeddings else ()
    head = None if model.tie_embeddings else by_part.get("head", 0)
    cap = () if model.logit_softcap is None else (f"capped at ±{model.logit_softcap:g}",)
    yield Part("output head", "table", (f"{model.d_model} × {vocabulary:,}  →  (T, {vocabulary:,})", *tied, *cap), head)
    yield Part("prediction", "edge", ("a distribution over the next token, at each of T places",))


def _norm_name(model: Model) -> str:
    return "RMSNorm" if model.norm.kind == "rmsnorm" else "LayerNorm"


def _attention(model: Model) -> tuple[str, ...]:
    width, head, pairs = model.d_model, model.head_dim, model.kv_heads
    kind = "multi-head" if pairs == model.n_head else "multi-query" if pairs == 1 else "grouped-query"
    found = [f"{kind}: {model.n_head} query heads, {pairs} key/value heads, each {head} wide"]
    found.append(f"Q {width} × {width},  K and V {width} × {pairs * head},  out {width} × {width}")
    extra = []
    if isinstance(model.position, Rope):
        extra.append("RoPE on queries and keys")
    if model.attention.qk_norm != "none":
        extra.append(f"queries and keys normed ({model.attention.qk_norm})")
    if model.attention.gate == "head":
        extra.append("a gate a head")
    if model.attention.scope == "document":
        extra.append("within a document only")
    return (*found, "causal" + "".join(f", {one}" for one in extra))


def _mlp_name(model: Model) -> str:
    names = {"gelu": "GELU", "relu2": "squared ReLU", "swiglu": "SwiGLU", "geglu": "GeGLU"}
    return f"feed-forward, {names[model.mlp.kind]}"


def _mlp(model: Model) -> tuple[str, ...]:
    width, hidden = model.d_model, model.hidden
    gated = isinstance(model.mlp, SwiGlu | GeGlu)
    return (f"{'2 × ' if gated else ''}({width} × {hidden}),  then {hidden} × {width}",)


def _branch(model: Model) -> tuple[str, ...]:
    found = []
    if model.dropout:
        found.append(f"dropout {model.dropout:g}")
    if model.layer_scale is not None:
        found.append(f"learned scale, {model.layer_scale:g} at first")
    return (", ".join(found),) if found else ()


def _svg(parts: Sequence[Part], layers: int, *, title: str) -> str:
    """Boxes from top to bottom with their notes beside them; a frame around those that are repeated."""
    drawn: list[str] = []
    y, frame, branch = 10, [0, 0], 0
    for number, part in enumerate(parts):
        first = part.inside and not parts[number - 1].inside
        last = part.inside and not parts[number + 1].inside
        after = not part.inside and number > 0 and parts[number - 1].inside
        if first:
            y += 12
            frame[0] = y - 10
        height = 24 if part.kind == "sum" else max(34, _LINE * len(part.notes) + 8)
        if number:
            drawn.append(_arrow(y - _GAP - (12 if first or after else 0), y))
        if part.branches:
            branch = y - _GAP // 2
        if part.kind == "sum":
            drawn.append(_around(branch, y + height / 2))
        drawn += _box(part, y, height)
        y += height + _GAP
        if last:
            frame[1] = y - 4
            y += 12
    frame_svg = (
        f'<rect x="{_LEFT - 26}" y="{frame[0]}" width="{_WIDTH - _LEFT - 8}" height="{frame[1] - frame[0]}" rx="10" '
        f'fill="none" stroke="{INK}" stroke-dasharray="5 4"/>'
        f'<text x="{_LEFT - 34}" y="{(frame[0] + frame[1]) / 2:.0f}" text-anchor="end" fill="{INK}" font-size="16">'
        f"× {layers}</text>"
    )
    style = f'font-family="{FONT}" font-size="12"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" {style} '
        f'role="img"><title>{escape(title)}</title>{frame_svg}{"".join(drawn)}</svg>'
    )


def _box(part: Part, y: int, height: int) -> Iterator[str]:
    colour, middle = _COLOURS[part.kind], _LEFT + _BOX / 2
    if part.kind == "sum":
        yield f'<circle cx="{middle}" cy="{y + height / 2}" r="10" fill="none" stroke="{colour}"/>'
    else:
        fill = "none" if part.kind == "edge" else colour
        yield (
            f'<rect x="{_LEFT}" y="{y}" width="{_BOX}" height="{height}" rx="6" fill="{fill}" fill-opacity="0.16" '
            f'stroke="{colour}"/>'
        )
    count = "" if part.parameters is None else f"{part.parameters:,}"
    where = f'x="{middle}" text-anchor="middle"'
    baseline = y + height / 2 + 4
    if count:
        yield _text(f'x="{_LEFT + 12}"', baseline, part.title, weight="bold")
        yield _text(f'x="{_LEFT + _BOX - 12}" text-anchor="end"', baseline, count)
    else:
        yield _text(where, baseline, part.title, weight="bold")
    top = y + height / 2 + 4 - _LINE * (len(part.notes) - 1) / 2
    for line, note in enumerate(part.notes):
        yield _text(f'x="{_LEFT + _BOX + 18}"', top + _LINE * line, note)


def _around(top: float, bottom: float) -> str:
    """The residual stream on its way around a branch."""
    x, side = _LEFT + _BOX / 2, _LEFT - 13
    return (
        f'<path d="M{x} {top}H{side}V{bottom}H{x - 16}" stroke="{INK}" fill="none" stroke-opacity="0.7"/>'
        f'<path d="M{x - 17} {bottom - 4}v8l6-4z" fill="{INK}"/>'
    )


def _text(where: str, y: float, text: str, *, weight: str = "normal") -> str:
    return f'<text {where} y="{y:.0f}" fill="{INK}" font-weight="{weight}">{escape(legible(text))}</text>'


def _arrow(top: float, bottom: float) -> str:
    x = _LEFT + _BOX / 2
    return (
        f'<path d="M{x} {top}V{bottom - 5}" stroke="{INK}" fill="none"/>'
        f'<path d="M{x - 4} {bottom - 6}h8l-4 6z" fill="{INK}"/>'
    )
