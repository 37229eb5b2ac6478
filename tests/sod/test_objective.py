"""The terms of an on-policy loss against the equations, written out plainly in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.algorithms.policy import ClippedSurrogate
from sod.config_algorithms import (
    ATODSection,
    GatedOPDSection,
    GKDSection,
    GRPOSection,
    IWOPDSection,
    OPDSection,
    OPSDAnswerSection,
    OPSDHintSection,
    SODSection,
    STMSection,
    TCODSection,
    TIPSection,
)
from sod.packing import pack
from sod.schedules import constant
from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn
from sod_kernels import sod_weights, tdur_weights

V = 7
ADVANTAGES = [1.5, -0.7]


def make_batch(student, seed=0):
    """Two trajectories whose log-probs at sampling time are those of `student` plus a small drift."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ([(2, 3), (1, 2), (1, 4)], [(1, 2), (2, 3), (1, 1), (1, 2)])
    made = []
    for shape in shapes:
        turns = []
        for context, sampled in shape:
            ids = torch.randint(V, (context + sampled,), generator=draw).tolist()
            turns.append(
                Turn(
                    context_ids=tuple(ids[:context]),
                    sampled_ids=tuple(ids[context:]),
                    sampled_log_probs=(-1.0,) * sampled,
                    is_trained=len(turns) != 1,
                )
            )
        made.append(Trajectory(task_id=str(len(made)), turns=tuple(turns)))
    sequences = [tokenize_trajectory(one) for one in made]
    (batch,) = pack(sequences, [0, 1], max_tokens=1000, pad_id=0, advantages=ADVANTAGES)
    log_p = student(batch).detach().log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1)
    drift = 0.4 * torch.randn(batch.num_rows, generator=draw)
    old = torch.zeros_like(batch.log_probs).flatten()
    old[batch.rows + 1] = log_p.float() + drift
    return replace(batch, log_probs=old.view_as(batch.log_probs))


def logits(seed):
    def make(batch):
        generator = torch.Generator().manual_seed(seed)
        return 1.5 * torch.randn(batch.num_rows, V, generator=generator)

    return make


@pytest.fixture
def parts():
    batch = make_batch(logits(0))
    return batch, logits(0)(batch).requires_grad_(), logits(1)(batch)


def at(batch, round_number=1):
    return LossContext(denominator=int(batch.row_loss_mask.sum()), round_number=round_number)


def surrogate(log_p, old, advantages):
    """verl's form of the bounds, in plain arithmetic."""
    ratio = (log_p - old).exp()
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.28)
    worse = torch.maximum(plain, bounded)
    return torch.where(advantages < 0, torch.minimum(worse, -advantages * 3.0), worse)


def pieces(batch, student, teacher):
    exact = student.detach().double().requires_grad_()
    log_p, log_q = exact.log_softmax(-1), teacher.double().log_softmax(-1)
    at_labels = [each.gather(1, batch.labels[:, None]).squeeze(1) for each in (log_p, log_q)]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    old, steps = batch.row_log_probs.double(), batch.row_steps
    means = [
        torch.stack([values[steps == s].mean() for s in range(batch.num_steps)])
        for values in ((old - at_labels[1]).abs(), -old)
    ]
    return exact, at_labels, kl, old, means


def mean(values, batch):
    return (values * batch.row_loss_mask).sum() / batch.row_loss_mask.sum()


def check(output, wanted, student, exact, rtol=1e-5):
    torch.testing.assert_close(output.loss.double(), wanted, rtol=rtol, atol=1e-6)
    ours = torch.autograd.grad(output.loss, student)[0].double()
    torch.testing.assert_close(ours, torch.autograd.grad(wanted, exact)[0], rtol=1e-4, atol=1e-6)


def test_sod_is_the_paper_s_advantage_form(parts):
    batch, student, teacher = parts
    output = make_algorithm(SODSection()).loss(batch, student, teacher, at(batch))
    exact, (log_p, log_q), _, old, (d, _) = pieces(batch, student, teacher)
    w = sod_weights(d, batch.step_trajectory)
    total = w[batch.row_steps] * (log_q - old) + batch.row_advantages
    check(output, mean(surrogate(log_p, old, total), batch), student, exact)
    torch.testing.assert_close(output.step_divergence.double(), d, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.step_weights.double(), w, rtol=1e-5, atol=1e-6)
    assert output.coefficients == {"coefficient/distillation": 1.0, "coefficient/reward": 1.0}


ERRORS = [0, 1, 1, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("section", "weights", "rho"),
    [
        (OPDSection(form="sampled", reward_coefficient=1.0), lambda d, t: torch.ones_like(d), 1.0),
        (
            SODSection(weight="decay_after_error"),
            lambda d, t: 0.9 ** torch.tensor([0, 1, 2, 0, 0, 1, 2.0]),
            1.0,
        ),
        (SODSection(weight="mask_after_error"), lambda d, t: torch.tensor([1, 0, 0, 1, 1, 0, 0.0]), 1.0),
        (SODSection(delta=math.inf), lambda d, t: sod_weights(d, t, delta=math.inf), 1.0),
        (SODSection(reward_coefficient=0.0), sod_weights, 0.0),
    ],
    ids=["uniform", "decay after the first error", "mask after the first error", "no clip", "no GRPO"],
)
def test_every_ablation_of_sod_is_one_setting(parts, section, weights, rho):
    batch, student, _ = parts
    # With this teacher some steps are closer than the first, so that the clip matters.
    teacher = logits(4)(batch)
    batch = replace(batch, step_errors=torch.tensor(ERRORS))
    output = make_algorithm(section).loss(batch, student, teacher, at(batch))
    exact, (log_p, log_q), _, old, (d, _) = pieces(batch, student, teacher)
    w = weights(d, batch.step_trajectory).double()
    total = w[batch.row_steps] * (log_q - old) + rho * batch.row_advantages
    check(output, mean(surrogate(log_p, old, total), batch), student, exact)
    torch.testing.assert_close(output.step_weights.double(), w, rtol=1e-5, atol=1e-6)
    full = make_algorithm(SODSection()).loss(batch, student, teacher, at(batch)).loss
    assert abs(float((full - output.loss).detach())) > 1e-4


@pytest.mark.parametrize(
    "section", [GKDSection(beta=0.3), OPSDAnswerSection(beta=0.3), OPSDHintSection(beta=0.3)]
)
def test_gkd_and_opsd_are_the_divergence_from_the_mixture(parts, section):
    batch, student, teacher = parts
    output = make_algorithm(section).loss(batch, student, teacher, at(batch))
    exact = student.detach().double().requires_grad_()
    log_p, log_q = exact.log_softmax(-1), teacher.double().log_softmax(-1)
    log_m = (0.3 * log_q.exp() + 0.7 * log_p.exp()).log()
    jsd = 0.3 * (log_q.exp() * (log_q - log_m)).sum(-1) + 0.7 * (log_p.exp() * (log_p - log_m)).sum(-1)
    check(output, mean(jsd, batch), student, exact)
    assert output.step_weights.tolist() == [1.0] * batch.num_steps
    assert make_algorithm(section).name == section.name


@pytest.mark.parametrize("round_number", [1, 40, 200])
def test_atod_fades_from_the_teacher_to_the_reward(parts, round_number):
    batch, student, teacher = parts
    output = make_algorithm(ATODSection()).loss(batch, student, teacher, at(batch, round_number))
    exact, (log_p, log_q), _, old, (d, h) = pieces(batch, student, teacher)
    tokens = torch.bincount(batch.row_steps)
    w = tdur_weights(d, h, tokens, batch.step_trajectory)
    p = min(round_number / 80, 1.0)
    total = (1 - 0.9 * p) * w[batch.row_steps] * (log_q - old) + (1 + p) * batch.row_advantages
    check(output, mean(surrogate(log_p, old, total), batch), student, exact)
    assert output.coefficients["coefficient/distillation"] == pytest.approx(1 - 0.9 * p)
    assert output.coefficients["coefficient/reward"] == pytest.approx(1 + p)


def test_the_vocabulary_form_adds_the_reward_as_a_term_of_its_own(parts):
    batch, student, teacher = parts
    section = OPDSection(reward_coefficient=0.5)
    output = make_algorithm(section).loss(batch, student, teacher, at(batch))
    exact, (log_p, _), kl, old, _ = pieces(batch, student, teacher)
    wanted = mean(kl + surrogate(log_p, old, 0.5 * batch.row_advantages.double()), batch)
    check(output, wanted, student, exact)


@pytest.mark.parametrize("form", ["vocab", "sampled"])
def test_token_weights_multiply_the_distillation_term_alone(parts, form):
    batch, student, teacher = parts
    section = IWOPDSection(form=form, gamma=0.5, reward_coefficient=0.3)
    output = make_algorithm(section).loss(batch, student, teacher, at(batch))
    exact, (log_p, log_q), kl, old, _ = pieces(batch, student, teacher)
    own = old if form == "sampled" else log_p.detach()
    gap = (own - log_q).abs() * batch.row_loss_mask
    v = torch.zeros_like(gap)
    for one in (0, 1):
        rows = (batch.step_trajectory[batch.row_steps] == one).nonzero().flatten()
        before = gap[rows].cumsum(0) - gap[rows]
        v[rows] = 1 + 0.5 * (1 - before / gap[rows].sum())
    if form == "sampled":
        wanted = surrogate(log_p, old, v * (log_q - old) + 0.3 * batch.row_advantages)
    else:
        wanted = v * kl + surrogate(log_p, old, 0.3 * batch.row_advantages.double())
    check(output, mean(wanted, batch), student, exact)


@pytest.mark.parametrize(
    ("section", "weights"),
    [
        (TCODSection(rounds_per_turn=2), [1, 1, 0, 1, 1, 0, 0]),
        (GatedOPDSection(form="vocab", low=0.0, high=1.0, steepness=1.0), None),
    ],
    ids=["tcod", "gated"],
)
def test_presets_weigh_steps_by_what_they_say(parts, section, weights):
    batch, student, teacher = parts
    output = make_algorithm(section).loss(batch, student, teacher, at(batch, 3))
    if weights is None:
        a = torch.tensor(ADVANTAGES)[batch.step_trajectory]
        weights = torch.sigmoid(-a).tolist()
    assert output.step_weights.tolist() == pytest.approx(weights)
    exact, (log_p, _), kl, old, _ = pieces(batch, student, teacher)
    wanted = torch.tensor(weights).double()[batch.row_steps] * kl
    if section.reward_coefficient:
        wanted = wanted + surrogate(log_p, old, section.reward_coefficient * batch.row_advantages.double())
    check(output, mean(wanted, batch), student, exact)


def test_tip_keeps_the_share_that_it_was_told(parts):
    batch, student, teacher = parts
    output = make_algorithm(TIPSection(keep=0.4)).loss(batch, student, teacher, at(batch))
    gradient = torch.autograd.grad(output.loss, student)[0].abs().sum(1)
    kept = int((gradient > 0).sum())
    assert kept == pytest.approx(0.4 * int(batch.row_loss_mask.sum()), abs=1)


@pytest.mark.parametrize(
    ("section", "follows", "sharpness"),
    [
        (STMSection(), lambda entropy: 1.5 * entropy, 3.0),
        (STMSection(anchor="constant", sharpness=2.0), lambda _: 0.1, 2.0),
        (STMSection(anchor="running_quantile", sharpness=1.0), lambda _: 0.4, 1.0),
    ],
)
def test_stm_holds_far_steps_to_the_reference(parts, section, follows, sharpness):
    batch, student, teacher = parts
    reference = logits(2)(batch)
    context = replace(at(batch), anchor=0.4, reference=reference)
    output = make_algorithm(section).loss(batch, student, teacher, context)
    exact, _, kl, _, _ = pieces(batch, student, teacher)
    log_p, log_r = exact.log_softmax(-1), reference.double().log_softmax(-1)
    held = (log_p.exp() * (log_p - log_r)).sum(-1)
    rows = [batch.row_steps == s for s in range(batch.num_steps)]
    d = torch.stack([kl.detach()[own].mean() for own in rows])
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    anchor = follows(torch.stack([entropy[own].mean() for own in rows]))
    w = ((anchor + 0.02) / (d + 0.02)).pow(sharpness).clamp(max=1.2)
    by_row = w[batch.row_steps]
    check(output, mean(by_row * kl + (1 - by_row).clamp(min=0) * held, batch), student, exact)
    torch.testing.assert_close(output.step_weights.double(), w, rtol=1e-5, atol=1e-6)
    wanted = float((held.detach() * batch.row_loss_mask).sum())
    assert float(output.token_sums["kl_reference/token"]) == pytest.approx(wanted, rel=1e-5)
    assert bool((w < 1).any())


def test_stm_needs_its_reference(parts):
    batch, student, teacher = parts
    with pytest.raises(ValueError, match=r"stm: context\.reference is None; wanted"):
        make_algorithm(STMSection()).loss(batch, student, teacher, at(batch))


def test_grpo_is_the_reward_alone(parts):
    batch, student, _ = parts
    output = make_algorithm(GRPOSection()).loss(batch, student, None, at(batch))
    exact, (log_p, _), _, old, _ = pieces(batch, student, student.detach())
    check(output, mean(surrogate(log_p, old, batch.row_advantages.double()), batch), student, exact)
    assert not make_algorithm(GRPOSection()).needs_teacher


@pytest.mark.parametrize(
    "section", [GRPOSection(), SODSection(), ATODSection(), OPDSection(reward_coefficient=1.0)]
)
def test_a_group_of_equal_rewards_leaves_the_distillation_alone(parts, section):
    batch, student, teacher = parts
    flat = replace(batch, advantages=torch.zeros(batch.num_steps))
    algorithm = make_algorithm(section)
    output = algorithm.loss(flat, student, teacher if algorithm.needs_teacher else None, at(batch))
    (gradient,) = torch.autograd.grad(output.loss, student)
    if not algorithm.needs_teacher:
        assert float(output.loss.detach()) == 0.0
        assert bool((gradient == 0).all())
        return
    bare = replace(algorithm, reward=constant(0.0))
    without = bare.loss(flat, student, teacher, at(batch))
    torch.testing.assert_close(output.loss, without.loss)
    torch.testing.assert_close(gradient, torch.autograd.grad(without.loss, student)[0])
    assert bool((gradient != 0).any())


@pytest.mark.parametrize(
    "section", [SODSection(), SODSection(weight="decay_after_error"), ATODSection(), TCODSection()]
)
def test_one_turn_is_distilled_in_full(section):
    turns = [Turn(context_ids=(1, 2), sampled_ids=(n, 3), sampled_log_probs=(-1.0, -2.0)) for n in (0, 5)]
    sequences = [tokenize_trajectory(Trajectory(task_id="0", turns=(turn,))) for turn in turns]
    (batch,) = pack(sequences, [0, 1], max_tokens=99, pad_id=0, advantages=ADVANTAGES)
    student, teacher = logits(0)(batch).requires_grad_(), logits(1)(batch)
    output = make_algorithm(section).loss(batch, student, teacher, at(batch))
    assert output.step_weights.tolist() == [1.0, 1.0]
    assert bool(output.loss.isfinite())


def test_grpo_divides_the_logits_by_the_temperature(parts):
    batch, student, _ = parts
    hot = make_algorithm(GRPOSection(), sampling_temperature=2.0).loss(batch, student, None, at(batch))
    same = make_algorithm(GRPOSection()).loss(batch, student / 2.0, None, at(batch))
    torch.testing.assert_close(hot.loss, same.loss)


@pytest.mark.parametrize(
    ("section", "temperature"),
    [(SODSection(), 0.7), (OPDSection(reward_coefficient=1.0), 0.7), (OPDSection(), 1.0)],
)
def test_a_ratio_is_taken_at_the_temperature_of_the_rollouts(section, temperature):
    assert make_algorithm(section, sampling_temperature=0.7).divergence.temperature == temperature


@pytest.mark.parametrize(
    "section",
    [SODSection(reward_coefficient=0.0), OPDSection(form="sampled"), ATODSection(reward_start=0.0)],
    ids=["sod", "opd", "atod"],
)
def test_without_a_reward_nobody_asks_for_advantages(parts, section):
    batch, student, teacher = parts
    bare = replace(batch, advantages=None)
    if isinstance(section, ATODSection):
        section = replace(section, anneal_rounds=0)
    output = make_algorithm(section).loss(bare, student, teacher, at(bare))
    assert bool(output.loss.isfinite())


@pytest.mark.parametrize("weighted", [False, True])
def test_in_expectation_the_sampled_gradient_is_that_of_the_vocabulary_form(weighted):
    """One row, every token in turn with its probability: exact enumeration at the policy that sampled."""
    section = {"form": "sampled", "reward_coefficient": 0.0}
    vocab = {"form": "vocab", "reward_coefficient": 0.0}
    weight = 0.37 if weighted else 1.0
    student, teacher = (logits(seed)(make_batch(logits(0)))[:1].double() for seed in (0, 1))
    exact = student.clone().requires_grad_()
    log_p, log_q = exact.log_softmax(-1), teacher.log_softmax(-1)
    wanted = torch.autograd.grad(weight * (log_p.exp() * (log_p - log_q)).sum(), exact)[0]
    totals = {"sampled": torch.zeros(1, V).double(), "vocab": torch.zeros(1, V).double()}
    for token in range(V):
        turn = Turn(
            context_ids=(1,), sampled_ids=(token,), sampled_log_probs=(float(log_p.detach()[0, token]),)
        )
        sequences = [tokenize_trajectory(Trajectory(task_id="0", turns=(turn,)))]
        (batch,) = pack(sequences, [0], max_tokens=9, pad_id=0)
        for form, settings in (("sampled", section), ("vocab", vocab)):
            made = replace(
                make_algorithm(SODSection(**settings)),
                weight=lambda c: torch.full_like(c.turn, weight, dtype=torch.float64),
            )
            leaf = student.clone().requires_grad_()
            output = made.loss(batch, leaf, teacher, LossContext(denominator=1, round_number=1))
            gradient = torch.autograd.grad(output.loss, leaf)[0]
            totals[form] += log_p.detach().exp()[0, token] * gradient
    torch.testing.assert_close(totals["vocab"], wanted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(totals["sampled"], wanted, rtol=1e-5, atol=1e-7)


def test_a_step_of_weight_zero_silences_a_token_that_the_teacher_excludes(parts):
    batch, student, teacher = parts
    teacher[0, batch.labels[0]] = -torch.inf
    section = SODSection(weight="mask_after_error", reward_coefficient=0.0)
    masked = replace(batch, step_errors=torch.ones_like(batch.step_errors))
    output = make_algorithm(section).loss(masked, student, teacher, at(batch))
    assert float(output.loss.detach()) == 0.0


class TestSurrogate:
    def gradient(self, ratio, advantage, **options):
        log_p = torch.tensor([float(torch.tensor(ratio).log())], requires_grad=True)
        loss, clipped = ClippedSurrogate(**options).loss(log_p, torch.zeros(1), torch.tensor([advantage]))
        return float(loss.detach()), float(torch.autograd.grad(loss.sum(), log_p)[0]), bool(clipped)

    @pytest.mark.parametrize(
        ("ratio", "advantage", "loss", "slope", "clipped"),
        [
            (1.0, 2.0, -2.0, -2.0, False),
            (1.2, 2.0, -2.4, -2.4, False),
            (1.5, 2.0, -2.56, 0.0, True),
            (0.5, 2.0, -1.0, -1.0, False),
            (0.5, -2.0, 1.6, 0.0, True),
            (1.5, -2.0, 3.0, 3.0, False),
            (4.0, -2.0, 6.0, 0.0, True),
        ],
    )
    def test_bounds(self, ratio, advantage, loss, slope, clipped):
        ours = self.gradient(ratio, advantage)
        assert ours == (pytest.approx(loss), pytest.approx(slope), clipped)

    def test_without_the_cap_a_bad_token_is_pushed_as_far_as_it_goes(self):
        assert self.gradient(4.0, -2.0, dual_clip=None) == (pytest.approx(8.0), pytest.approx(8.0), False)

    def test_a_ratio_cannot_overflow(self):
        log_p = torch.tensor([500.0], requires_grad=True)
        loss, _ = ClippedSurrogate(dual_clip=None).loss(log_p, torch.zeros(1), torch.tensor([-1.0]))
        assert bool(loss.isfinite())
