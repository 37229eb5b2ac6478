"""Losses from hidden states: the numbers of the logits, without the logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.algorithms.step_weights import AdvantageGate, DecayAfterError, FirstTurns, FromAnchor, is_causal
from sod.algorithms.token_divergence import Divergence, TokenInputs, sweep_loss
from sod.config_algorithms import (
    ATODSection,
    GatedOPDSection,
    GKDSection,
    GRPOSection,
    IWOPDSection,
    OPDSection,
    SFTSection,
    SODSection,
    STMSection,
    TCODSection,
    TIPSection,
)
from sod.scoring import HiddenRows, TopScores, logits_of, row_log_probs
from sod_kernels import token_log_probs
from sod_kernels.functional import chunked
from tests.sod.test_objective import V, logits, make_batch

# Their loss and gradient take one sweep: the weight of a step is known when the step is over.
SINGLE = (
    OPDSection(),
    OPDSection(reward_coefficient=0.7),
    OPDSection(divergence="jsd", beta=0.3),
    SODSection(form="vocab", step_divergence="kl", reward_coefficient=0.0),
    SODSection(form="vocab", reward_coefficient=1.0),
    SODSection(form="vocab", weight="decay_after_error", reward_coefficient=1.0),
    STMSection(anchor="running_quantile"),
    STMSection(reward_coefficient=0.5, anchor="constant", constant=0.2),
    TCODSection(rounds_per_turn=2),
    GatedOPDSection(form="vocab"),
    GKDSection(),
)
# Their weights, or the advantages of the sampled form, are known only afterwards.
DOUBLE = (
    SODSection(),
    STMSection(anchor="batch_quantile"),
    ATODSection(),
    ATODSection(form="vocab"),
    IWOPDSection(),
    TIPSection(keep=0.4),
)


def states(batch, seed, size, *, dtype=torch.float32, **head):
    """Hidden states of random rows and a random head."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch.num_rows, size, generator=draw, dtype=dtype)
    weight = torch.randn(V, size, generator=draw, dtype=dtype)
    return HiddenRows(hidden=hidden, weight=weight, **head)


@pytest.fixture
def parts():
    batch = replace(make_batch(logits(0)), step_errors=torch.tensor([0, 1, 1, 0, 0, 1, 2]))
    student = states(batch, 0, 5, bias=torch.linspace(-1, 1, V), softcap=4.0)
    return batch, student, states(batch, 1, 6, softcap=3.0), states(batch, 2, 4)


def run(section, batch, student, teacher, reference):
    """Loss, its gradients, and everything else that is told."""
    leaves = [each.clone().requires_grad_() for each in (student.hidden, student.weight, student.bias)]
    made = replace(student, hidden=leaves[0], weight=leaves[1], bias=leaves[2])
    context = LossContext(
        denominator=int(batch.row_loss_mask.sum()), round_number=3, anchor=0.6, reference=reference
    )
    return leaves, made, lambda scores: make_algorithm(section).loss(batch, scores, teacher, context)


def compare(first, second):
    (loss, gradients), (other, others) = first, second
    torch.testing.assert_close(loss.loss, other.loss, rtol=1e-5, atol=1e-6)
    for ours, wanted in zip(gradients, others, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=2e-4, atol=1e-6)
        assert float(wanted.abs().max()) > 1e-3
    for name in ("step_divergence", "step_weights", "step_tokens"):
        torch.testing.assert_close(getattr(loss, name), getattr(other, name), rtol=1e-5, atol=1e-6)
    assert loss.token_sums.keys() == other.token_sums.keys()
    for key, value in loss.token_sums.items():
        torch.testing.assert_close(value, other.token_sums[key], rtol=1e-5, atol=1e-5)
    assert loss.coefficients == other.coefficients


@pytest.mark.parametrize("section", [*SINGLE, *DOUBLE], ids=lambda one: one.name)
def test_hidden_states_give_what_their_logits_give(parts, section, monkeypatch):
    batch, student, teacher, reference = parts
    leaves, made, loss = run(section, batch, student, logits_of(teacher), logits_of(reference))
    wanted = loss(made.logits())
    wanted = wanted, torch.autograd.grad(wanted.loss, leaves)

    leaves, made, loss = run(section, batch, student, teacher, reference)
    with monkeypatch.context() as patch:
        patch.setattr(HiddenRows, "logits", _unwanted)
        if section in SINGLE:
            patch.setattr(chunked, "run_double", _unwanted)
        output = loss(made)
    compare((output, torch.autograd.grad(output.loss, leaves)), wanted)


def _unwanted(*_, **__):
    raise AssertionError("this builds or multiplies more than the loss needs")


@pytest.mark.parametrize("section", [OPDSection(), OPDSection(reward_coefficient=0.5), TIPSection(keep=0.4)])
def test_a_list_of_the_teacher_is_compared_with_hidden_states(parts, section, monkeypatch):
    batch, student, teacher, _ = parts
    top = logits_of(teacher).log_softmax(-1)
    ids = torch.stack([batch.labels, (batch.labels + 2) % V, (batch.labels + 3) % V], dim=1)
    listed = TopScores(log_probs=top.gather(1, ids), ids=ids)
    leaves, made, loss = run(section, batch, student, listed, None)
    wanted = loss(made.logits())
    wanted = wanted, torch.autograd.grad(wanted.loss, leaves)
    leaves, made, loss = run(section, batch, student, listed, None)
    with monkeypatch.context() as patch:
        patch.setattr(HiddenRows, "logits", _unwanted)
        output = loss(made)
    compare((output, torch.autograd.grad(output.loss, leaves)), wanted)


@pytest.mark.parametrize("section", [SFTSection(), GRPOSection()])
def test_without_a_teacher_the_logits_are_made(parts, section):
    batch, student, *_ = parts
    leaves, made, loss = run(section, batch, student, None, None)
    whole = loss(made.logits())
    whole = whole, torch.autograd.grad(whole.loss, leaves)
    output = loss(made)
    compare((output, torch.autograd.grad(output.loss, leaves)), whole)


def test_models_of_unlike_types_and_padded_vocabularies_meet(parts):
    batch, student, _, _ = parts
    teacher = states(batch, 1, 6, dtype=torch.bfloat16)
    padded = replace(
        teacher, weight=torch.cat([teacher.weight, torch.full((3, 6), 9.0, dtype=torch.bfloat16)])
    )
    leaves, made, loss = run(OPDSection(), batch, student, padded, None)
    output = loss(made)
    _, _, plain = run(OPDSection(), batch, student, teacher.hidden.float() @ teacher.weight.float().T, None)
    torch.testing.assert_close(output.loss, plain(made.logits()).loss, rtol=1e-5, atol=1e-6)
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(output.loss, leaves))


def test_log_probs_of_rows_are_made_a_few_at_a_time(parts, monkeypatch):
    batch, student, *_ = parts
    wanted = token_log_probs(student.logits()[:, : V - 1], batch.labels % (V - 1), temperature=0.7).log_probs
    seen, make = [], HiddenRows.logits
    monkeypatch.setattr("sod.scoring.MAX_ENTRIES", 3 * V)
    monkeypatch.setattr(
        HiddenRows, "logits", lambda self, rows=slice(None): seen.append(rows) or make(self, rows)
    )
    for scores in (student, make(student)):
        made = row_log_probs(scores, batch.labels % (V - 1), temperature=0.7, vocab_size=V - 1)
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)
    assert seen == [slice(start, start + 3) for start in range(0, batch.num_rows, 3)]
    none = row_log_probs(make(student)[:0], batch.labels[:0], temperature=1.0, vocab_size=V)
    assert none.shape == (0,)


def test_a_loss_from_hidden_states_wants_them_of_every_model(parts):
    batch, student, teacher, _ = parts
    inputs = TokenInputs(
        batch=batch,
        student=student,
        teacher=logits_of(teacher),
        reference=None,
        vocab_size=None,
        weighting=None,
        denominator=1.0,
    )
    assert not inputs.are_hidden
    with pytest.raises(
        TypeError, match="got Tensor of a model; wanted HiddenRows of all, or use sweep_tokens"
    ):
        sweep_loss(Divergence(), inputs, coefficient=1.0, policy=None)


def test_a_weight_is_causal_only_where_it_says_so():
    assert is_causal(DecayAfterError(decay=0.9), None)
    assert is_causal(FirstTurns(rounds_per_turn=1), None)
    assert is_causal(AdvantageGate(low=0.0, high=1.0, steepness=1.0), None)
    assert is_causal(FromAnchor(anchor="constant"), None)
    assert is_causal(FromAnchor(anchor="first_step"), None)
    assert is_causal(FromAnchor(anchor="running_quantile"), 0.3)
    assert not is_causal(FromAnchor(anchor="running_quantile"), None)
    assert not is_causal(FromAnchor(anchor="batch_quantile"), 0.3)
    assert not is_causal(lambda context: context.statistics.divergence, 0.3)
