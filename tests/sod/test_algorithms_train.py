"""Every algorithm trains the tiny agent, and each check here fails where the algorithm's own term is dropped.

Attempts are fixed, so that what moves is moved by the loss. Whole runs, with rounds of an expert ("gkd") and
a teacher with another tokenizer ("simct"), are in tests/e2e.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.config import AdamWSection
from sod.config_algorithms import (
    ALGORITHMS,
    ATODSection,
    GatedOPDSection,
    GKDSection,
    GRPOSection,
    IWOPDSection,
    OPDSection,
    OPSDAnswerSection,
    SFTSection,
    SODSection,
    STMSection,
    TCODSection,
    TIPSection,
)
from sod.loop.update import UpdateResult, UpdateSettings, run_update
from sod.optim import OptimizerSet
from sod.packing import Batch, num_trained_tokens, pack
from sod.schedules import constant
from sod.scoring import row_logits
from sod.teacher import LocalTeacher
from sod.teacher.cache import Targets
from sod.tokenization import tokenize_for_teacher, tokenize_trajectory
from sod_kernels import sod_weights
from tests.sod.tiny import make_model, sampled_trajectories, sharpened

pytestmark = pytest.mark.no_cover
NUM_UPDATES = 8
ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 2.0]


@dataclass(frozen=True)
class Trained:
    """A student before and after, and what the updates said."""

    batch: Batch
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    results: list[UpdateResult]

    @property
    def first(self):
        return self.results[0].metrics

    @property
    def weights(self):
        return torch.tensor([step.weight for step in self.results[0].steps])

    def change(self, key, chosen=None):
        """Mean of a reading over chosen trained rows, after over before."""
        before, after = (
            one[key] if chosen is None else one[key][chosen] for one in (self.before, self.after)
        )
        return float(after.mean() / before.mean())

    @property
    def lead(self):
        """How much more the log-probs of good attempts rose than those of bad ones, nats per token."""
        return self._rise_over(self.batch.row_advantages > 0)

    @property
    def pull(self):
        """How much more the log-probs of tokens rose that the teacher holds likelier, nats per token."""
        return self._rise_over(self.before["teacher_nll"] < self.before["nll"])

    def _rise_over(self, chosen):
        rise = self.before["nll"] - self.after["nll"]
        return float(rise[chosen].mean() - rise[~chosen].mean())


def readings(student, teacher, start, batch):
    with torch.no_grad():
        reads = ((student, batch), (teacher, batch.of_teacher), (start, batch))
        log_p, log_q, log_r = (row_logits(*each).log_softmax(-1) for each in reads)
    labels = batch.labels[:, None]
    return {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "reference": (log_p.exp() * (log_p - log_r)).sum(-1),
        "nll": -log_p.gather(1, labels).squeeze(1),
        "teacher_nll": -log_q.gather(1, labels).squeeze(1),
    }


def opened_with(told, attempt):
    """An attempt of whose first turn the teacher reads more ids than the student."""
    if not told:
        return attempt
    first, *others = attempt.turns
    return replace(attempt, turns=(replace(first, teacher_context_ids=(*told, *first.context_ids)), *others))


def train(section, round_number=1, algorithm=None, scale=1.0, told=()):
    """Update a student; with ids that the teacher is told, the teacher is the student as it started."""
    start = sharpened(make_model(0))
    teacher = copy.deepcopy(start) if told else sharpened(make_model(1, hidden_size=32))
    student = copy.deepcopy(start)
    attempts = [opened_with(told, one) for one in sampled_trajectories(start, temperature=1.0, turns=3)]
    sequences = [tokenize_trajectory(one) for one in attempts]
    advantages = [scale * one for one in ADVANTAGES]
    (batch,) = pack(
        sequences,
        range(5),
        max_tokens=10_000,
        pad_id=0,
        advantages=advantages,
        told=tokenize_for_teacher(attempts),
    )
    algorithm = algorithm or make_algorithm(section)
    optimizer = OptimizerSet(student, AdamWSection(learning_rate=3e-3))
    scores = Targets(
        LocalTeacher(teacher).hidden(batch.of_teacher) if algorithm.needs_teacher else None,
        LocalTeacher(start).hidden(batch) if algorithm.needs_reference else None,
    )
    settings = UpdateSettings(
        context=LossContext(denominator=num_trained_tokens(sequences), round_number=round_number),
        learning_rate=3e-3,
        learning_rate_scale=1.0,
        max_grad_norm=1.0,
    )
    before = readings(student, teacher, start, batch)
    results = [
        run_update(student, optimizer, algorithm, [batch], lambda *_: scores, settings)
        for _ in range(NUM_UPDATES)
    ]
    return Trained(batch, before, readings(student, teacher, start, batch), results)


def test_sft():
    assert train(SFTSection()).change("nll") < 0.8


def test_grpo():
    assert train(GRPOSection()).lead > 0.1


def test_opd():
    assert train(OPDSection()).change("kl") < 0.9
    assert train(OPDSection(form="sampled")).pull > 0.1


@pytest.mark.parametrize("form", ["vocab", "sampled"])
def test_sod(form):
    made = train(SODSection(form=form, reward_coefficient=0.0))
    assert made.pull > 0.1
    divergence = torch.tensor([step.divergence for step in made.results[0].steps])
    wanted = sod_weights(divergence, made.batch.step_trajectory)
    torch.testing.assert_close(made.weights, wanted, rtol=1e-4, atol=1e-5)
    assert float(wanted.min()) < 0.95


def test_sod_with_the_reward():
    assert train(SODSection()).lead > train(SODSection(reward_coefficient=0.0)).lead + 0.1


def test_atod():
    # Advantages as small as the log-ratios, so that either term can win.
    early, late = (train(ATODSection(), round_number=one, scale=0.15) for one in (1, 80))
    # The teacher fades, the reward takes over, and both stand in the metrics.
    assert early.pull > late.pull + 0.1
    assert late.lead > early.lead + 0.1
    assert [early.first["coefficient/distillation"], late.first["coefficient/distillation"]] == pytest.approx(
        [0.98875, 0.1]
    )
    assert [early.first["coefficient/reward"], late.first["coefficient/reward"]] == pytest.approx(
        [1.0125, 2.0]
    )
    # T-DUR: within a trajectory some turn is near 1, and turns differ.
    by_trajectory = early.weights.view(5, 3)
    assert bool((by_trajectory.amax(1) > by_trajectory.amin(1) + 0.1).all())


def test_gated_opd():
    section = GatedOPDSection(low=0.2, high=1.0, steepness=2.0)
    made = train(section)
    advantages = torch.tensor(ADVANTAGES)[list(made.batch.trajectories)][made.batch.step_trajectory]
    torch.testing.assert_close(made.weights, 0.2 + 0.8 * torch.sigmoid(-2.0 * advantages))
    # The gate alone pulls bad attempts to the teacher; the reward parts good from bad.
    ungraded = replace(make_algorithm(section), reward=constant(0.0))
    assert made.lead > train(section, algorithm=ungraded).lead + 0.3


def test_tcod():
    made = train(TCODSection(rounds_per_turn=50))
    is_first = made.batch.step_turn[made.batch.row_steps] == 0
    assert made.weights.tolist() == [1.0, 0.0, 0.0] * 5
    assert made.change("kl", is_first) < 0.9
    assert made.change("kl", is_first) < made.change("kl", ~is_first)
    everything = train(OPDSection())
    assert made.change("kl", ~is_first) > everything.change("kl", ~is_first) + 0.02


def test_iw_opd():
    made = train(IWOPDSection(gamma=0.5))
    assert made.change("kl") < 0.9
    assert 1.05 < made.first["loss/total"] / made.first["kl/token_mean"] < 1.5


def test_tip():
    made = train(TIPSection(keep=0.3))
    assert made.change("kl") < 0.95
    assert 0.1 < made.first["loss/total"] / made.first["kl/token_mean"] < 0.9


def test_gkd():
    made = train(GKDSection())
    losses = [one.metrics["loss/total"] for one in made.results]
    assert losses[-1] < 0.9 * losses[0]
    # A mixture is nearer than the teacher itself; the reverse KL of the other algorithms is not bounded.
    assert losses[0] < 0.5 * float(made.before["kl"].mean())


def test_opsd():
    # What it is told is all that parts the teacher from the student, and the student takes it over.
    made = train(OPSDAnswerSection(), told=(3, 1, 2, 5))
    losses = [one.metrics["loss/total"] for one in made.results]
    assert losses[0] > 1e-3
    assert losses[-1] < 0.8 * losses[0]
    assert made.change("kl") < 0.8


def test_stm():
    section = STMSection(anchor="constant", constant=0.05)
    made = train(section)
    assert made.change("kl") < 1.0
    # The same weights without the second target let the student go further from where it began.
    bare = replace(make_algorithm(section), needs_reference=False)
    free = train(section, algorithm=bare)
    torch.testing.assert_close(free.weights, made.weights)
    assert float(made.weights.max()) < 0.9
    assert float(made.after["reference"].mean()) < 0.8 * float(free.after["reference"].mean())


def test_no_algorithm_is_left_out():
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {name.removesuffix("_gt").removesuffix("_hint") for name in ALGORITHMS} - here == {"simct"}
