"""Messages of `linear_unit_kl` and `LinearUnitKLLoss` for bad input that `unit_kl` does not have too."""

from types import SimpleNamespace

import pytest
import torch
from linear_unit_inputs import make_case

from sod_kernels import LinearUnitKLLoss, linear_unit_kl
from sod_kernels._checks import unit_kl as checks

PAIR, HEADS = make_case(dtype=torch.float32)
H, W = HEADS["student_hidden"].detach(), HEADS["student_weight"].detach()

CASES = [
    ({"student_hidden": [1.0]}, TypeError, "student_hidden is list; wanted a tensor"),
    (
        {"student_hidden": H[None]},
        ValueError,
        r"student_hidden has shape \(1, 15, 6\); wanted \(rows, H\), packed",
    ),
    ({"teacher_hidden": H.to("meta")}, ValueError, "teacher_hidden is on meta; wanted cpu"),
    (
        {"student_weight": W.double()},
        TypeError,
        "student_weight has dtype torch.float64; wanted one of float32",
    ),
    (
        {"teacher_weight": W},
        ValueError,
        r"teacher_weight has shape \(37, 6\); wanted \(V, 9\) for teacher_hid",
    ),
    ({"student_bias": torch.zeros(4)}, ValueError, r"student_bias has shape \(4,\); wanted \(37,\)"),
    ({"student_logit_scale": 0.0}, ValueError, "student_logit_scale=0.0; wanted a finite number above 0"),
    ({"teacher_softcap": -1.0}, ValueError, "teacher_softcap=-1.0; wanted a finite number above 0"),
    (
        {"student_vocab_size": 38},
        ValueError,
        "student_vocab_size=38; wanted at most 37, the rows of student_w",
    ),
    ({"teacher_vocab_size": 0}, ValueError, "teacher_vocab_size=0; wanted at least 1"),
    ({"student_ids": PAIR.student_ids[:3]}, ValueError, r"student_ids has shape \(3,\); wanted \(15,\)"),
    ({"reduction": "none"}, ValueError, "reduction='none' in a single sweep, .* Use single_sweep=False"),
    ({"chunk_size": 0}, ValueError, "chunk_size=0; wanted at least 1"),
    ({"single_sweep": 1}, TypeError, "single_sweep is int; wanted True or False"),
    ({"topk": 24}, ValueError, "topk=24; wanted at most 23, the shared columns"),
    ({"weighting": torch.ones(1).long()}, TypeError, "weighting's result has dtype torch.int64"),
    ({"units": PAIR.units.to("meta")}, ValueError, "units.student_spans is on meta; wanted cpu"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CASES, ids=lambda value: str(value)[:30])
def test_bad_input_is_named(changes, error, message):
    good = {**HEADS, "units": PAIR.units, "vocab_map": PAIR.vocab_map}
    good |= {"student_ids": PAIR.student_ids, "teacher_ids": PAIR.teacher_ids}
    with pytest.raises(error, match=f"^linear_unit_kl: {message}"):
        linear_unit_kl(**good | changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"score": "mean"}, ValueError, "score='mean'; wanted one of log_prob, logit"),
        ({"topk": 0}, ValueError, "topk=0; wanted at least 1"),
        ({"student_vocab_size": 0}, ValueError, "student_vocab_size=0; wanted at least 1"),
        ({"teacher_softcap": 0.0}, ValueError, "teacher_softcap=0.0; wanted a finite number above 0"),
        ({"reduction": "none"}, ValueError, "reduction='none' in a single sweep"),
        ({"weighting": torch.ones(3)}, TypeError, "weighting is a tensor, which fits one batch only"),
    ],
)
def test_modules_check_their_options_when_made(options, error, message):
    with pytest.raises(error, match=f"^LinearUnitKLLoss: {message}"):
        LinearUnitKLLoss(**options)


def test_no_graph_is_captured_that_would_have_to_wait(monkeypatch):
    ids = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    checks.check_may_plan_units("linear_unit_kl", ids)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    checks.check_may_plan_units("linear_unit_kl", PAIR.student_ids)
    with pytest.raises(
        ValueError, match=r"^linear_unit_kl: called while a CUDA graph is captured, .* outside"
    ):
        checks.check_may_plan_units("linear_unit_kl", ids)
