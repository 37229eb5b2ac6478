"""The compiled CPU kernels against the float64 truth, on every awkward case of the kit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod_kernels import step_kl
from sod_kernels.native import backend
from sod_kernels.testing import (
    CASE_REASONS,
    StepKLCase,
    check_backend_forward_backward,
    check_backend_log_probs,
    check_issue_targets,
    make_case,
    make_near_equal_pair,
    truth,
)
from sod_kernels.types import DivergenceSpec, TokenStats

_REASON = backend.availability("cpu")
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run(case: StepKLCase) -> tuple[TokenStats, torch.Tensor]:
    stats = backend.forward(case.inputs, case.num_steps, case.spec)
    return stats, backend.backward(case.upstream, case.inputs, stats.row_state, case.spec)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case(name: str, divergence: str, dtype: torch.dtype) -> None:
    check_backend_forward_backward(backend, make_case(name, divergence=divergence, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case_with_a_reference(name: str, divergence: str, dtype: torch.dtype) -> None:
    case = make_case(name, divergence=divergence, dtype=dtype, with_reference=True)
    check_backend_forward_backward(backend, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_log_probs_of_every_case(name: str, dtype: torch.dtype) -> None:
    check_backend_log_probs(backend, make_case(name, dtype=dtype))


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("name", CASE_REASONS)
def test_every_case_with_a_floor(name: str, divergence: str, with_reference: bool) -> None:
    # -6 nats lies inside every distribution, so a part of the columns is floored and a part is not.
    case = make_case(name, divergence=divergence, min_log_prob=-6.0, with_reference=with_reference)
    check_backend_forward_backward(backend, case)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", ["plain", "scattered_steps", "bad_rows", "teacher_excludes", "label_shift"])
def test_without_sampled_ids(name: str, divergence: str) -> None:
    check_backend_forward_backward(backend, make_case(name, divergence=divergence, with_sampled=False))


@pytest.mark.parametrize("vocab_size", [1, 7, 1000])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_odd_widths(vocab_size: int, divergence: str) -> None:
    case = make_case("odd_width", divergence=divergence)
    narrow = replace(
        case,
        spec=replace(case.spec, vocab_size=vocab_size),
        sampled_ids=torch.where(case.step_ids >= 0, case.sampled_ids % vocab_size, -100),
    )
    check_backend_forward_backward(backend, narrow)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", ["plain", "several_blocks", "near_equal", "full_vocab", "shifted"])
def test_the_promised_accuracy(name: str, divergence: str) -> None:
    check_issue_targets(backend, make_case(name, divergence=divergence))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("shift", [100.0, 120.0, -160.0, 500.0, 3.0e4])
def test_gradient_where_the_log_sum_exp_is_a_coarse_float(shift: float, divergence: str) -> None:
    # The backward sweep measures a row again from |lse| = 128 on; both sides of that border must be exact,
    # also with only one of the two rows beyond it, and for pairs so close that p - q cancels.
    generator = torch.Generator().manual_seed(3)
    student, teacher = make_near_equal_pair(4, 2048, target_kl=3e-3, generator=generator)
    student[::2] += shift
    teacher[2:] -= shift
    case = make_case("plain", divergence=divergence)
    case = replace(
        case,
        student_logits=student.float()[None],
        teacher_logits=teacher.float()[None],
        step_ids=torch.zeros(1, 4, dtype=torch.int64),
        sampled_ids=torch.arange(4)[None],
        num_steps=1,
        spec=replace(case.spec, vocab_size=2048),
        grad_token_kl=torch.ones(1, 4),
        grad_student_log_probs=torch.zeros(1, 4),
        grad_student_entropy=torch.zeros(1, 4),
    )
    _, grad = run(case)
    exact = truth(case).grad_student_logits
    # (1, 4): a row's own norm, so that no row hides behind another
    error = (grad.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error.max()) <= 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_thread_count_changes_no_bit(divergence: str, dtype: torch.dtype) -> None:
    case = make_case("scattered_steps", divergence=divergence, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(run(case))
    finally:
        torch.set_num_threads(before)
    for stats, grad in results[1:]:
        assert torch.equal(grad, results[0][1])
        for ours, first in zip(stats, results[0][0], strict=True):
            assert torch.equal(ours, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_batch_is_its_rows_one_by_one(dtype: torch.dtype) -> None:
    # 19 MB of gradient in float32: large pages are asked for and stores go past the cache.
    generator = torch.Generator().manual_seed(5)
    shape = (2, 16, 151936)
    student = torch.randn(shape, generator=generator).to(dtype)
    teacher = torch.randn(shape, generator=generator).to(dtype)
    step_ids = torch.zeros(2, 16, dtype=torch.int64)
    step_ids[:, ::3] = -1
    spec = DivergenceSpec(
        divergence="reverse_kl", beta=0.5, temperature=1.0, vocab_size=shape[-1], min_log_prob=None
    )

    def gradient(rows: slice) -> torch.Tensor:
        ids = step_ids[:, rows].contiguous()
        ones = torch.ones(ids.shape)
        pair = student[:, rows], teacher[:, rows]
        stats = backend.forward(*pair, ids, None, 1, spec)
        saved = stats.student_lse, stats.teacher_lse, stats.kl_aux, stats.student_entropy
        return backend.backward(ones, torch.empty(0), 0.5 * ones, *pair, ids, None, *saved, spec)

    whole = gradient(slice(None))
    assert bool((whole[step_ids < 0] == 0).all())
    assert bool((whole[step_ids >= 0] != 0).any(-1).all())
    for row in range(shape[1]):
        assert torch.equal(whole[:, row : row + 1], gradient(slice(row, row + 1)))


def test_infinite_divergence_gives_a_gradient_of_zero_and_spares_the_other_terms() -> None:
    case = make_case("teacher_excludes", divergence="reverse_kl")
    none = torch.zeros_like(case.grad_token_kl)
    only_kl = replace(case, grad_student_log_probs=none, grad_student_entropy=none)
    stats, grad = run(only_kl)
    infinite = stats.token_kl.isinf()
    assert bool(infinite.any())
    assert bool((grad[infinite] == 0).all())
    _, with_all = run(case)
    _, without_kl = run(replace(case, grad_token_kl=none))
    assert torch.equal(with_all[infinite], without_kl[infinite])
    assert bool(without_kl[infinite].abs().sum() > 0)


def test_expanded_upstream_gradients_are_accepted() -> None:
    case = make_case("plain")
    expanded = torch.tensor(0.25).expand(case.step_ids.shape)
    _, grad = run(replace(case, grad_token_kl=expanded))
    _, wanted = run(replace(case, grad_token_kl=expanded.contiguous()))
    assert torch.equal(grad, wanted)


def test_float64_is_refused_with_advice() -> None:
    case = make_case("plain", dtype=torch.float64)
    with pytest.raises(TypeError, match=r"student_logits has dtype torch.float64.*backend=\"reference\""):
        run(case)


def _large_gradient(scale: float) -> torch.Tensor:
    """Go through autograd with a gradient of 9.7 MB."""
    generator = torch.Generator().manual_seed(2)
    student = (scale * torch.randn(16, 151936, generator=generator)).requires_grad_()
    teacher = torch.randn(16, 151936, generator=generator)
    step_kl(student, teacher, torch.zeros(16, dtype=torch.int64), backend="native").loss.backward()
    assert student.grad is not None
    return student.grad


def test_a_large_gradient_takes_over_the_pages_of_a_dead_one_only() -> None:
    backend.release_memory()
    first = _large_gradient(1.0)
    kept = first.clone()
    second = _large_gradient(2.0)
    assert second.data_ptr() != first.data_ptr()
    assert torch.equal(first, kept)
    address = second.data_ptr()
    del second
    # What the dead gradient left behind does not show in the next one.
    third = _large_gradient(1.0)
    assert third.data_ptr() == address
    assert torch.equal(third, first)
    view = third[0]
    del third
    assert _large_gradient(3.0).data_ptr() != address
    assert torch.equal(view, first[0])


def test_kept_pages_can_be_given_back() -> None:
    gradient = _large_gradient(1.0)
    num_bytes = gradient.numel() * gradient.element_size()
    backend.release_memory()
    del gradient
    assert num_bytes <= backend.release_memory() < num_bytes + 2**16
    assert backend.release_memory() == 0
