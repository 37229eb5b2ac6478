"""`step_kl` with a reference policy: the second target, its gradient, and what the weights mix."""

import pytest
import torch
from step_kl_inputs import DIVERGENCES, MASK, make_inputs, plain_kl

from sod_kernels import SodWeighting, StepKLLoss, step_kl, steps_from_mask


def _three(dtype=torch.float64):
    student, teacher, sampled = make_inputs(dtype=dtype)
    reference = make_inputs(dtype=dtype, seed=5)[0].detach()
    return student, teacher, reference, sampled


def test_no_reference_no_second_target():
    student, teacher, _ = make_inputs()
    assert step_kl(student, teacher, response_mask=MASK).token_reference_kl is None


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_is_the_kl_from_the_reference_whatever_the_divergence(divergence):
    student, teacher, reference, _ = _three()
    out = step_kl(student, teacher, response_mask=MASK, reference_logits=reference, divergence=divergence)
    wanted = torch.where(MASK.bool(), plain_kl(student, reference), 0.0)
    torch.testing.assert_close(out.token_reference_kl, wanted)
    assert out.token_reference_kl.requires_grad


@pytest.mark.parametrize("reduction", ["none", "sum", "token_mean", "step_mean", "sequence_mean"])
def test_weights_mix_the_two_targets(reduction):
    student, teacher, reference, _ = _three()
    weights = torch.tensor([1.0, 0.25, 0.0, 1.2], dtype=torch.float64)
    options = {"response_mask": MASK, "reduction": reduction}
    out = step_kl(student, teacher, reference_logits=reference, weighting=weights, **options)
    first = step_kl(student, teacher, weighting=weights, **options).loss
    rest = torch.tensor([0.0, 0.75, 1.0, 0.0], dtype=torch.float64)
    second = step_kl(student, reference, weighting=rest, **options).loss
    torch.testing.assert_close(out.loss, first + second)
    upstream = torch.ones_like(out.loss)
    ours = torch.autograd.grad(out.loss, student, upstream)[0]
    wanted = torch.autograd.grad(first + second, student, upstream)[0]
    torch.testing.assert_close(ours, wanted)


def test_mixing_is_the_kl_from_the_geometric_mixture_up_to_a_constant():
    student, teacher, reference, _ = _three()
    weight = 0.3
    weights = torch.full((4,), weight, dtype=torch.float64)
    out = step_kl(
        student, teacher, response_mask=MASK, reference_logits=reference, weighting=weights, reduction="sum"
    )
    mixture = (weight * teacher.log_softmax(-1) + (1 - weight) * reference.log_softmax(-1)).log_softmax(-1)
    single = step_kl(student, mixture, response_mask=MASK, reduction="sum")
    ours = torch.autograd.grad(out.loss, student)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(single.loss, student)[0])
    assert bool(out.loss > single.loss)


def test_step_weights_come_from_the_teacher_alone():
    student, teacher, reference, _ = _three()
    options = {"response_mask": MASK, "weighting": SodWeighting()}
    without = step_kl(student, teacher, **options)
    out = step_kl(student, teacher, reference_logits=reference, **options)
    assert torch.equal(without.step_weights, out.step_weights)
    assert torch.equal(without.step_divergence, out.step_divergence)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck_with_every_output(divergence):
    student, teacher, reference, sampled = _three()

    def outputs(logits):
        out = step_kl(
            logits,
            teacher,
            response_mask=MASK,
            sampled_ids=sampled,
            reference_logits=reference,
            divergence=divergence,
            temperature=1.3,
            reduction="none",
        )
        return out.token_kl, out.token_reference_kl, out.student_log_probs, out.student_entropy, out.loss

    assert torch.autograd.gradcheck(outputs, (student,))


def test_packed_equals_padded():
    student, teacher, reference, _ = _three()
    ids = steps_from_mask(MASK)
    padded = step_kl(student, teacher, ids, reference_logits=reference)
    packed = step_kl(
        student.flatten(0, 1),
        teacher.flatten(0, 1),
        ids.flatten(),
        reference_logits=reference.flatten(0, 1),
        step_trajectory=torch.tensor([0, 0, 1, 1]),
    )
    assert torch.equal(padded.token_reference_kl.flatten(), packed.token_reference_kl)


def test_a_token_that_the_reference_excludes_is_infinite_or_floored():
    student, teacher, reference, _ = _three()
    reference[0, 1, 4] = -torch.inf
    mixed = torch.full((4,), 0.5, dtype=torch.float64)
    out = step_kl(student, teacher, response_mask=MASK, reference_logits=reference, weighting=mixed)
    assert out.token_reference_kl[0, 1] == torch.inf
    (grad,) = torch.autograd.grad(out.token_kl.sum() + out.token_reference_kl[1].sum(), student)
    assert bool(grad.isfinite().all())
    silent = step_kl(student, teacher, response_mask=MASK, reference_logits=reference)
    assert bool(silent.loss.isfinite())
    floored = step_kl(
        student, teacher, response_mask=MASK, reference_logits=reference, weighting=mixed, min_log_prob=-20.0
    )
    assert bool(floored.loss.isfinite())
    assert bool(floored.token_reference_kl.isfinite().all())


def test_a_wider_reference_needs_the_number_of_valid_columns():
    student, teacher, reference, _ = _three()
    padded = torch.nn.functional.pad(reference, (0, 5), value=torch.nan)
    with pytest.raises(ValueError, match="has 11 columns and reference_logits 16; give vocab_size="):
        step_kl(student, teacher, response_mask=MASK, reference_logits=padded)
    out = step_kl(student, teacher, response_mask=MASK, reference_logits=padded, vocab_size=11)
    assert bool(out.token_reference_kl.isfinite().all())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0]], TypeError, "reference_logits is list; wanted a tensor"),
        (torch.zeros(2, 7, 11), TypeError, "reference_logits has dtype torch.float32; wanted one of float64"),
        (torch.zeros(2, 6, 11).double(), ValueError, r"reference_logits has shape \(2, 6, 11\); wanted"),
    ],
)
def test_bad_reference(bad, error, message):
    student, teacher, _ = make_inputs()
    with pytest.raises(error, match=f"step_kl: {message}"):
        step_kl(student, teacher, response_mask=MASK, reference_logits=bad)


def test_module_passes_the_reference_on():
    student, teacher, reference, _ = _three()
    loss = StepKLLoss(weighting=SodWeighting())
    ours = loss(student, teacher, response_mask=MASK, reference_logits=reference)
    wanted = step_kl(
        student, teacher, response_mask=MASK, reference_logits=reference, weighting=SodWeighting()
    )
    assert torch.equal(ours.loss, wanted.loss)
