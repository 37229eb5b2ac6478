"""The unit ops under torch's own checks, and `unit_kl` under torch.compile."""

from dataclasses import replace

import pytest
import torch
from unit_inputs import random_pair, run

from sod_kernels import SodWeighting
from sod_kernels._unit_scores import UnitOptions, UnitTensors
from sod_kernels._unit_space import make_space
from sod_kernels.unit_types import UnitOpOutputs

OPTIONS = UnitOptions(
    score="log_prob",
    measures_student=True,
    measures_teacher=True,
    student_vocab_size=37,
    teacher_vocab_size=41,
    divergence="reverse_kl",
    beta=0.5,
    temperature=0.9,
    backend="reference",
)


def _tensors(requires_grad):
    pair = random_pair(dtype=torch.float64)
    ids = (pair.student_ids, pair.teacher_ids)
    steps = torch.zeros(len(pair.student), dtype=torch.int64)
    space = make_space(pair.units, pair.vocab_map, ids, steps, unit_filter=None, masks_first_token=True)
    student = pair.student.requires_grad_(requires_grad)
    spans = (pair.units.student_spans, pair.units.teacher_spans)
    return UnitTensors(student, pair.teacher, *ids, *spans, space.kinds, *space.columns)


def test_opcheck_forward():
    torch.library.opcheck(torch.ops.sod_kernels.unit_kl_forward, (*_tensors(True), *OPTIONS))


def test_opcheck_backward():
    tensors = _tensors(False)
    outputs = UnitOpOutputs(*torch.ops.sod_kernels.unit_kl_forward(*tensors, *OPTIONS))
    saved = (outputs.unit_state, outputs.span_scores, outputs.student_lse)
    grad = torch.linspace(-1, 1, len(tensors.kinds), dtype=torch.float64)
    torch.library.opcheck(torch.ops.sod_kernels.unit_kl_backward, (grad, *tensors, *saved, *OPTIONS))


def test_meta_tensors_give_shapes():
    on_meta = [tensor.to("meta") for tensor in _tensors(False)]
    outputs = UnitOpOutputs(*torch.ops.sod_kernels.unit_kl_forward(*on_meta, *OPTIONS))
    assert [tuple(each.shape) for each in outputs] == [(8,), (8,), (8, 7), (8, 2), *2 * [(15,), (14,)]]


def _objective(student, pair, steps, options):
    out = run(
        replace(pair, student=student), step_ids=steps, num_steps=2, weighting=SodWeighting(), **options
    )
    return out.loss + 0.1 * out.unit_kl.sum(), out.step_weights


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "options",
    [
        {"score": "logit", "topk": 4, "mask_first_token": True},
        {"min_teacher_mass": 0.3, "step_divergence": "abs_log_ratio"},
    ],
    ids=str,
)
def test_compiled_equals_eager(options):
    torch._dynamo.reset()
    pair = random_pair()
    student, teacher = pair.student, pair.teacher
    steps = torch.tensor(8 * [0] + 7 * [1])

    def objective(student, teacher, student_ids, teacher_ids):
        changed = replace(pair, teacher=teacher, student_ids=student_ids, teacher_ids=teacher_ids)
        return _objective(student, changed, steps, options)

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, objective):
        x = student.clone().requires_grad_()
        loss, weights = function(x, teacher, pair.student_ids, pair.teacher_ids)
        results.append((loss, weights, *torch.autograd.grad(loss, x)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


def test_compiled_code_asserts_what_it_cannot_look_at():
    torch._dynamo.reset()
    pair = random_pair()
    steps = torch.zeros(len(pair.student), dtype=torch.int64)

    def loss(ids):
        return run(replace(pair, student_ids=ids), step_ids=steps, num_steps=1).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(pair.student_ids)
    bad = pair.student_ids.clone()
    bad[2] = 37
    with pytest.raises(RuntimeError, match="unit_kl: student_ids out of range"):
        compiled(bad)
