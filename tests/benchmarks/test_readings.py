"""What the benchmarks read off their measurements."""

from __future__ import annotations

import bench
import pytest
import quality
import targets
import torch
from by_kernel import class_of
from shapes import HEADLINE, SHAPES, Shape
from sides.floor import products
from sides.plain import PlainGPT
from torch.utils.flop_counter import FlopCounterMode


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was half as fast in the second round: that is no difference between the two.
    assert bench.ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == {"median": 2.0, "least": 2.0, "most": 2.0}


def test_time_to_a_score_is_the_earliest_of_a_sides_runs() -> None:
    curves = {
        "ours, 1 min": {"curve": [(10.0, 3.0), (20.0, 2.0)]},
        "ours, 2 min": {"curve": [(10.0, 3.5), (40.0, 1.5)]},
        "trainer fp32": {"curve": [(60.0, 2.5)]},
    }
    assert quality.time_to(curves, "ours", 2.5) == pytest.approx(15.0)
    assert quality.time_to(curves, "ours", 1.75) == pytest.approx(36.25)
    assert quality.time_to(curves, "ours", 3.2) == 10.0
    assert quality.time_to(curves, "ours", 1.0) is None
    assert quality.time_to(curves, "trainer", 2.5) == 60.0


def test_every_look_of_a_run_falls_on_a_step_and_the_last_on_its_end() -> None:
    class Worker:
        def go(self, steps: int) -> float:
            return 4.0

        def ask(self, question: str) -> float:
            return 2.0

    run = quality.Run("ours", {}, minutes=1.0, steps=15)
    while run.done < run.steps:
        run.turn(Worker())  # type: ignore[arg-type]
    assert run.done == 15
    assert run.seconds == pytest.approx(60.0)
    assert [seconds for seconds, _ in run.points] == pytest.approx([16.0, 32.0, 48.0, 60.0])


@pytest.mark.parametrize("shape", [SHAPES[HEADLINE], Shape("", 2, 2, 32, 64, 16, 4)])
def test_the_floor_has_the_operations_of_a_models_products(shape: Shape) -> None:
    with torch.device("meta"):
        counted = 0
        for layouts in products(shape, torch.float32).values():
            found = set()
            for product in layouts.values():
                with FlopCounterMode(display=False) as counter:
                    product()
                found.add(counter.get_total_flops())
            assert len(found) == 1  # whatever the layout
            counted += found.pop()
        model = PlainGPT(shape)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name != "position")
    attention = shape.n_layer * 6 * 2 * shape.batch * shape.context**2 * shape.d_model
    assert counted == 6 * shape.tokens * matrices + attention


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::linear", "matrix products"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::copy_", "casts and copies"),
        ("aten::native_layer_norm_backward", "normalisation"),
        ("aten::gelu_backward", "activation"),
        ("aten::_log_softmax", "softmax and loss"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "fused attention"),
        ("aten::embedding_dense_backward", "embedding"),
        ("aten::mul", "other pointwise"),
        ("something_else", "other"),
    ],
)
def test_operations_are_sorted_by_what_they_do(operation: str, kind: str) -> None:
    assert class_of(operation) == kind


def test_the_table_has_a_row_for_every_target_whatever_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read", lambda name: {})
    rows = targets.table()[2:]
    assert len(rows) == len(targets.ROWS)
    assert all(row.endswith("| not measured | open |") for row in rows)
    ratios = {"ours-gelu against trainer-fp32": {"median": 4.6, "least": 4.4, "most": 4.7}}
    kept = {"throughput": {"parts": {HEADLINE: {"ratios": ratios}}}}
    monkeypatch.setattr(bench, "read", lambda name: kept.get(name, {}))
    assert targets.table()[2].endswith("| 4.5 times | 4.60 (4.40 to 4.70) | yes |")
    assert targets.table()[3].endswith("| open |")
