"""The log-prob ops under torch's own checks, and `topk_step_kl` under torch.compile."""

import pytest
import torch
from topk_inputs import make_teacher_lists, run

from sod_kernels import SodWeighting
from sod_kernels.testing import make_case, make_log_prob_inputs
from sod_kernels.types import LogProbStats


def _arguments(requires_grad):
    case = make_case("scattered_steps")
    case.student_logits.requires_grad_(requires_grad)
    inputs, upstream = make_log_prob_inputs(case)
    return inputs, upstream, (inputs.temperature, inputs.vocab_size, "reference", "topk_step_kl")


def test_opcheck_forward():
    inputs, _, options = _arguments(True)
    torch.library.opcheck(torch.ops.sod_kernels.log_probs_forward, (*inputs[:3], *options))


def test_opcheck_backward():
    inputs, upstream, options = _arguments(False)
    stats = LogProbStats(*torch.ops.sod_kernels.log_probs_forward(*inputs[:3], *options))
    arguments = (*upstream, *inputs[:3], stats.row_state, *options)
    torch.library.opcheck(torch.ops.sod_kernels.log_probs_backward, arguments)


def test_meta_tensors_give_shapes():
    inputs, _, options = _arguments(False)
    on_meta = [tensor.to("meta") for tensor in inputs[:3]]
    stats = LogProbStats(*torch.ops.sod_kernels.log_probs_forward(*on_meta, *options))
    assert [tuple(each.shape) for each in stats] == [(2, 8, 5), (2, 8), (2, 8, 2)]
    assert stats.row_state.dtype == torch.float64


def _objective(student, log_probs, listed, ids, sampled, num_steps, tail):
    out = run(
        student,
        (log_probs, listed),
        ids,
        sampled_ids=sampled,
        num_steps=num_steps,
        tail=tail,
        weighting=SodWeighting(),
        reduction="sequence_mean",
    )
    return out.loss + 0.1 * out.student_log_probs.mean() - 0.01 * out.student_entropy.sum(), out.step_weights


@pytest.mark.no_cover
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_compiled_equals_eager_with_changing_rows(tail):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(_objective, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_rows, num_tokens in ((2, 6), (3, 9), (5, 4)):
        generator = torch.Generator().manual_seed(num_rows)
        shape = (num_rows, num_tokens, 13)
        student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
        student.requires_grad_()
        ids = 2 * torch.arange(num_rows)[:, None] + torch.arange(num_tokens) // 2 % 2
        sampled = torch.randint(13, shape[:2], generator=generator)
        results = []
        for function in (compiled, _objective):
            lists = make_teacher_lists(teacher, 5)
            loss, weights = function(student, *lists, ids, sampled, 2 * num_rows, tail)
            results.append((loss, weights, *torch.autograd.grad(loss, student)))
        for ours, wanted in zip(*results, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"listed": 7}, "topk_step_kl: teacher_ids out of range"),
        ({"sampled": 2}, "topk_step_kl: sampled token not in teacher_ids"),
    ],
)
def test_compiled_code_asserts_what_it_cannot_look_at(change, message):
    torch._dynamo.reset()

    def loss(student, log_probs, listed, sampled):
        options = {"sampled_ids": sampled, "step_divergence": "abs_log_ratio", "num_steps": 1}
        return run(student, (log_probs, listed), **options).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    student, log_probs = torch.zeros(3, 4), torch.full((3, 2), -2.0)
    listed, sampled = torch.tensor([[0, 1]]).expand(3, 2).contiguous(), torch.tensor([0, 1, 0])
    compiled(student, log_probs, listed, sampled)
    if "listed" in change:
        listed = listed.clone()
        listed[1, 1] = change["listed"]
        sampled = torch.zeros_like(sampled)
    else:
        sampled = torch.full_like(sampled, change["sampled"])
    with pytest.raises(RuntimeError, match=message):
        compiled(student, log_probs, listed, sampled)
