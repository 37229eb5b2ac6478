"""The kit that judges backends must itself be able to fail: each fault here has to be caught."""

from types import SimpleNamespace

import pytest
import torch

import sod_kernels.reference.backend as reference
from sod_kernels.testing import (
    CASE_REASONS,
    assert_error_relative,
    check_backend_forward_backward,
    check_issue_targets,
    make_case,
    make_near_equal_pair,
    truth,
)
from sod_kernels.types import RowState


def _faulty(forward=None, backward=None):
    """The reference, its results changed by `forward(inputs, stats)` or `backward(inputs, grad)`."""

    def run_forward(inputs, num_steps, spec):
        stats = reference.forward(inputs, num_steps, spec)
        return stats if forward is None else forward(inputs, stats)

    def run_backward(upstream, inputs, row_state, spec, *, out=None):
        grad = reference.backward(upstream, inputs, row_state, spec, out=out)
        return grad if backward is None else backward(inputs, grad)

    return SimpleNamespace(forward=run_forward, backward=run_backward)


def _spoil(field, change):
    return _faulty(forward=lambda inputs, stats: stats._replace(**{field: change(getattr(stats, field))}))


def _only(column, factor):
    factors = torch.ones(len(RowState), dtype=torch.float64)
    factors[column] = factor
    return factors


def _spoil_input(inputs, stats):
    inputs.student_logits[0, 0, 0] += 1.0
    return stats


def _random_noise(inputs, grad):
    return grad + 1e-12 * torch.rand_like(grad) * (inputs.step_ids >= 0)[..., None]


FAULTS = {
    "token_kl off by 1e-4": (_spoil("token_kl", lambda x: x * 1.0001), "token_kl"),
    "entropy off by 1e-4": (_spoil("student_entropy", lambda x: x * 1.0001), "student_entropy"),
    "lse off": (_spoil("row_state", lambda x: x * _only(RowState.TEACHER_LSE, 1.001)), "TEACHER_LSE"),
    "aux off": (_spoil("row_state", lambda x: x * _only(RowState.AUX, 1.001)), "AUX"),
    "row state in float32": (_spoil("row_state", lambda x: x.float()), "row_state"),
    "sums off": (_spoil("step_sums", lambda x: x * 1.00001), "step_sums"),
    "sums in float32": (_spoil("step_sums", lambda x: x.float()), "step_sums"),
    "unwritten memory": (_spoil("token_kl", torch.empty_like), "token_kl"),
    "not zero outside": (_spoil("token_kl", lambda x: torch.where(x == 0, 1e-30, x)), "exactly 0"),
    "not contiguous": (_spoil("token_kl", lambda x: x.T.contiguous().T), "contiguous"),
    "wrong dtype": (_spoil("student_log_probs", lambda x: x.double()), "dtype"),
    "shared outputs": (
        _faulty(forward=lambda inputs, stats: stats._replace(student_entropy=stats.token_kl)),
        "share memory with each other",
    ),
    "input changed": (_faulty(forward=_spoil_input), "an input was changed"),
    "gradient off by 1e-4": (_faulty(backward=lambda inputs, grad: grad * 1.0001), "gradient"),
    "gradient in another dtype": (_faulty(backward=lambda inputs, grad: grad.double()), "dtype"),
    "gradient not zero outside": (_faulty(backward=lambda inputs, grad: grad + 1e-30), "exactly 0"),
    "out ignored": (
        SimpleNamespace(
            forward=reference.forward, backward=lambda *args, out=None: reference.backward(*args)
        ),
        "written over the logits",
    ),
    "gradient not repeatable": (_faulty(backward=_random_noise), "two runs differ"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault):
    backend, message = FAULTS[fault]
    with pytest.raises(AssertionError, match=message):
        check_backend_forward_backward(backend, make_case("plain"))


def test_padding_columns_are_checked():
    def leak(inputs, grad):
        grad = grad.clone()
        grad[..., -1] = torch.where(inputs.step_ids >= 0, 1e-3, 0.0)
        return grad

    with pytest.raises(AssertionError, match="padding columns"):
        check_backend_forward_backward(_faulty(backward=leak), make_case("padded_vocab"))


def test_missed_targets_are_caught():
    with pytest.raises(AssertionError, match="token_kl off"):
        check_issue_targets(_spoil("token_kl", lambda x: x * 1.001), make_case("plain"))
    with pytest.raises(AssertionError, match="gradient off"):
        check_issue_targets(_faulty(backward=lambda inputs, grad: grad * 1.0001), make_case("plain"))


def test_odd_values_must_sit_where_the_truth_has_them():
    exact = torch.tensor([1.0, torch.inf, torch.nan], dtype=torch.float64)
    assert_error_relative("x", exact.float(), exact, exact, dtype=torch.float32)
    for wrong in ([torch.nan, torch.inf, torch.nan], [1.0, -torch.inf, torch.nan], [1.0, torch.inf, 0.0]):
        with pytest.raises(AssertionError, match="the truth is"):
            assert_error_relative("x", torch.tensor(wrong), exact, exact, dtype=torch.float32)
    with pytest.raises(AssertionError, match="shape"):
        assert_error_relative("x", exact[:2], exact, exact, dtype=torch.float32)


def test_near_equal_pairs_land_on_their_target():
    for target in (1e-5, 1e-3, 0.1):
        pair = make_near_equal_pair(4, 5000, target_kl=target, generator=torch.Generator().manual_seed(0))
        log_p, log_q = (logits.log_softmax(-1) for logits in pair)
        value = (log_p.exp() * (log_p - log_q)).sum(-1)
        torch.testing.assert_close(value, torch.full_like(value, target), rtol=0.05, atol=0.0)


def test_cases_hold_what_their_reasons_say():
    assert bool(truth(make_case("teacher_excludes")).token_kl.isinf().any())
    assert bool(truth(make_case("floored")).token_kl.isfinite().all())
    assert int(truth(make_case("bad_rows")).token_kl.isnan().sum()) == 4
    assert bool((truth(make_case("equal")).token_kl == 0).all())
    assert bool((make_case("no_tokens").step_ids == -1).all())
    assert (
        make_case("label_shift").student_logits.stride(0)
        != make_case("label_shift").student_logits[0].numel()
    )
    assert make_case("shared_teacher").teacher_logits.stride(0) == 0
    padded = make_case("padded_vocab")
    assert padded.student_logits.shape[-1] != padded.teacher_logits.shape[-1]
    near = truth(make_case("near_equal")).token_kl
    assert bool(((near > 5e-4) & (near < 2e-3)).sum() == (make_case("near_equal").step_ids >= 0).sum())
    assert all(reason for reason in CASE_REASONS.values())
