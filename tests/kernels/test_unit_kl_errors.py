"""Every message of `unit_kl` for bad input."""

import pytest
import torch
from unit_inputs import worked_example

from sod_kernels import BackendUnavailableError, Units, VocabMap, unit_kl
from sod_kernels.functional import units as front_door

EXAMPLE = worked_example()
X, Y = EXAMPLE.student, EXAMPLE.teacher
LATE = Units(torch.tensor([[0, 5]]), torch.tensor([[0, 1]]))
LATE_TEACHER = Units(torch.tensor([[0, 1]]), torch.tensor([[2, 4]]))
FAR = VocabMap(torch.tensor([0, 5]), torch.tensor([0, 1]))
FAR_TEACHER = VocabMap(torch.tensor([0, 1]), torch.tensor([0, 6]))
IDS = torch.tensor([0, 1, 2, 4])

CASES = [
    ({"student_logits": [[1.0]]}, TypeError, "student_logits is list; wanted a tensor"),
    ({"student_logits": X.long()}, TypeError, "student_logits has dtype torch.int64; wanted one of float64"),
    ({"student_logits": X[None]}, ValueError, r"student_logits has shape \(1, 4, 5\); wanted \(rows, voc"),
    (
        {"teacher_logits": Y.float()},
        TypeError,
        "teacher_logits has dtype torch.float32; wanted one of float64",
    ),
    ({"teacher_logits": Y[0]}, ValueError, r"teacher_logits has shape \(6,\); wanted \(rows, vocabulary\)"),
    ({"teacher_logits": Y.to("meta")}, ValueError, "teacher_logits is on meta; wanted cpu"),
    ({"student_ids": IDS[:3]}, ValueError, r"student_ids has shape \(3,\); wanted \(4,\)"),
    ({"student_ids": IDS.float()}, TypeError, "student_ids has dtype torch.float32; wanted one of int64"),
    ({"teacher_ids": IDS}, ValueError, r"teacher_ids has shape \(4,\); wanted \(3,\)"),
    ({"student_ids": IDS + 1}, ValueError, r"student_ids holds 5 at \[3\]; wanted ids from 0 to 4"),
    ({"student_ids": IDS - 1}, ValueError, r"student_ids holds -1 at \[0\]; wanted ids from 0 to 4"),
    ({"teacher_ids": IDS[:3] + 5}, ValueError, r"teacher_ids holds 6 at \[1\]; wanted ids from 0 to 5"),
    (
        {"student_vocab_size": 6},
        ValueError,
        "student_vocab_size=6; wanted at most 5, the columns of student_l",
    ),
    ({"teacher_vocab_size": 0}, ValueError, "teacher_vocab_size=0; wanted at least 1"),
    (
        {"student_vocab_size": 4},
        ValueError,
        r"vocab_map.student_columns holds 4 at \[3\]; wanted ids from 0 to 3",
    ),
    ({"vocab_map": FAR}, ValueError, r"vocab_map.student_columns holds 5 at \[1\]; wanted ids from 0 to 4"),
    (
        {"vocab_map": FAR_TEACHER},
        ValueError,
        r"vocab_map.teacher_columns holds 6 at \[1\]; wanted ids from 0",
    ),
    ({"vocab_map": (IDS, IDS)}, TypeError, "vocab_map is tuple; wanted a VocabMap"),
    ({"units": [(0, 1)]}, TypeError, "units is list; wanted Units"),
    ({"units": LATE}, ValueError, "units.student_spans ends at row 5; student_ids has 4 entries"),
    ({"units": LATE_TEACHER}, ValueError, "units.teacher_spans ends at row 4; teacher_ids has 3 entries"),
    ({"units": LATE.to("meta")}, ValueError, "units.student_spans is on meta; wanted cpu"),
    (
        {"score": "logprob"},
        ValueError,
        "score='logprob'; wanted one of log_prob, logit. Did you mean 'log_prob'",
    ),
    ({"unit_filter": "1:1"}, ValueError, "unit_filter='1:1'; wanted one of one_to_one"),
    ({"topk": 0}, ValueError, "topk=0; wanted at least 1"),
    ({"topk": 5}, ValueError, "topk=5; wanted at most 4, the shared columns, or None for all"),
    ({"topk": 2.0}, TypeError, "topk is float; wanted an integer"),
    ({"mask_first_token": 1}, TypeError, "mask_first_token is int; wanted True or False"),
    (
        {"mask_first_token": True, "unit_filter": "one_to_one"},
        ValueError,
        "mask_first_token=True with unit_filter='one_to_one', which leaves no spans",
    ),
    ({"min_teacher_mass": 0.0}, ValueError, "min_teacher_mass=0.0; wanted a finite number above 0"),
    ({"min_teacher_mass": 2.0}, ValueError, "min_teacher_mass=2.0; wanted a probability, at most 1"),
    ({"min_teacher_mass": "x"}, TypeError, "min_teacher_mass is str; wanted a Python number"),
    ({"divergence": "kl"}, ValueError, "divergence='kl'; wanted one of reverse_kl"),
    ({"beta": 0.5}, ValueError, "beta=0.5 with divergence='reverse_kl', which has no mixture"),
    ({"temperature": 0.0}, ValueError, "temperature=0.0; wanted a finite number above 0"),
    ({"step_divergence": "d"}, ValueError, "step_divergence='d'; wanted one of kl, abs_log_ratio"),
    ({"reduction": "mean"}, ValueError, "reduction='mean'; wanted one of none"),
    ({"backend": "cuda"}, ValueError, "backend='cuda'; wanted one of auto"),
    ({"weighting": 2}, TypeError, "weighting is int; wanted None"),
    ({"weighting": torch.ones(1).int()}, TypeError, "weighting's result has dtype torch.int32"),
    ({"step_ids": torch.zeros(3).int()}, ValueError, r"step_ids has shape \(3,\); wanted \(4,\)"),
    ({"step_ids": torch.full((4,), -2)}, ValueError, r"step_ids holds -2 at \[0\]"),
    ({"token_weights": torch.ones(3)}, ValueError, r"token_weights has shape \(3,\); wanted \(4,\)"),
    ({"denominator": 0.0}, ValueError, "denominator=0.0; wanted a finite number above 0"),
    ({"backend": "native"}, BackendUnavailableError, "float32 and take no float64"),
]


def call(**changes):
    arguments = {
        "student_logits": X,
        "teacher_logits": Y,
        "units": EXAMPLE.units,
        "vocab_map": EXAMPLE.vocab_map,
        "student_ids": EXAMPLE.student_ids,
        "teacher_ids": EXAMPLE.teacher_ids,
    }
    return unit_kl(**{**arguments, **changes})


@pytest.mark.parametrize(("changes", "error", "message"), CASES, ids=lambda value: str(value)[:40])
def test_bad_input_is_named(changes, error, message):
    with pytest.raises(error, match=message) as caught:
        call(**changes)
    if error is not BackendUnavailableError:
        assert str(caught.value).startswith("unit_kl: ")


@pytest.mark.parametrize("spans", [[[0, 2], [1, 3]], [[2, 3], [0, 1]], [[0, 0]]])
def test_units_that_overlap_run_back_or_are_empty_do_not_come_to_be(spans):
    spans = torch.tensor(spans)
    fine = torch.stack([torch.arange(len(spans)), torch.arange(1, len(spans) + 1)], -1)
    for pair in ((spans, fine), (fine, spans)):
        with pytest.raises(ValueError, match=r"spans\[\d\] is \[\d, \d\); wanted at least one row"):
            Units(*pair)


def test_columns_that_occur_twice_do_not_come_to_be():
    with pytest.raises(ValueError, match="student_columns holds 1 twice"):
        VocabMap(torch.tensor([1, 1]), torch.tensor([0, 1]))


def test_ids_of_units_that_are_not_compared_may_be_anything():
    ids = torch.tensor([0, 1, 2, 99])
    out = call(student_ids=ids, step_ids=torch.tensor([0, 0, 0, -1]))
    assert float(out.unit_kl[2]) == 0


def test_native_kernels_are_for_the_cpu(monkeypatch):
    monkeypatch.setattr(front_door._dispatch, "resolve", lambda *arguments, **options: "native")
    with pytest.raises(
        BackendUnavailableError, match="unit_kl: backend 'native' has no unit kernels for meta"
    ):
        front_door._resolve("native", X.to("meta"))


def test_double_backward_is_refused():
    student = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(call(student_logits=student).loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="unit_kl: the gradient of the gradient was asked for"):
        grad.sum().backward()
