"""The compiled CUDA kernels against the float64 truth; needs a CUDA device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod_kernels.native import backend
from sod_kernels.testing import (
    CASE_REASONS,
    check_backend_forward_backward,
    check_backend_log_probs,
    check_backend_single_visit,
    make_case,
    make_log_prob_inputs,
)

_REASON = backend.availability("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case(name: str, divergence: str, dtype: torch.dtype, with_reference: bool) -> None:
    case = make_case(name, divergence=divergence, dtype=dtype, with_reference=with_reference, device="cuda")
    check_backend_forward_backward(backend, case)
    # The blocks of a cluster add up a row in another order than one block does.
    check_backend_single_visit(backend, case, is_bitwise=False)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case_with_a_floor(name: str, divergence: str, with_reference: bool) -> None:
    case = make_case(
        name, divergence=divergence, min_log_prob=-6.0, with_reference=with_reference, device="cuda"
    )
    check_backend_forward_backward(backend, case)
    # The blocks of a cluster add up a row in another order than one block does.
    check_backend_single_visit(backend, case, is_bitwise=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_log_probs_of_every_case(name: str, dtype: torch.dtype) -> None:
    check_backend_log_probs(backend, make_case(name, dtype=dtype, device="cuda"))


def test_more_ids_than_threads() -> None:
    case = make_case("plain", device="cuda")
    inputs, upstream = make_log_prob_inputs(case)
    # 600 ids in 37 columns: every one many times, on both sides of a block of 256 threads.
    many = inputs._replace(ids=inputs.ids.repeat(1, 1, 120))
    shared = upstream._replace(log_probs=upstream.log_probs.repeat(1, 1, 120) / 120)
    state = backend.log_probs_forward(inputs).row_state
    wanted = backend.log_probs_backward(upstream, inputs, state)
    torch.testing.assert_close(backend.log_probs_backward(shared, many, state), wanted)


@pytest.mark.parametrize("num_steps", [1, 7, 3000])
def test_step_sums_of_any_order(num_steps: int) -> None:
    generator = torch.Generator().manual_seed(4)
    shape = (3, 1000, 5)
    logits = torch.randn((2, *shape), generator=generator).cuda()
    ids = torch.randint(-1, num_steps, shape[:2], generator=generator).cuda()
    case = make_case("plain", with_sampled=False, device="cuda")
    inputs = case.inputs._replace(student_logits=logits[0], teacher_logits=logits[1])
    spec = replace(case.spec, vocab_size=5)
    for step_ids in (ids, ids.flatten().sort().values.view(shape[:2])):
        stats = backend.forward(inputs._replace(step_ids=step_ids), num_steps, spec)
        wanted = torch.zeros(num_steps + 1, dtype=torch.float64, device="cuda")
        wanted.index_add_(0, step_ids.flatten() + 1, stats.token_kl.flatten().double())
        torch.testing.assert_close(stats.step_sums[:, 1], wanted[1:], rtol=1e-12, atol=1e-12)
        tokens = torch.bincount(step_ids.flatten() + 1, minlength=num_steps + 1)[1:]
        assert torch.equal(stats.step_sums[:, 0], tokens.double())


def test_a_graph_replays_on_new_logits() -> None:
    case = make_case("plain", with_reference=True, device="cuda")
    student = case.student_logits.clone()
    inputs = case.inputs._replace(student_logits=student)

    def sweeps() -> tuple[torch.Tensor, ...]:
        stats = backend.forward(inputs, case.num_steps, case.spec)
        return (*stats, backend.backward(case.upstream, inputs, stats.row_state, case.spec))

    sweeps()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sweeps()
    student.mul_(0.5)
    graph.replay()
    for ours, fresh in zip(captured, sweeps(), strict=True):
        assert torch.equal(ours, fresh)
