"""A teacher that lists a few ids: what it asks for, and what an algorithm makes of it."""

from __future__ import annotations

import copy

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.config import RolloutSection, RunConfig, RunSection, TrainerSection
from sod.config_algorithms import OPDSection, SODSection, STMSection
from sod.config_teachers import VLLMTeacherSection
from sod.errors import ConfigError, RolloutError
from sod.models import build_qwen3
from sod.packing import num_trained_tokens, pack
from sod.scoring import row_states
from sod.teacher import Capability, LocalTeacher, VLLMTeacher
from sod.teacher.factory import check_capabilities
from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn
from tests.sod.fake_server import FakeServer

V = 24


def model_of(seed):
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    return build_qwen3(vocab_size=V, max_positions=64, seed=seed, **sizes).eval()


def trajectories():
    def turn(context, sampled):
        return Turn(context_ids=context, sampled_ids=sampled, sampled_log_probs=(-1.0,) * len(sampled))

    first = (turn((1, 2, 3), (4, 5)), turn((6,), (7, 8, 9)))
    second = (turn((3, 1), (2, 2, 11, 12)),)
    return [Trajectory(task_id=str(i), turns=turns) for i, turns in enumerate((first, second))]


def batch_of():
    sequences = [tokenize_trajectory(one) for one in trajectories()]
    (batch,) = pack(sequences, range(2), max_tokens=100, pad_id=0)
    context = LossContext(denominator=num_trained_tokens(sequences), round_number=1)
    return batch, context


class Serving(FakeServer):
    """Scores prompts with a model, in the form that vLLM answers."""

    def __init__(self, model, spoil=None):
        def answer(path, body):
            if path == "/v1/models":
                return 200, {"data": [{"id": "big", "max_model_len": 16}]}
            ids, count = body["prompt"], body["prompt_logprobs"]
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            rows = [None]
            for place, token in enumerate(ids[1:]):
                listed = [*log_probs[place].topk(count).indices.tolist(), token]
                rows.append({str(one): {"logprob": float(log_probs[place, one])} for one in listed})
            if spoil is not None:
                spoil(rows)
            return 200, {"choices": [{"prompt_logprobs": rows}]}

        super().__init__(answer)


def teacher_at(url, **changes):
    section = VLLMTeacherSection(model="/m", url=url, timeout_s=5.0, max_attempts=1, **changes)
    return VLLMTeacher(section, vocab_size=V, max_tokens=12)


def loss_of(section, teacher_scores, *, student):
    batch, context = batch_of()
    return make_algorithm(section, vocab_size=V).loss(
        batch, row_states(student, batch), teacher_scores, context
    )


SECTIONS = (
    OPDSection(),
    SODSection(form="vocab", reward_coefficient=0.0),
    OPDSection(form="sampled"),
)


@pytest.mark.parametrize("section", SECTIONS)
def test_with_every_id_listed_it_is_the_teacher_of_full_logits(section):
    student, teacher = model_of(0), model_of(1)
    batch, _ = batch_of()
    with Serving(teacher) as server:
        listing = teacher_at(server.url, num_top=V)
        listed = listing.top_scores(batch)
        listing.close()
    whole = loss_of(section, LocalTeacher(copy.deepcopy(teacher)).hidden(batch), student=student)
    few = loss_of(section, listed, student=student)
    assert few.loss.item() == pytest.approx(whole.loss.item(), rel=1e-4)
    torch.testing.assert_close(few.step_divergence, whole.step_divergence, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(few.step_weights, whole.step_weights, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(one.loss, student.model.norm.weight)[0] for one in (few, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_rows_get_their_own_ids_and_nothing_behind_the_last_response_is_asked():
    batch, _ = batch_of()
    teacher = model_of(1)
    with Serving(teacher) as server:
        listing = teacher_at(server.url, num_top=2)
        listed = listing.top_scores(batch)
        listing.close()
    asked = sorted(tuple(body["prompt"]) for path, body in server.requests if body)
    assert asked == [(1, 2, 3, 4, 5, 6, 7, 8, 9), (3, 1, 2, 2, 11, 12)]
    assert listed.ids.shape == (batch.num_rows, 3)
    full = LocalTeacher(teacher).hidden(batch).logits().log_softmax(-1)
    for row in range(batch.num_rows):
        known = listed.ids[row] >= 0
        ids = listed.ids[row][known]
        assert int(batch.labels[row]) in ids.tolist()
        assert set(full[row].topk(2).indices.tolist()) <= set(ids.tolist())
        torch.testing.assert_close(listed.log_probs[row][known], full[row][ids], rtol=1e-4, atol=1e-5)
    assert listed.nbytes == batch.num_rows * 3 * 12


def test_the_sampled_id_alone_serves_the_sampled_form_only():
    student, teacher = model_of(0), model_of(1)
    batch, _ = batch_of()
    with Serving(teacher) as server:
        sampled = teacher_at(server.url, num_top=0)
        assert sampled.capabilities == {Capability.SAMPLED}
        listed = sampled.top_scores(batch)
        assert torch.equal(listed.ids[:, 0], batch.labels)
        sampled.close()
    whole = loss_of(OPDSection(form="sampled"), LocalTeacher(teacher).hidden(batch), student=student)
    few = loss_of(OPDSection(form="sampled"), listed, student=student)
    assert few.loss.item() == pytest.approx(whole.loss.item(), rel=1e-4)
    check_capabilities(sampled, OPDSection(form="sampled"))
    with pytest.raises(
        ConfigError, match=r'"opd" needs full logits or "top_k" of its teacher, but .* gives sampled'
    ):
        check_capabilities(sampled, OPDSection())
    with pytest.raises(ConfigError, match='"stm" needs full logits of its teacher'):
        check_capabilities(sampled, STMSection())


def test_answers_that_are_no_numbers_and_servers_too_small():
    batch, _ = batch_of()

    def spoil(rows):
        first = next(iter(rows[5]))
        rows[5][first]["logprob"] = float("nan")

    with Serving(model_of(1), spoil) as server:
        listing = teacher_at(server.url, num_top=2)
        with pytest.raises(RolloutError, match="a log-prob that is not a number or above 0"):
            listing.top_scores(batch)
        listing.close()
        section = VLLMTeacherSection(model="/m", url=server.url)
        with pytest.raises(ConfigError, match="holds 16 tokens in a row; wanted more than the 16"):
            VLLMTeacher(section, vocab_size=V, max_tokens=16)


def config(tmp_path, algorithm, **teacher):
    temperature = teacher.pop("temperature", 1.0)
    return RunConfig(
        run=RunSection(output=tmp_path),
        trainer=TrainerSection(rounds=1),
        rollout=RolloutSection(temperature=temperature),
        algorithm=algorithm,
        teacher=VLLMTeacherSection(model="/m", url="http://host:1", **teacher),
    )


def test_what_a_server_cannot_give_is_refused_before_anything_is_loaded(tmp_path):
    assert config(tmp_path, OPDSection()).teacher.num_top == 32
    with pytest.raises(ConfigError, match=r'num_top = 0 lists the sampled id alone, but form = "vocab"'):
        config(tmp_path, OPDSection(), num_top=0)
    with pytest.raises(ConfigError, match=r'algorithm "stm" compares full logits of teacher and reference'):
        config(tmp_path, STMSection())
    with pytest.raises(ConfigError, match=r"\[algorithm\] temperature = 0.5 divides the logits"):
        config(tmp_path, OPDSection(temperature=0.5))
    with pytest.raises(ConfigError, match=r"\[rollout\] temperature = 0.8 divides the logits"):
        config(tmp_path, OPDSection(form="sampled"), temperature=0.8)
    assert config(tmp_path, OPDSection(), temperature=0.8).teacher.num_top == 32
    with pytest.raises(ConfigError, match=r"\[teacher\] url = 'host': wanted an address"):
        VLLMTeacherSection(model="/m", url="host")
