"""Algorithms against the equations, written out plainly in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod.algorithms import SFT, LossContext, make_algorithm
from sod.config_algorithms import OPDSection, SFTSection, SODSection
from sod.packing import Batch, pack
from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn

V = 11
VOCAB_SOD = SODSection(form="vocab", reward_coefficient=0.0)


def make_trajectory(shape, first, *, trained=None):
    turns = []
    for k, (context, sampled) in enumerate(shape):
        ids = [(first + 3 * k + j) % V for j in range(context + sampled)]
        turns.append(
            Turn(
                context_ids=tuple(ids[:context]),
                sampled_ids=tuple(ids[context:]),
                sampled_log_probs=(-1.0,) * sampled,
                is_trained=trained is None or trained[k],
            )
        )
    return Trajectory(task_id=str(first), turns=tuple(turns))


@pytest.fixture
def batch() -> Batch:
    trajectories = [
        make_trajectory([(3, 2), (1, 4), (2, 3)], 1),
        make_trajectory([(2, 3), (2, 2)], 5, trained=[True, False]),
    ]
    sequences = [tokenize_trajectory(one) for one in trajectories]
    (made,) = pack(sequences, [0, 1], max_tokens=1000, pad_id=0)
    return made


def over(denominator, round_number=1):
    return LossContext(denominator=denominator, round_number=round_number)


def logits(batch, seed, dtype=torch.float32, width=V):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(batch.num_rows, width, generator=generator).to(dtype)


def plain(batch, student, teacher, weights=None, width=V):
    """Sum over trained tokens of w_k * KL(student || teacher) / their number, and d_k, w_k."""
    log_p = student[:, :width].double().log_softmax(1)
    log_q = teacher[:, :width].double().log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    ratio = (log_p - log_q).gather(1, batch.labels[:, None]).squeeze(1).abs()
    steps, trained = batch.row_steps, batch.row_loss_mask
    d = torch.stack([ratio[steps == s].mean() for s in range(batch.num_steps)])
    w = torch.ones_like(d)
    if weights is not None:
        epsilon, delta = weights
        for s in range(batch.num_steps):
            first = next(
                i for i in range(batch.num_steps) if batch.step_trajectory[i] == batch.step_trajectory[s]
            )
            if s != first:
                w[s] = min((d[first] + epsilon) / (d[s] + epsilon), 1 + delta)
    loss = (w.detach()[steps] * kl * trained).sum() / trained.sum()
    return loss, d, w, (kl * trained).sum()


@pytest.mark.parametrize("name", ["opd", "sod"])
def test_loss_gradient_and_steps_are_the_papers(batch, name):
    section = replace(VOCAB_SOD, delta=0.1, epsilon=0.05) if name == "sod" else OPDSection()
    weights = (0.05, 0.1) if name == "sod" else None
    student, teacher = logits(batch, 0).requires_grad_(), logits(batch, 1)
    denominator = int(batch.row_loss_mask.sum())
    output = make_algorithm(section).loss(batch, student, teacher, over(denominator))
    output.loss.backward()

    exact = student.detach().double().requires_grad_()
    loss, d, w, kl_sum = plain(batch, exact, teacher, weights)
    loss.backward()
    torch.testing.assert_close(output.loss.double(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    if name == "sod":
        torch.testing.assert_close(output.step_divergence.double(), d.detach(), rtol=1e-5, atol=1e-6)
        assert float(w.detach().min()) < 0.9
    torch.testing.assert_close(output.step_weights.double(), w.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.token_sums["kl/token"].double(), kl_sum.detach(), rtol=1e-5, atol=1e-6)
    assert output.step_tokens.tolist() == [2, 4, 3, 3, 2]


def test_a_turn_that_is_not_trained_gets_exactly_no_gradient(batch):
    student = logits(batch, 0).requires_grad_()
    output = make_algorithm(VOCAB_SOD).loss(batch, student, logits(batch, 1), over(7))
    output.loss.backward()
    assert (student.grad[~batch.row_loss_mask] == 0).all()
    assert (student.grad[batch.row_loss_mask].abs().sum(1) > 0).all()


def test_microbatches_add_up_to_the_minibatch():
    trajectories = [make_trajectory([(3, 2), (1, 1 + n)], n) for n in range(4)]
    sequences = [tokenize_trajectory(one) for one in trajectories]
    algorithm = make_algorithm(VOCAB_SOD)
    totals = []
    for max_tokens in (10_000, 1):
        total = 0.0
        for batch in pack(sequences, range(4), max_tokens=max_tokens, pad_id=0):
            table = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
            other = torch.randn(V, V, generator=torch.Generator().manual_seed(1))
            output = algorithm.loss(batch, table[batch.labels], other[batch.labels], over(18))
            total += float(output.loss.detach())
        totals.append(total)
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


def test_columns_that_are_no_tokens_do_not_count(batch):
    student, teacher = logits(batch, 0, width=V + 5).requires_grad_(), logits(batch, 1, width=V + 2)
    narrow, _, _, _ = plain(batch, student.detach(), teacher)
    for algorithm in (make_algorithm(OPDSection(), vocab_size=V),):
        output = algorithm.loss(batch, student, teacher, over(int(batch.row_loss_mask.sum())))
        output.loss.backward()
        assert float(output.loss.detach()) == pytest.approx(float(narrow.detach()), rel=1e-5)
        assert (student.grad[:, V:] == 0).all()
    output = make_algorithm(OPDSection()).loss(batch, student, teacher, over(1))
    wider, _, _, _ = plain(batch, student.detach(), teacher, width=V + 2)
    assert float(output.loss.detach()) == pytest.approx(
        float(wider) * int(batch.row_loss_mask.sum()), rel=1e-5
    )


def test_a_student_under_autocast_meets_a_float32_teacher(batch):
    student, teacher = logits(batch, 0, dtype=torch.bfloat16), logits(batch, 1)
    output = make_algorithm(OPDSection()).loss(batch, student, teacher, over(int(batch.row_loss_mask.sum())))
    loss, _, _, _ = plain(batch, student, teacher)
    assert float(output.loss.detach()) == pytest.approx(float(loss), rel=1e-5)


def test_sft_is_cross_entropy_on_trained_tokens(batch):
    student = logits(batch, 0).requires_grad_()
    output = make_algorithm(SFTSection(), vocab_size=V).loss(batch, student, None, over(9))
    output.loss.backward()
    nll = -student.detach().double().log_softmax(1).gather(1, batch.labels[:, None]).squeeze(1)
    wanted = (nll * batch.row_loss_mask).sum() / 9
    assert float(output.loss.detach()) == pytest.approx(float(wanted), rel=1e-6)
    assert float(output.token_sums["nll/token"]) == pytest.approx(float(wanted) * 9, rel=1e-6)
    means = [float(nll[batch.row_steps == s].mean()) for s in range(batch.num_steps)]
    assert output.step_divergence.tolist() == pytest.approx(means, rel=1e-6)
    assert (student.grad[~batch.row_loss_mask] == 0).all()
    assert not SFT().needs_teacher


def test_distillation_without_a_teacher_is_refused(batch):
    with pytest.raises(ValueError, match="sod: teacher is None; wanted its scores"):
        make_algorithm(VOCAB_SOD).loss(batch, logits(batch, 0), None, over(1))
