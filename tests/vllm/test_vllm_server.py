"""A real vLLM server: trajectories, weights, and what becomes of a run whose server dies."""

from __future__ import annotations

import pytest
import torch

from sod.config_engines import VLLMServerSection
from sod.engines.hf import HFEngine
from sod.engines.vllm_server import VLLMServerEngine
from sod.engines.weight_check import check_ids, model_scores, update_and_check
from sod.errors import RolloutError, ServiceUnavailableError, WeightSyncError
from tests.sod.streams import PROMPTS, make_recorder, params
from tests.vllm.forwarder import Forwarder

# Ids of the tiny tokenizer; the model has columns beyond.
VOCAB = 470


@pytest.fixture
def section(server, tmp_path):
    return VLLMServerSection(
        url=server.url, folder=tmp_path, dtype="float32", timeout_s=60.0, max_attempts=2, retry_wait_s=0.05
    )


@pytest.fixture
def engine(section):
    engine = VLLMServerEngine(section, vocab_size=VOCAB, max_batch=4)
    yield engine
    engine.close()


def synced(engine, model, version):
    return update_and_check(engine, model, version, vocab_size=VOCAB, bound=1e-4)


def rollout(engine, sampling, seed=3):
    recorder = make_recorder()
    engine.rollout(PROMPTS, recorder, sampling, seed=seed)
    return recorder


def test_greedy_trajectories_are_those_of_the_lockstep_engine(engine, model, tmp_path):
    assert synced(engine, model, 1) < 1e-4
    assert list(tmp_path.iterdir()) == []
    lockstep = rollout(HFEngine(model, pad_id=0, vocab_size=VOCAB), params(temperature=0.0))
    over_http = rollout(engine, params(temperature=0.0))
    assert over_http.streams == lockstep.streams
    for row in lockstep.streams:
        assert over_http.log_probs[row] == pytest.approx(lockstep.log_probs[row], abs=1e-4)
        assert [g.stop_reason for g in over_http.generations[row]] == [
            g.stop_reason for g in lockstep.generations[row]
        ]


def test_draws_are_of_the_policy_at_the_sampling_temperature_and_repeat(engine, model):
    synced(engine, model, 1)
    first, second = (rollout(engine, params(temperature=0.7), seed=5) for _ in range(2))
    assert first.streams == second.streams
    num_sampled = 0
    for row, ids in first.streams.items():
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1, :VOCAB].float()
        wanted = (logits / 0.7).log_softmax(-1)
        for place in range(1, len(ids)):
            if first.is_sampled[row][place]:
                num_sampled += 1
                assert ids[place] < VOCAB
                assert first.log_probs[row][place] == pytest.approx(
                    wanted[place - 1, ids[place]].item(), abs=1e-4
                )
    assert num_sampled >= 20


def test_new_weights_arrive_and_missing_ones_are_found(engine, model, monkeypatch):
    synced(engine, model, 1)
    before = rollout(engine, params(temperature=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    monkeypatch.setattr(engine, "_send_by_folder", lambda *_: None)
    with pytest.raises(
        WeightSyncError, match=r"VLLMServerEngine does not have the trainer's weights of update 2"
    ):
        synced(engine, model, 2)
    monkeypatch.undo()
    assert synced(engine, model, 2) < 1e-4
    assert engine.score(check_ids(VOCAB)) == pytest.approx(model_scores(model, check_ids(VOCAB)), abs=1e-4)
    lockstep = rollout(HFEngine(model, pad_id=0, vocab_size=VOCAB), params(temperature=0.0))
    after = rollout(engine, params(temperature=0.0))
    assert after.streams == lockstep.streams != before.streams


def test_what_the_server_refuses_is_said(engine, model):
    synced(engine, model, 1)
    with pytest.raises(RolloutError, match=r"/v1/completions: refused with status 400"):
        engine.score(tuple(range(600)))
    with pytest.raises(TypeError, match="got dict; wanted the transformers model"):
        engine.update_weights({}, 2)


def test_a_server_that_dies_in_a_rollout_stops_it(section, server, model, tmp_path):
    with Forwarder(server.port) as forwarder:
        own = VLLMServerSection(
            url=forwarder.url, folder=tmp_path, timeout_s=30.0, max_attempts=3, retry_wait_s=0.01
        )
        engine = VLLMServerEngine(own, vocab_size=VOCAB, max_batch=4)
        synced(engine, model, 1)
        recorder, num_calls = make_recorder(), []

        def respond(ended):
            num_calls.append(len(ended))
            if len(num_calls) == 2:
                forwarder.cut()
            return recorder(ended)

        with pytest.raises(ServiceUnavailableError, match=r"no answer in 3 attempts.*--resume"):
            engine.rollout(PROMPTS, respond, params(temperature=0.0), seed=0)
        assert len(num_calls) >= 2
        # It comes back, and the same rollout is made as if nothing had been.
        forwarder.restore()
        lockstep = rollout(HFEngine(model, pad_id=0, vocab_size=VOCAB), params(temperature=0.0))
        assert rollout(engine, params(temperature=0.0)).streams == lockstep.streams
        engine.close()
