"""The custom ops under torch's own checks, torch.compile and re-import."""

import importlib
import subprocess
import sys

import pytest
import torch

from sod_kernels import SodWeighting, StepKLLoss, TurnWeighting, _autograd, step_kl
from sod_kernels.testing import make_case
from sod_kernels.types import TokenStats


def _forward_arguments(with_sampled, divergence="reverse_kl", requires_grad=True, with_reference=False):
    case = make_case(
        "scattered_steps", divergence=divergence, with_sampled=with_sampled, with_reference=with_reference
    )
    case.student_logits.requires_grad_(requires_grad)
    spec = case.spec
    options = (spec.divergence, spec.beta, spec.temperature, spec.vocab_size, spec.min_log_prob, "reference")
    return case, case.inputs, options


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("with_sampled", [True, False])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_opcheck_forward(divergence, with_sampled, with_reference):
    case, inputs, options = _forward_arguments(with_sampled, divergence, with_reference=with_reference)
    torch.library.opcheck(torch.ops.sod_kernels.step_kl_forward, (*inputs, case.num_steps, *options))


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("with_sampled", [True, False])
def test_opcheck_backward(with_sampled, with_reference):
    case, inputs, options = _forward_arguments(
        with_sampled, requires_grad=False, with_reference=with_reference
    )
    stats = TokenStats(*torch.ops.sod_kernels.step_kl_forward(*inputs, case.num_steps, *options))
    arguments = (*case.upstream, *inputs, stats.row_state, *options)
    torch.library.opcheck(torch.ops.sod_kernels.step_kl_backward, arguments)


def test_meta_tensors_give_shapes():
    _, inputs, options = _forward_arguments(True, with_reference=True)
    on_meta = [tensor.to("meta") for tensor in inputs]
    stats = TokenStats(*torch.ops.sod_kernels.step_kl_forward(*on_meta, 7, *options))
    assert [tuple(each.shape) for each in stats] == [(2, 8)] * 5 + [(2, 8, 7), (7, 5)]
    assert stats.step_sums.dtype == stats.row_state.dtype == torch.float64


def _objective(student, teacher, ids, sampled, num_steps, weighting):
    out = step_kl(
        student,
        teacher,
        ids,
        sampled_ids=sampled,
        num_steps=num_steps,
        weighting=weighting,
        step_divergence="abs_log_ratio",
        reduction="sequence_mean",
        backend="reference",
    )
    return out.loss + 0.1 * out.student_log_probs.mean() - 0.01 * out.student_entropy.sum(), out.step_weights


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "weighting",
    [None, SodWeighting(), TurnWeighting(min_turns=1, mean_preserving=True)],
    ids=["none", "sod", "turn"],
)
def test_compiled_equals_eager_with_changing_rows(weighting):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(_objective, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_rows, num_tokens in ((2, 6), (3, 9), (5, 4), (4, 7)):
        generator = torch.Generator().manual_seed(num_rows)
        shape = (num_rows, num_tokens, 13)
        student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
        student.requires_grad_()
        ids = 2 * torch.arange(num_rows)[:, None] + torch.arange(num_tokens) // 2 % 2
        sampled = torch.randint(13, shape[:2], generator=generator)
        results = []
        for function in (compiled, _objective):
            loss, weights = function(student, teacher, ids, sampled, 2 * num_rows, weighting)
            results.append((loss, weights, *torch.autograd.grad(loss, student)))
        for ours, wanted in zip(*results, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.no_cover
def test_compiled_by_inductor_with_a_mask_and_a_module():
    torch._dynamo.reset()
    module = StepKLLoss(weighting=SodWeighting(), backend="reference")
    compiled = torch.compile(module, fullgraph=True)
    student, teacher = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(0)).unbind()
    student.requires_grad_()
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]])
    results = []
    for function in (compiled, module):
        out = function(student, teacher, response_mask=mask, num_steps=8)
        results.append((out.loss, out.step_weights, *torch.autograd.grad(out.loss, student)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)


def test_compiled_code_needs_the_number_of_steps():
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, ids: step_kl(s, s, ids).loss, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="num_steps is None, so the largest step id would have to be read"):
        compiled(torch.zeros(3, 4), torch.tensor([0, 0, 1]))


def test_number_of_steps_may_come_from_the_trajectories_in_compiled_code():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s, ids, trajectory: step_kl(s, -s, ids, step_trajectory=trajectory).loss,
        fullgraph=True,
        backend="eager",
    )
    student, ids = torch.randn(3, 4), torch.tensor([0, 0, 1])
    assert torch.equal(compiled(student, ids, torch.tensor([4, 4])), step_kl(student, -student, ids).loss)


def test_compiled_code_asserts_the_range_of_ids():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s, ids: step_kl(s, s, ids, num_steps=2).loss, fullgraph=True, backend="aot_eager"
    )
    compiled(torch.zeros(3, 4), torch.tensor([0, 0, 1]))
    with pytest.raises(RuntimeError, match="step_kl: step_ids out of range"):
        compiled(torch.zeros(3, 4), torch.tensor([0, 0, 2]))


def test_capture_of_cuda_graphs_needs_the_number_of_steps(monkeypatch):
    from sod_kernels._checks import arguments

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        ValueError, match=r"step_kl: num_steps is None, .* CUDA graphs cannot. Give num_steps="
    ):
        arguments.check_may_wait("step_kl", torch.device("cuda"))
    arguments.check_may_wait("step_kl", torch.device("cpu"))


def test_reload_registers_once():
    before = torch.ops.sod_kernels.step_kl_forward
    importlib.reload(_autograd)
    assert torch.ops.sod_kernels.step_kl_forward is before
    student = torch.randn(3, 4, requires_grad=True)
    step_kl(student, torch.randn(3, 4)).loss.backward()
    assert float(student.grad.abs().max()) > 0


def test_import_again_after_removal_from_the_module_table():
    code = """
import gc, sys, torch
import sod_kernels
for name in [name for name in sys.modules if name.startswith("sod_kernels")]:
    del sys.modules[name]
del sod_kernels
gc.collect()
import sod_kernels
student = torch.randn(3, 4, requires_grad=True)
sod_kernels.step_kl(student, torch.randn(3, 4), backend="reference").loss.backward()
assert float(student.grad.abs().max()) > 0
assert "triton" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300)
