"""One update: microbatches equal the whole, a bad gradient changes nothing, misaligned data is named."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from sod.algorithms import LossContext, LossOutput, make_algorithm
from sod.config import AdamWSection
from sod.config_algorithms import SFTSection, SODSection
from sod.errors import ModelError, RolloutError
from sod.loop.alignment import Canary, check_versions
from sod.loop.update import UpdateSettings, run_update
from sod.optim import OptimizerSet
from sod.packing import num_trained_tokens, pack
from sod.scoring import check_head, row_logits
from sod.teacher import Capability, LocalTeacher
from sod.teacher.cache import RoundScores, RoundTargets, Targets
from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn
from tests.sod.tiny import V, make_model, sampled_trajectories, sharpened

TEACHER_WIDTH = 32


@pytest.fixture
def parts():
    student, teacher = make_model(0), make_model(1, hidden_size=TEACHER_WIDTH)
    trajectories = sampled_trajectories(student)
    sequences = [tokenize_trajectory(one) for one in trajectories]
    return student, LocalTeacher(teacher), trajectories, sequences


def settings(sequences, **more):
    values = {"learning_rate": 1e-2, "learning_rate_scale": 1.0, "max_grad_norm": 1.0, **more}
    return UpdateSettings(
        context=LossContext(denominator=num_trained_tokens(sequences), round_number=1), **values
    )


def test_rows_are_scored_as_the_whole_model_does(parts):
    student, _, _, sequences = parts
    for batch in pack(sequences, range(5), max_tokens=30, pad_id=0):
        whole = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        wanted = whole.flatten(0, 1)[batch.rows]
        torch.testing.assert_close(row_logits(student, batch), wanted, rtol=1e-4, atol=1e-5)


def test_microbatches_make_the_same_update_as_the_whole(parts):
    student, teacher, _, sequences = parts
    results = []
    for max_tokens in (10_000, 20):
        model = copy.deepcopy(student)
        batches = pack(sequences, range(5), max_tokens=max_tokens, pad_id=0)
        optimizer = OptimizerSet(model, AdamWSection(learning_rate=1e-2, eps=1e-3))
        result = run_update(
            model,
            optimizer,
            make_algorithm(SODSection(form="vocab", reward_coefficient=0.0)),
            batches,
            lambda _, batch: Targets(teacher.hidden(batch), None),
            settings(sequences),
        )
        results.append((model, result, len(batches)))
    (whole, first, few), (parts_of, second, many) = results
    assert (few, many) == (1, 5)
    for key in ("loss/total", "kl/token_mean", "step/weight_mean", "grad/norm"):
        assert first.metrics[key] == pytest.approx(second.metrics[key], rel=1e-4), key
    for a, b, c in zip(whole.parameters(), parts_of.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.equal(a, c)
    assert first.metrics["update/tokens"] == num_trained_tokens(sequences)
    assert first.metrics["update/steps"] == 10
    assert {(s.trajectory, s.turn) for s in second.steps} == {(i, k) for i in range(5) for k in (0, 1)}


def test_an_update_lowers_its_own_loss(parts):
    student, teacher, _, sequences = parts
    batches = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    optimizer = OptimizerSet(student, AdamWSection(learning_rate=3e-3))
    losses = [
        run_update(
            student,
            optimizer,
            make_algorithm(SODSection(form="vocab", reward_coefficient=0.0)),
            batches,
            lambda _, batch: Targets(teacher.hidden(batch), None),
            settings(sequences),
        ).metrics["kl/token_mean"]
        for _ in range(8)
    ]
    assert losses[-1] < 0.8 * losses[0]


class Explodes:
    name = "explodes"
    needs_teacher = False

    def loss(self, batch, student, teacher, context):
        ones = torch.ones(batch.num_steps)
        return LossOutput(
            loss=student.hidden.sum() * math.inf,
            token_sums={},
            step_divergence=ones,
            step_weights=ones,
            step_tokens=ones.long(),
        )


def test_a_gradient_that_is_not_finite_changes_nothing(parts):
    student, _, _, sequences = parts
    before = copy.deepcopy(student.state_dict())
    optimizer = OptimizerSet(student, AdamWSection(learning_rate=1e-2))
    batches = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    result = run_update(
        student, optimizer, Explodes(), batches, lambda *_: Targets(None, None), settings(sequences)
    )
    assert result.is_skipped
    assert result.metrics["update/is_skipped"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert optimizer.state_dict()[0]["state"] == {}
    assert all(parameter.grad is None for parameter in student.parameters())


def test_autocast_rounds_the_student_and_keeps_its_weights(parts):
    student, _, _, sequences = parts
    (batch,) = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    seen = []
    optimizer = OptimizerSet(student, AdamWSection(learning_rate=1e-2))
    result = run_update(
        student,
        optimizer,
        make_algorithm(SFTSection()),
        [batch],
        lambda *_: Targets(None, None),
        settings(sequences, autocast_dtype=torch.bfloat16),
        lambda _, scores: seen.append((scores.hidden.dtype, scores.weight.dtype)),
    )
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert not result.is_skipped
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())


def canary(**changes):
    values = {"temperature": 0.8, "top_p": 1.0, "vocab_size": V, "bound": 0.02, "step_bound": 2.0}
    return Canary(**values | changes)


def test_aligned_rollouts_pass_with_a_tiny_gap(parts):
    student, _, trajectories, sequences = parts
    for batch in pack(sequences, range(5), max_tokens=25, pad_id=0):
        watch = canary(bound=1e-3).watch(trajectories, is_first=True)
        watch(batch, row_logits(student, batch))
        assert 0 <= watch.metrics["alignment/gap_max"] < 1e-4


@pytest.mark.parametrize("spoil", ["shift", "temperature", "weights"])
def test_misaligned_rollouts_are_named(parts, spoil):
    student, _, trajectories, _ = parts
    temperature = 1.0 if spoil == "temperature" else 0.8
    if spoil == "shift":
        turn = trajectories[3].turns[1]
        moved = Turn(
            context_ids=turn.context_ids,
            sampled_ids=turn.sampled_ids,
            sampled_log_probs=(*turn.sampled_log_probs[:2], turn.sampled_log_probs[2] - 4.0),
        )
        trajectories[3] = Trajectory(task_id="task3", turns=(trajectories[3].turns[0], moved))
    if spoil == "weights":
        student = make_model(7)
    sequences = [tokenize_trajectory(one) for one in trajectories]
    (batch,) = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    with pytest.raises(RolloutError, match=r"trajectory \d \(task 'task\d'\), turn \d, token \d") as caught:
        canary(temperature=temperature).watch(trajectories, is_first=True)(batch, row_logits(student, batch))
    if spoil == "shift":
        assert "trajectory 3 (task 'task3'), turn 1, token 2 of the turn" in str(caught.value)
    assert "alignment_bound = 0.02" in str(caught.value)


def shifted(trajectory):
    """The same turns with the log-probs of a mask that is one token off."""
    turns = [
        replace(turn, sampled_log_probs=turn.sampled_log_probs[1:] + turn.sampled_log_probs[:1])
        for turn in trajectory.turns
    ]
    return replace(trajectory, turns=tuple(turns))


def test_a_shifted_mask_is_found_in_a_later_update_too():
    student = sharpened(make_model(0))
    trajectories = sampled_trajectories(student)
    # The student has moved since it sampled, as it has in every update but the first.
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.005)
    trajectories[2] = shifted(trajectories[2])
    later = canary(step_bound=0.2)
    batches = [
        pack([tokenize_trajectory(one) for one in trajectories], [index], max_tokens=100, pad_id=0)[0]
        for index in range(5)
    ]
    for index in (0, 1, 3, 4):
        watch = later.watch(trajectories, is_first=False)
        watch(batches[index], row_logits(student, batches[index]))
        assert 1e-4 < watch.metrics["alignment/step_gap_max"] < 0.2
    wanted = r"trajectory 2 \(task .task2.\), turn \d, token \d .*mean gap of the step .*step_bound = 0.2"
    with pytest.raises(RolloutError, match=wanted):
        later.watch(trajectories, is_first=False)(batches[2], row_logits(student, batches[2]))
    unjudged = canary(step_bound=None).watch(trajectories, is_first=False)
    unjudged(batches[2], row_logits(student, batches[2]))
    assert unjudged.metrics["alignment/step_gap_max"] > 0.2


def test_log_probs_after_a_cut_pass_up_to_the_mass_that_it_took(parts):
    student, _, trajectories, _ = parts

    def raised(trajectory, by):
        turns = [
            replace(turn, sampled_log_probs=tuple(value + by for value in turn.sampled_log_probs))
            for turn in trajectory.turns
        ]
        return replace(trajectory, turns=tuple(turns))

    def gap(by, top_p):
        (batch,) = pack([tokenize_trajectory(raised(trajectories[0], by))], [0], max_tokens=100, pad_id=0)
        watch = canary(top_p=top_p, bound=10.0).watch(trajectories, is_first=True)
        watch(batch, row_logits(student, batch))
        return watch.metrics["alignment/gap_max"]

    assert gap(0.6, 0.5) < 1e-4
    assert gap(0.6, 1.0) == pytest.approx(0.6, abs=1e-4)
    assert gap(0.9, 0.5) == pytest.approx(0.9 - math.log(2), abs=1e-4)
    assert gap(-0.3, 0.5) == pytest.approx(0.3, abs=1e-4)


def test_a_turn_of_older_weights_is_named(parts):
    _, _, trajectories, _ = parts
    check_versions(trajectories, 0)
    old = replace(trajectories[1].turns[1], policy_version=3)
    mixed = [trajectories[0], replace(trajectories[1], turns=(trajectories[1].turns[0], old))]
    with pytest.raises(
        RolloutError, match=r"trajectory 1 \(task 'task1'\), turn 1 was sampled by the weights of "
    ):
        check_versions(mixed, 0)


def test_a_teacher_is_frozen_and_gives_no_gradient(parts):
    _, teacher, _, sequences = parts
    assert teacher.capabilities == set(Capability)
    (batch,) = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    assert not teacher.hidden(batch).logits().requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


class CountingTeacher(LocalTeacher):
    calls = 0

    def hidden(self, batch):
        self.calls += 1
        return super().hidden(batch)


@pytest.mark.parametrize(("max_bytes", "calls"), [(0, 4), (10**9, 2), (30 * TEACHER_WIDTH * 4, 3)])
def test_teacher_scores_are_kept_within_the_limit(parts, max_bytes, calls):
    _, teacher, _, sequences = parts
    counting = CountingTeacher(teacher.model)
    scores = RoundScores(counting.hidden, max_bytes=max_bytes)
    batches = pack(sequences, range(5), max_tokens=40, pad_id=0)[:2]
    first = [scores.scores(k, batch) for k, batch in enumerate(batches)]
    second = [scores.scores(k, batch) for k, batch in enumerate(batches)]
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(first, second, strict=True))
    assert counting.calls == calls


def test_teacher_and_reference_share_the_memory_for_kept_scores(parts):
    student, teacher, _, sequences = parts
    first, second = CountingTeacher(teacher.model), CountingTeacher(copy.deepcopy(student))
    (batch,) = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    sizes = [one.hidden(batch).nbytes for one in (first, second)]
    for max_bytes, calls in ((2 * max(sizes), 1), (2 * min(sizes) - 2, 3)):
        first.calls = second.calls = 0
        source = RoundTargets(first, second, max_bytes=max_bytes).source(4)
        for _ in range(3):
            both = source(0, batch)
        assert (first.calls, second.calls) == (calls, calls)
        assert torch.equal(both.teacher.hidden, teacher.hidden(batch).hidden)
        assert both.reference.hidden.shape != both.teacher.hidden.shape
    nobody = RoundTargets(None, None, max_bytes=0).source(0)(0, batch)
    assert nobody == Targets(None, None)


class Capped(torch.nn.Module):
    """A model that changes its logits after the head, and whose settings do not say so."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.base_model, self.device = inner, inner.base_model, inner.device
        self.config = inner.config

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **kwargs):
        output = self.inner(**kwargs)
        output.logits = 0.05 * torch.tanh(output.logits / 0.05)
        return output


def test_a_cap_that_the_settings_name_is_applied():
    config = Gemma2Config(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    check_head(model, "teacher")
    sequences = [
        tokenize_trajectory(Trajectory(task_id="a", turns=(Turn(context_ids=(3, 9), sampled_ids=(4, 7)),)))
    ]
    (batch,) = pack(sequences, [0], max_tokens=100, pad_id=0)
    capped = LocalTeacher(model).hidden(batch).logits()
    torch.testing.assert_close(capped, model(input_ids=batch.input_ids).logits[0, 1:3].detach())
    assert float(capped.abs().max()) < 0.05
    plain = model.get_output_embeddings()(model.base_model(input_ids=batch.input_ids).last_hidden_state)
    assert float(plain.abs().max()) > 0.06


def test_a_model_that_changes_its_logits_is_refused():
    check_head(make_model(0), "student")
    with pytest.raises(ModelError, match="teacher: the logits of Capped are not its output embedding"):
        check_head(Capped(make_model(0)), "teacher")


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="student: Qwen3Model has no output embedding"):
        check_head(make_model(0).base_model, "student")
