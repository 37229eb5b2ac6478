"""From units to steps: statistics, weights, reductions."""

from dataclasses import replace

import pytest
import torch
from unit_inputs import random_pair, run, run_with_gradient, worked_example

from sod_kernels import SodWeighting, TurnWeighting, sod_weights, tdur_weights

# Rows of `random_pair`: unit starts 1 2 4 | 6 7 10 | 12 13, ends at 15; rows 0, 5 and 11 are in no unit.
STEPS = torch.tensor([-1, 0, 0, 0, 0, -1, 1, 1, 1, 1, 1, -1, 3, 3, 3])
UNIT_STEPS = [0, 0, 0, 1, 1, 1, 3, 3]
TOKENS = [4, 5, 0, 3]


def by_hand(values):
    steps = torch.tensor(UNIT_STEPS)
    means = [
        values[steps == step].mean() if (steps == step).any() else values.new_zeros(()) for step in range(4)
    ]
    return torch.stack(means)


def test_statistics_are_means_over_units():
    out = run(random_pair(), step_ids=STEPS)
    assert out.unit_steps.tolist() == UNIT_STEPS
    assert out.step_tokens.tolist() == TOKENS
    assert out.step_units.tolist() == [3, 3, 0, 2]
    torch.testing.assert_close(out.step_divergence, by_hand(out.unit_kl))
    assert out.step_weights.tolist() == [1, 1, 0, 1]


def test_mask_numbers_the_steps():
    out = run(random_pair(), response_mask=(STEPS >= 0))
    assert out.unit_steps.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert out.step_tokens.tolist() == [4, 5, 3]


@pytest.mark.parametrize("reduction", ["none", "sum", "token_mean", "step_mean", "sequence_mean"])
def test_reductions(reduction):
    pair = random_pair()
    trajectory = torch.tensor([7, 3, 3, 7])
    weights = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
    out = run(pair, step_ids=STEPS, step_trajectory=trajectory, weighting=weights, reduction=reduction)
    ell = weights[UNIT_STEPS] * out.unit_kl
    sums = [float(sum(ell[unit] for unit, step in enumerate(UNIT_STEPS) if step == k)) for k in range(4)]
    wanted = {
        "none": ell,
        "sum": sum(sums),
        "token_mean": sum(sums) / 12,
        "step_mean": (sums[0] / 4 + sums[1] / 5 + sums[3] / 3) / 3,
        "sequence_mean": ((sums[0] + sums[3]) / 7 + sums[1] / 5) / 2,
    }[reduction]
    torch.testing.assert_close(out.loss, torch.as_tensor(wanted, dtype=torch.float64))
    if reduction.endswith("mean"):
        mine = run(
            pair,
            step_ids=STEPS,
            step_trajectory=trajectory,
            weighting=weights,
            reduction=reduction,
            denominator=10,
        )
        counted = {"token_mean": 12, "step_mean": 3, "sequence_mean": 2}[reduction]
        torch.testing.assert_close(mine.loss, out.loss * counted / 10)


def test_a_unit_weighs_the_mean_of_its_tokens():
    token_weights = torch.linspace(0.0, 1.4, 15)
    out = run(random_pair(), step_ids=STEPS, token_weights=token_weights, reduction="none")
    spans = random_pair().units.student_spans.tolist()
    wanted = torch.tensor([token_weights[start:end].mean() for start, end in spans])
    torch.testing.assert_close(out.loss, wanted.double() * out.unit_kl, rtol=1e-6, atol=0)


def test_sod_weights_on_top():
    out, grad = run_with_gradient(random_pair(), step_ids=STEPS, weighting=SodWeighting(), reduction="sum")
    weights = sod_weights(out.step_divergence, step_tokens=out.step_units)
    torch.testing.assert_close(out.step_weights, weights)
    assert 0 < float(weights[1]) != 1
    torch.testing.assert_close(out.loss.detach(), (weights[UNIT_STEPS] * out.unit_kl).sum())
    plain = run_with_gradient(random_pair(), step_ids=STEPS, reduction="sum")[1]
    per_row = weights[STEPS.clamp(min=0)][:, None]
    torch.testing.assert_close(grad, per_row * plain)


def test_turn_weights_on_top():
    out = run(random_pair(), step_ids=STEPS, weighting=TurnWeighting(mean_preserving=True))
    uncertainty = by_hand(out.unit_entropy)
    tokens = torch.tensor(TOKENS)
    wanted = tdur_weights(out.step_divergence, uncertainty, tokens, mean_preserving=True)
    torch.testing.assert_close(out.step_weights, wanted)
    assert not torch.allclose(wanted[[0, 1, 3]], torch.ones(3).double())


def test_a_step_without_units_is_no_anchor():
    """Of the first step only spans are left out, and it must not weigh the others down."""
    steps = torch.tensor([0, 0, 1, 1])
    out = run(worked_example(), step_ids=steps, unit_filter="one_to_one", weighting=SodWeighting())
    assert out.step_units.tolist() == [0, 2]
    assert out.step_tokens.tolist() == [2, 2]
    assert out.step_weights.tolist() == [0, 1]
    torch.testing.assert_close(out.loss, out.unit_kl.sum() / 4)


@pytest.mark.parametrize("score", ["log_prob", "logit"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_log_ratios_are_of_whole_units(score, temperature):
    pair = random_pair(8)
    options = {"step_ids": STEPS, "step_divergence": "abs_log_ratio", "score": score}
    out = run(pair, temperature=temperature, **options)

    def path(logits, ids, spans):
        log_p = (logits / temperature).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
        return torch.stack([log_p[start:end].sum() for start, end in spans.tolist()])

    log_p = path(pair.student, pair.student_ids, pair.units.student_spans)
    log_q = path(pair.teacher, pair.teacher_ids, pair.units.teacher_spans)
    torch.testing.assert_close(out.unit_student_log_probs, log_p)
    torch.testing.assert_close(out.unit_teacher_log_probs, log_q)
    torch.testing.assert_close(out.step_divergence, by_hand((log_p - log_q).abs()))
    torch.testing.assert_close(out.unit_kl, run(pair, temperature=temperature, score=score).unit_kl)
    example = run(worked_example(), step_divergence="abs_log_ratio")
    wanted = [-0.451914 - 0.451914, -0.592459, -0.127694]
    torch.testing.assert_close(
        example.unit_student_log_probs, torch.tensor(wanted).double(), rtol=0, atol=1e-6
    )


def test_what_was_not_asked_for_is_not_there():
    out = run(worked_example())
    assert out.unit_teacher_mass is None
    assert out.unit_student_log_probs is None
    assert out.unit_teacher_log_probs is None
    assert run(worked_example(), min_teacher_mass=0.5).unit_teacher_log_probs is None


def test_upstream_gradients_of_units():
    pair = random_pair()
    student = pair.student.clone().requires_grad_()
    pair = replace(pair, student=student)
    factors = torch.arange(8, dtype=torch.float64)
    out = run(pair)
    (grad,) = torch.autograd.grad((factors * out.unit_kl).sum() + 2 * out.loss, student)
    again = run(pair, reduction="none")
    (wanted,) = torch.autograd.grad(((factors + 2 / 15) * again.loss).sum(), student)
    torch.testing.assert_close(grad, wanted)
    assert not any(each.requires_grad for each in (out.unit_entropy, out.step_divergence, out.step_weights))
