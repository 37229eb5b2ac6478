"""Teachers whose weights wait in host memory: the same scores, and afterwards nothing but a head held."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sod.config_teachers import SelfTeacherSection
from sod.errors import ConfigError
from sod.packing import pack
from sod.scoring import TopScores
from sod.teacher import KeptTeacher, LocalTeacher, RoutedTeacher
from sod.teacher.cache import RoundScores, RoundTargets
from sod.teacher.factory import own_teacher, reference_policy
from sod.testing import make_tiny_tokenizer
from sod.tokenization import tokenize_trajectory
from tests.sod.copies import Copies
from tests.sod.tiny import V, make_model, sampled_trajectories

WIDTH = 32


def untied_model():
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=V,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def batches():
    """Microbatches of one round by their key."""
    sequences = [tokenize_trajectory(one) for one in sampled_trajectories(make_model(0))]
    return dict(enumerate(pack(sequences, range(5), max_tokens=20, pad_id=0), 3))


@pytest.fixture
def copies():
    return Copies()


def test_scores_are_those_of_a_resident_teacher_and_only_the_heads_stay(batches, copies):
    assert len(batches) > 2
    student, teacher = make_model(0), untied_model()
    homes = [weight.data_ptr() for weight in teacher.parameters()]
    resident = RoundTargets(LocalTeacher(teacher), LocalTeacher(student), max_bytes=0)
    wanted = {key: resident.source(key)(0, batch) for key, batch in batches.items()}
    offloaded = LocalTeacher(teacher, copy_weight=copies)
    reference = reference_policy(None, tokenizer=make_tiny_tokenizer(), student=student, teacher=offloaded)
    targets = RoundTargets(offloaded, reference, max_bytes=0)
    seen = []
    targets.score_ahead(batches, lambda done, total: seen.append((done, total, len(copies.alive))))
    # Once each: every weight and buffer of both models.
    models = (teacher, student)
    assert copies.num_made == sum(len([*one.parameters(), *one.buffers()]) for one in models)
    total = 2 * len(batches)
    assert [each[:2] for each in seen] == [(done, total) for done in range(1, total + 1)]
    assert min(each[2] for each in seen) > 20
    assert targets.metrics["time/score_s"] > 0
    assert [weight.data_ptr() for weight in teacher.parameters()] == homes
    for key, batch in batches.items():
        got = targets.source(key)(0, batch)
        for one, other in zip(got, wanted[key], strict=True):
            assert torch.equal(one.hidden, other.hidden)
            assert torch.equal(one.logits(), other.logits())
    made = copies.num_made
    # An untied head of the teacher, the embedding of the reference.
    assert sorted(copies.alive) == [(V, 16), (V, WIDTH)]
    del targets, got, one, other
    assert copies.alive == []
    assert copies.num_made == made


class Rows:
    """Scores that tell where they have been."""

    nbytes = 1 << 40

    def __init__(self, *places):
        self.places = places

    def to(self, device):
        return Rows(*self.places, device.type)


def test_what_was_asked_ahead_waits_in_host_memory_whatever_it_takes(batches):
    asked = []
    scores = RoundScores(lambda batch: asked.append(batch) or Rows("device"), max_bytes=0)
    scores.ask_ahead(7, batches[3])
    assert scores.scores(7, batches[3].to(torch.device("meta"))).places == ("device", "cpu", "meta")
    assert len(asked) == 1


def test_kept_rows_go_where_the_microbatch_is(batches, copies):
    targets = RoundTargets(LocalTeacher(untied_model(), copy_weight=copies), None, max_bytes=0)
    targets.score_ahead(batches)
    key, batch = next(iter(batches.items()))
    elsewhere = targets.source(key)(0, batch.to(torch.device("meta"))).teacher
    assert (elsewhere.hidden.device.type, elsewhere.weight.device.type) == ("meta", "cpu")


def test_a_resident_teacher_is_not_asked_ahead(batches):
    targets = RoundTargets(LocalTeacher(make_model(1)), None, max_bytes=0)

    def refuse(done, total):
        raise AssertionError

    targets.score_ahead(batches, refuse)
    assert targets.metrics == {}


def test_of_several_teachers_one_at_a_time_is_there(batches, copies):
    routes = ("even", "odd", "rest")
    models = {"even": make_model(1), "odd": make_model(2, hidden_size=WIDTH), "rest": make_model(3)}
    teachers = {name: LocalTeacher(models[name], copy_weight=copies) for name in routes[:2]}
    teachers["rest"] = LocalTeacher(models["rest"])
    routed = {key: replace(batch, route=routes[key % 3]) for key, batch in batches.items()}
    assert {batch.route for batch in routed.values()} == set(routes)
    targets = RoundTargets(RoutedTeacher(teachers, {}), None, max_bytes=0)
    most = []
    targets.score_ahead(routed, lambda done, total: most.append(len(copies.alive)))
    sizes = [len([*models[name].parameters(), *models[name].buffers()]) for name in routes[:2]]
    # The head of the first is still there when the second scores.
    assert max(most) == max(sizes[0], 1 + sizes[1])
    assert sorted(copies.alive) == [(V, 16), (V, WIDTH)]
    for key, batch in routed.items():
        wanted = LocalTeacher(models[batch.route]).hidden(batch)
        assert torch.equal(targets.source(key)(0, batch).teacher.logits(), wanted.logits())


def test_what_is_kept_on_disk_is_not_copied_for_again(batches, copies, tmp_path):
    def scored():
        teacher = LocalTeacher(make_model(1), copy_weight=copies)
        keeping = KeptTeacher(teacher, tmp_path, fingerprint=teacher.fingerprint, num_top=4, vocab_size=V)
        targets = RoundTargets(keeping, None, max_bytes=0)
        targets.score_ahead(batches)
        keeping.close()
        return [targets.source(key)(0, batch).teacher for key, batch in batches.items()]

    first, made = scored(), copies.num_made
    assert made > 0
    assert copies.alive == []
    again = scored()
    assert copies.num_made == made
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, TopScores)
        assert torch.equal(one.log_probs, other.log_probs)


def test_weights_go_back_also_when_scoring_is_stopped(batches, copies):
    targets = RoundTargets(LocalTeacher(make_model(1), copy_weight=copies), None, max_bytes=0)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        targets.score_ahead(batches, stop)
    assert copies.alive == [(V, 16)]
    del targets
    assert copies.alive == []


def test_a_student_that_teaches_itself_can_wait_too_unless_it_is_as_it_stands(batches, monkeypatch, copies):
    monkeypatch.setattr("sod.teacher.factory.copies_to", lambda device: copies)
    student = make_model(0)
    teacher = own_teacher(SelfTeacherSection(offload=True), student)
    batch = batches[3]
    assert torch.equal(teacher.hidden(batch).hidden, LocalTeacher(student).hidden(batch).hidden)
    assert copies.num_made > 0
    with pytest.raises(ConfigError, match='offload = true: belongs to weights = "start"'):
        SelfTeacherSection(offload=True, weights="current")
