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
    check_backend_log_prob_shards,
    check_backend_log_probs,
    check_backend_shards,
    check_backend_single_visit,
    check_issue_targets,
    make_case,
    make_log_prob_inputs,
    make_near_equal_pair,
    truth,
)
from sod_kernels.types import (
    DivergenceSpec,
    LogProbGradients,
    LogProbInputs,
    TokenGradients,
    TokenInputs,
    TokenStats,
)

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


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_one_visit_of_every_case(
    name: str, divergence: str, dtype: torch.dtype, with_reference: bool
) -> None:
    floor = None if divergence == "jsd" else -6.0
    case = make_case(
        name, divergence=divergence, dtype=dtype, min_log_prob=floor, with_reference=with_reference
    )
    check_backend_single_visit(backend, case)


@pytest.mark.parametrize("name", CASE_REASONS)
def test_one_visit_without_floor_and_ids(name: str) -> None:
    check_backend_single_visit(backend, make_case(name, with_sampled=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_log_probs_of_every_case(name: str, dtype: torch.dtype) -> None:
    check_backend_log_probs(backend, make_case(name, dtype=dtype))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_shards_of_every_case(name: str, divergence: str) -> None:
    case = make_case(name, divergence=divergence, with_reference=True)
    check_backend_shards(backend, case, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_log_probs_of_shards_of_every_case(name: str, dtype: torch.dtype) -> None:
    check_backend_log_prob_shards(backend, make_case(name, dtype=dtype), 3)


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
def test_gradient_far_from_zero_is_that_of_the_row_at_zero(shift: float, divergence: str) -> None:
    # A float near the log-sum-exp is coarse there, and what it lacks must come from the double in the state;
    # also with only one of the two rows far away, and for pairs so close that p - q cancels.
    generator = torch.Generator().manual_seed(3)
    student, teacher = make_near_equal_pair(4, 2048, target_kl=3e-3, generator=generator)
    student[::2] += shift
    teacher[2:] -= shift
    case = make_case("plain", divergence=divergence, with_sampled=False)
    case = replace(
        case,
        student_logits=student.float()[None],
        teacher_logits=teacher.float()[None],
        step_ids=torch.zeros(1, 4, dtype=torch.int64),
        num_steps=1,
        spec=replace(case.spec, vocab_size=2048),
        grad_token_kl=torch.ones(1, 4),
        grad_student_entropy=torch.zeros(1, 4),
    )
    _, grad = run(case)
    exact = truth(case).grad_student_logits
    # (1, 4): a row's own norm, so that no row hides behind another
    error = (grad.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error.max()) <= 2e-5


def everything(case: StepKLCase) -> list[torch.Tensor]:
    """Run all four sweeps."""
    inputs, upstream = make_log_prob_inputs(case)
    stats, grad = run(case)
    log_probs = backend.log_probs_forward(inputs)
    return [*stats, grad, *log_probs, backend.log_probs_backward(upstream, inputs, log_probs.row_state)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_thread_count_changes_no_bit(divergence: str, dtype: torch.dtype) -> None:
    case = make_case("scattered_steps", divergence=divergence, dtype=dtype, with_reference=True)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(everything(case))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            assert torch.equal(ours, first)


def large_batch(dtype: torch.dtype) -> tuple[TokenInputs, DivergenceSpec]:
    """19 MB of gradient in float32: large pages are asked for and stores go past the cache."""
    generator = torch.Generator().manual_seed(5)
    shape = (2, 16, 151936)
    student, teacher = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    step_ids = torch.zeros(2, 16, dtype=torch.int64)
    step_ids[:, ::3] = -1
    spec = DivergenceSpec(
        divergence="reverse_kl", beta=0.5, temperature=1.0, vocab_size=shape[-1], min_log_prob=None
    )
    return TokenInputs(student, teacher, None, step_ids, None), spec


def large_gradient(
    inputs: TokenInputs, spec: DivergenceSpec, out: torch.Tensor | None = None
) -> torch.Tensor:
    ones, absent = torch.ones(inputs.step_ids.shape), torch.empty(0)
    stats = backend.forward(inputs, 1, spec)
    upstream = TokenGradients(ones, absent, absent, 0.5 * ones)
    return backend.backward(upstream, inputs, stats.row_state, spec, out=out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_batch_is_its_rows_one_by_one(dtype: torch.dtype) -> None:
    inputs, spec = large_batch(dtype)
    step_ids = inputs.step_ids
    whole = large_gradient(inputs, spec)
    assert bool((whole[step_ids < 0] == 0).all())
    assert bool((whole[step_ids >= 0] != 0).any(-1).all())
    for row in range(step_ids.shape[1]):
        column = slice(row, row + 1)
        part = TokenInputs(
            inputs.student_logits[:, column],
            inputs.teacher_logits[:, column],
            None,
            step_ids[:, column].contiguous(),
            None,
        )
        assert torch.equal(whole[:, column], large_gradient(part, spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_gradient_over_the_logits_takes_no_pages(dtype: torch.dtype) -> None:
    inputs, spec = large_batch(dtype)
    fresh = large_gradient(inputs, spec)
    wanted = fresh.clone()
    del fresh
    backend.release_memory()
    student = inputs.student_logits
    assert large_gradient(inputs, spec, out=student) is student
    assert torch.equal(student, wanted)
    assert backend.release_memory() == 0


def test_a_gradient_goes_into_other_memory_too() -> None:
    case = make_case("label_shift", with_reference=True)
    stats, wanted = run(case)
    out = torch.full(case.student_logits.shape, torch.nan)
    given = backend.backward(case.upstream, case.inputs, stats.row_state, case.spec, out=out)
    assert given is out
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("function", ["backward", "log_probs_backward"])
def test_memory_that_would_be_spoiled_is_refused(function: str) -> None:
    case = make_case("plain")
    ids, of_ids = make_log_prob_inputs(case)

    def call(student: torch.Tensor, out: torch.Tensor) -> None:
        if function == "backward":
            inputs = case.inputs._replace(student_logits=student)
            backend.backward(case.upstream, inputs, torch.zeros(2, 5, 7).double(), case.spec, out=out)
        else:
            inputs = ids._replace(student_logits=student)
            backend.log_probs_backward(of_ids, inputs, torch.zeros(2, 5, 2).double(), out=out)

    student = case.student_logits
    for bad in (student[:, :4], student.double(), torch.empty(2, 37, 5).mT):
        with pytest.raises(
            ValueError, match=rf"native {function}: out is .* wanted a contiguous tensor like"
        ):
            call(student, bad)
    storage = torch.zeros(2, 6, 37)
    for bad in (storage.view(-1)[:370].view(2, 5, 37), storage.view(-1)[37:407].view(2, 5, 37)):
        with pytest.raises(ValueError, match=rf"native {function}: out shares memory with student_logits"):
            call(storage[:, :-1], bad)


def test_strides_of_a_single_row_do_not_matter() -> None:
    case = make_case("one_row")
    stats, wanted = run(case)
    buffer = torch.zeros(1, 4, 130)
    row = buffer[:, :1].copy_(case.student_logits)
    assert row.stride() != case.student_logits.stride()
    inputs = case.inputs._replace(student_logits=row)
    out = torch.as_strided(buffer, (1, 1, 130), (130, 130, 1))
    backend.backward(case.upstream, inputs, stats.row_state, case.spec, out=out)
    assert torch.equal(row, wanted)


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


def test_an_infinite_reference_kl_spares_the_other_terms() -> None:
    # The reference is made of the teacher, so it is infinite at the same rows; a forward KL is not.
    case = make_case("teacher_excludes", divergence="forward_kl", with_reference=True)
    none = torch.zeros_like(case.grad_token_kl)
    stats, with_all = run(case)
    infinite = stats.token_reference_kl.isinf()
    assert bool(infinite.any())
    assert bool(stats.token_kl[infinite].isfinite().all())
    _, without = run(replace(case, grad_token_reference_kl=none))
    assert torch.equal(with_all[infinite], without[infinite])
    others = ~infinite & (case.step_ids >= 0)
    assert bool((with_all[others] != without[others]).any(-1).all())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_reference_changes_nothing_else(divergence: str) -> None:
    case = make_case("several_blocks", divergence=divergence, with_reference=True)
    absent = torch.empty(0)
    alone, grad_alone = run(replace(case, reference_logits=None, grad_token_reference_kl=absent))
    stats, grad = run(replace(case, grad_token_reference_kl=torch.zeros_like(case.grad_token_kl)))
    # The JSD's student sums come from another loop then, with other bits.
    close = (lambda x, y: torch.allclose(x, y, rtol=1e-6, atol=1e-7)) if divergence == "jsd" else torch.equal
    assert close(grad, grad_alone)
    for name in ("token_kl", "student_log_probs", "student_entropy", "step_sums"):
        assert close(getattr(stats, name), getattr(alone, name))
    assert close(stats.row_state[..., :5], alone.row_state[..., :5])


@pytest.mark.parametrize("num_ids", [1, 300])
def test_the_order_of_the_ids_means_nothing(num_ids: int) -> None:
    generator = torch.Generator().manual_seed(11)
    # Many of 300 ids in 130 columns occur twice and more.
    ids = torch.randint(-1, 130, (1, 1, num_ids), generator=generator)
    order = torch.randperm(num_ids, generator=generator)
    grads = torch.randn(1, 1, num_ids, generator=generator)
    case = make_case("one_row")
    inputs = LogProbInputs(case.student_logits, case.step_ids, ids, 1.0, 130)
    shuffled = inputs._replace(ids=ids[..., order].contiguous())
    stats, again = backend.log_probs_forward(inputs), backend.log_probs_forward(shuffled)
    assert torch.equal(stats.log_probs[..., order], again.log_probs)
    upstream = LogProbGradients(grads, torch.zeros(1, 1))
    grad = backend.log_probs_backward(upstream, inputs, stats.row_state)
    upstream = LogProbGradients(grads[..., order].contiguous(), torch.zeros(1, 1))
    torch.testing.assert_close(backend.log_probs_backward(upstream, shuffled, again.row_state), grad)
    log_p = case.student_logits.double().log_softmax(-1)
    is_there = (ids >= 0).double() * grads
    wanted = torch.zeros_like(log_p).scatter_add(-1, ids.clamp(min=0), is_there)
    torch.testing.assert_close(grad.double(), wanted - log_p.exp() * is_there.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", ["forward", "backward", "log_probs_forward", "log_probs_backward"])
def test_float64_is_refused_with_advice(function: str) -> None:
    case = make_case("plain", dtype=torch.float64)
    inputs, upstream = make_log_prob_inputs(case)
    calls = {
        "forward": lambda: backend.forward(case.inputs, case.num_steps, case.spec),
        "backward": lambda: backend.backward(case.upstream, case.inputs, torch.zeros(2, 5, 7), case.spec),
        "log_probs_forward": lambda: backend.log_probs_forward(inputs),
        "log_probs_backward": lambda: backend.log_probs_backward(upstream, inputs, torch.zeros(2, 5, 2)),
    }
    message = rf"native {function}: student_logits has dtype torch.float64.*backend=\"reference\""
    with pytest.raises(TypeError, match=message):
        calls[function]()


def _autograd_gradient(scale: float) -> torch.Tensor:
    """Go through autograd with a gradient of 9.7 MB."""
    generator = torch.Generator().manual_seed(2)
    student = (scale * torch.randn(16, 151936, generator=generator)).requires_grad_()
    teacher = torch.randn(16, 151936, generator=generator)
    step_kl(student, teacher, torch.zeros(16, dtype=torch.int64), backend="native").loss.backward()
    assert student.grad is not None
    return student.grad


def test_a_large_gradient_takes_over_the_pages_of_a_dead_one_only() -> None:
    backend.release_memory()
    first = _autograd_gradient(1.0)
    kept = first.clone()
    second = _autograd_gradient(2.0)
    assert second.data_ptr() != first.data_ptr()
    assert torch.equal(first, kept)
    address = second.data_ptr()
    del second
    # What the dead gradient left behind does not show in the next one.
    third = _autograd_gradient(1.0)
    assert third.data_ptr() == address
    assert torch.equal(third, first)
    view = third[0]
    del third
    assert _autograd_gradient(3.0).data_ptr() != address
    assert torch.equal(view, first[0])


def test_kept_pages_can_be_given_back() -> None:
    gradient = _autograd_gradient(1.0)
    num_bytes = gradient.numel() * gradient.element_size()
    backend.release_memory()
    del gradient
    assert num_bytes <= backend.release_memory() < num_bytes + 2**16
    assert backend.release_memory() == 0
