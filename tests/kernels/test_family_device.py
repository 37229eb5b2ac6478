"""Every function, backend and dtype against float64 on the device at hand, and what only a GPU can show."""

from __future__ import annotations

import pytest
import torch

from sod_kernels import BackendUnavailableError, backends, step_kl, token_log_probs
from sod_kernels.testing.family import (
    FAMILY,
    FamilyCase,
    check_family_case,
    family_errors,
    make_family_case,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [name for name, status in backends().items() if status.available[DEVICE]]
COMPILED = [name for name in BACKENDS if name != "reference"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter takes seconds for each of these, and tests of their own put every kernel through it.
INTERPRETED = [("step_kl", "triton", torch.bfloat16), ("linear_step_kl", "triton", torch.float32)]
LISTED = [
    (op, backend, dtype)
    for op in FAMILY
    for backend in BACKENDS
    for dtype in DTYPES
    if DEVICE == "cuda" or backend != "triton" or (op, backend, dtype) in INTERPRETED
]
ON_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
VOCAB_SIZE = 151_936
# With this vocabulary row 14,134 holds entry 2^31.
MANY_ROWS, CROSSING_ROW = 14_400, 14_134


def case_of(op, backend, dtype=torch.float32, **more):
    """The case, or a skip where the backend does not have the function on this device."""
    case = make_family_case(op, dtype=dtype, device=DEVICE, **more)
    if backend == "native" and op == "unit_kl" and DEVICE == "cuda":
        with pytest.raises(BackendUnavailableError):
            case.loss(backend)
        pytest.skip("native has no unit_kl on CUDA, and says so")
    return case


@pytest.mark.parametrize(("op", "backend", "dtype"), LISTED, ids=str)
def test_odd_vocabulary_apart_rows_infinities_and_cut_steps(op, backend, dtype):
    rows = 8 if DEVICE == "cpu" else 11
    check_family_case(case_of(op, backend, dtype, num_rows=rows), backend)


# Without a GPU each function has tests of its own for this.
@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("op", FAMILY)
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_code_agrees_with_eager(op, backend):
    torch._dynamo.reset()
    case = case_of(op, backend)

    def loss(*leaves):
        return case.loss(backend, **dict(zip(case.leaves, leaves, strict=True)))

    compiled = torch.compile(loss, fullgraph=True)(*case.leaf_tensors)
    eager = case.loss_and_gradients(backend)
    for ours, wanted in zip(
        (compiled, *torch.autograd.grad(compiled, case.leaf_tensors)), eager, strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("op", FAMILY)
@pytest.mark.parametrize("backend", COMPILED)
def test_a_graph_replays_on_new_values(op, backend):
    case = case_of(op, backend)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        case.loss_and_gradients(backend)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.loss_and_gradients(backend)
    with torch.no_grad():
        case.leaf_tensors[0].mul_(0.5)
    graph.replay()
    for ours, fresh in zip(captured, case.loss_and_gradients(backend), strict=True):
        assert torch.equal(ours, fresh)


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("op", FAMILY)
@pytest.mark.parametrize("backend", COMPILED)
def test_nothing_waits_for_the_device(op, backend):
    case = case_of(op, backend)
    case.loss_and_gradients(backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.loss_and_gradients(backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("backend", COMPILED)
def test_rows_beyond_two_to_the_31_entries(backend):
    needed = 5 * MANY_ROWS * VOCAB_SIZE * 2
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of free device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    student, teacher = (
        torch.empty(MANY_ROWS, VOCAB_SIZE, dtype=torch.bfloat16, device="cuda").normal_(
            0.0, 3.0, generator=generator
        )
        for _ in range(2)
    )
    student.requires_grad_()
    rows = torch.tensor([0, CROSSING_ROW - 1, CROSSING_ROW, CROSSING_ROW + 1, MANY_ROWS - 1], device="cuda")
    few, few_teacher = student.detach()[rows].requires_grad_(), teacher[rows]
    for call in (
        lambda z, q: step_kl(z, q, reduction="sum", backend=backend).loss,
        lambda z, q: token_log_probs(z, q[:, :4].float().abs().long(), backend=backend).log_probs.sum(),
    ):
        (gradient,) = torch.autograd.grad(call(student, teacher), student)
        # The same rows alone: a row's bits do not depend on the batch it sits in.
        (wanted,) = torch.autograd.grad(call(few, few_teacher), few)
        assert torch.equal(gradient[rows], wanted)
        del gradient
    exact = step_kl(few.detach().cpu().double(), few_teacher.cpu().double(), backend="reference").token_kl
    ours = step_kl(student.detach(), teacher, backend=backend).token_kl[rows].cpu().double()
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def test_the_kit_sees_a_wrong_gradient(monkeypatch):
    case = make_family_case("step_kl", dtype=torch.float32, device="cpu")
    right = FamilyCase.loss
    monkeypatch.setattr(
        FamilyCase, "loss", lambda self, backend: (1.01 if backend == "native" else 1) * right(self, backend)
    )
    loss_error, gradient_error = family_errors(case, "native")
    assert 0.009 < loss_error < 0.011
    assert 0.009 < gradient_error < 0.011
    with pytest.raises(AssertionError, match=r"step_kl native torch.float32: loss off by 0.01 > 2e-05"):
        check_family_case(case, "native")


def test_a_case_has_what_it_promises():
    case = make_family_case("step_kl", dtype=torch.float32, device="cpu")
    (student,) = case.leaf_tensors
    assert student.stride(0) > student.shape[1] == 1031
    assert bool(student[:, 1].isinf().all())
    ids = make_family_case("linear_step_kl", dtype=torch.float32, device="cpu").arguments["step_ids"]
    assert ids[0] == -1
    # A border every four rows that are in a step.
    assert any(ids[1 + border] == ids[border] for border in (4, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "step_lk"}, "make_family_case: op='step_lk'; wanted one of step_kl"),
        ({"op": "step_kl", "num_rows": 3}, "num_rows=3, vocab_size=1031; wanted at least 8 and 64"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_family_case(**arguments, dtype=torch.float32, device="cpu")
