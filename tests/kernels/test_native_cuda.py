"""The compiled CUDA kernels against the float64 truth; needs a CUDA device."""

from __future__ import annotations

import pytest
import torch

from sod_kernels.native import backend
from sod_kernels.testing import CASE_REASONS, check_backend_forward_backward, make_case

_REASON = backend.availability("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case(name: str, divergence: str, dtype: torch.dtype) -> None:
    check_backend_forward_backward(
        backend, make_case(name, divergence=divergence, dtype=dtype, device="cuda")
    )


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case_with_a_floor(name: str, divergence: str) -> None:
    case = make_case(name, divergence=divergence, min_log_prob=-6.0, device="cuda")
    check_backend_forward_backward(backend, case)


def test_a_graph_replays_on_new_logits() -> None:
    case = make_case("plain", device="cuda")
    inputs = (case.teacher_logits, case.step_ids, case.sampled_ids, case.num_steps, case.spec)
    student = case.student_logits.clone()
    backend.forward(student, *inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backend.forward(student, *inputs)
    student.mul_(0.5)
    graph.replay()
    wanted = backend.forward(student, *inputs)
    for ours, fresh in zip(captured, wanted, strict=True):
        assert torch.equal(ours, fresh)
