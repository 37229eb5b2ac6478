"""vLLM in this process against the lockstep engine and plain forwards."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sod.config_engines import VLLMSection
from sod.engines.hf import HFEngine
from sod.engines.vllm_local import VLLMEngine, named_weights
from sod.engines.weight_check import check_ids, model_scores, update_and_check
from sod.errors import ConfigError, RolloutError, WeightSyncError
from sod.types import StopReason
from tests.sod.streams import PROMPTS, make_recorder, params

VOCAB = 500


def changed(model, scale, seed=0):
    """A copy of the weights some updates later: every matrix moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator) * parameter.std())
    return model


def synced(engine, model, version):
    return update_and_check(engine, model, version, vocab_size=VOCAB, bound=1e-4)


def rollout(engine, sampling, seed=3):
    recorder = make_recorder()
    engine.rollout(PROMPTS, recorder, sampling, seed=seed)
    return recorder


def teacher_forced(model, ids, temperature):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1, :VOCAB].float()
    return (logits / temperature).log_softmax(-1)


def test_greedy_trajectories_are_those_of_the_lockstep_engine(shared_engine, model):
    assert synced(shared_engine, model, 1) < 1e-4
    lockstep = rollout(HFEngine(model, pad_id=0, vocab_size=VOCAB), params(temperature=0.0))
    vllm = rollout(shared_engine, params(temperature=0.0))
    assert vllm.streams == lockstep.streams
    assert vllm.is_sampled == lockstep.is_sampled
    reasons = {}
    for row in vllm.streams:
        assert vllm.log_probs[row] == pytest.approx(lockstep.log_probs[row], abs=1e-4)
        reasons[row] = [generation.stop_reason for generation in vllm.generations[row]]
        assert reasons[row] == [generation.stop_reason for generation in lockstep.generations[row]]
    assert {reason for row in reasons.values() for reason in row} == {
        StopReason.STOP_TOKEN,
        StopReason.LENGTH,
    }


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_policy_at_the_sampling_temperature(shared_engine, model, temperature):
    synced(shared_engine, model, 1)
    recorder = rollout(shared_engine, params(temperature=temperature))
    values = []
    for row, ids in recorder.streams.items():
        wanted = teacher_forced(model, ids, temperature)
        for place in range(1, len(ids)):
            if recorder.is_sampled[row][place]:
                assert ids[place] < VOCAB
                assert recorder.log_probs[row][place] == pytest.approx(
                    wanted[place - 1, ids[place]].item(), abs=1e-4
                )
                values.append(recorder.log_probs[row][place])
    assert len(values) >= 20
    assert max(values) - min(values) > 1.0


def test_draws_repeat_with_the_seed_and_samples_differ(shared_engine, model):
    synced(shared_engine, model, 1)
    first, second, other = (rollout(shared_engine, params(), seed=seed) for seed in (5, 5, 6))
    assert first.streams == second.streams
    assert first.streams != other.streams
    same = [PROMPTS[1]] * 4
    recorder = make_recorder(same)
    shared_engine.rollout(same, recorder, params(), seed=1)
    assert len({generations[0].sampled_ids for generations in recorder.generations.values()}) > 1


def test_a_cut_vocabulary_is_flagged_and_bounded(shared_engine, model):
    synced(shared_engine, model, 1)
    recorder = rollout(shared_engine, params(temperature=0.9, top_p=0.5))
    assert all(g.is_truncated for generations in recorder.generations.values() for g in generations)
    excesses = []
    for row, ids in recorder.streams.items():
        wanted = teacher_forced(model, ids, 0.9)
        places = [place for place in range(1, len(ids)) if recorder.is_sampled[row][place]]
        excesses += [recorder.log_probs[row][p] - wanted[p - 1, ids[p]].item() for p in places]
    assert min(excesses) > -1e-4
    assert max(excesses) < 0.6932
    assert max(excesses) > 0.1
    assert not rollout(shared_engine, params()).generations[0][0].is_truncated


def test_new_weights_arrive_with_tied_embeddings_too(shared_engine, model):
    synced(shared_engine, model, 1)
    before = rollout(shared_engine, params(temperature=0.0))
    ids = check_ids(VOCAB)
    old = model_scores(model, ids)
    changed(model, 0.2)
    assert max(abs(a - b) for a, b in zip(old, model_scores(model, ids), strict=True)) > 0.1
    assert synced(shared_engine, model, 2) < 1e-4
    assert shared_engine.policy_version == 2
    after = rollout(shared_engine, params(temperature=0.0))
    assert after.streams != before.streams
    # From a state dict as well.
    shared_engine.update_weights(changed(model, 0.2, seed=1).state_dict(), 3)
    assert shared_engine.score(ids) == pytest.approx(model_scores(model, ids), abs=1e-4)


def test_a_head_that_stays_behind_is_found_and_named(shared_engine, model, monkeypatch):
    synced(shared_engine, model, 1)
    monkeypatch.setattr("sod.engines.vllm_worker._repack_heads", lambda _: None)
    with pytest.raises(
        WeightSyncError, match=r"VLLMEngine does not have the trainer's weights of update 2: at"
    ):
        synced(shared_engine, changed(model, 0.2), 2)


def test_the_cache_of_old_weights_is_not_read(shared_engine, model):
    # The same prompts, long enough for whole cached blocks, before and after the weights change.
    prompts = [tuple(range(100, 260))] * 2
    streams = []
    for version in (4, 5):
        synced(shared_engine, changed(model, 0.3, seed=version), version)
        recorder = make_recorder(prompts)
        shared_engine.rollout(prompts, recorder, params(temperature=0.0), seed=0)
        lockstep = make_recorder(prompts)
        HFEngine(model, pad_id=0, vocab_size=VOCAB).rollout(
            prompts, lockstep, params(temperature=0.0), seed=0
        )
        assert recorder.streams == lockstep.streams
        streams.append(recorder.streams)
    assert streams[0] != streams[1]


def test_limits_hold(shared_engine, model):
    synced(shared_engine, model, 1)
    recorder = make_recorder([(300,)])
    sampling = params(max_turn_tokens=50, max_total_tokens=9, stop_ids=(511,))
    with pytest.raises(RolloutError, match=r"VLLMEngine.rollout: the observation of row 0 .*one must stay"):
        shared_engine.rollout([(300,)], recorder, sampling, seed=0)
    assert len(recorder.generations[0][0].sampled_ids) == 8
    with pytest.raises(ValueError, match="the engine holds 512 tokens"):
        shared_engine.rollout([(300,)], recorder, params(max_total_tokens=513), seed=0)
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        shared_engine.rollout([(300,), ()], recorder, params(), seed=0)
    # A failed rollout leaves nothing behind.
    assert rollout(shared_engine, params(temperature=0.0)).streams


def test_a_failing_tool_aborts_what_is_running(shared_engine, model):
    synced(shared_engine, model, 1)

    def respond(ended):
        raise RuntimeError("tool broke")

    with pytest.raises(RuntimeError, match="tool broke"):
        shared_engine.rollout(PROMPTS, respond, params(), seed=0)
    engine = shared_engine._llm.llm_engine
    while engine.has_unfinished_requests():
        assert engine.step() == []
    assert rollout(shared_engine, params(temperature=0.0)).streams


def test_a_gpu_transfer_is_refused_on_a_cpu(model):
    with pytest.raises(ConfigError, match=r'weight_transfer = "ipc" shares GPU memory'):
        VLLMEngine(model, VLLMSection(weight_transfer="ipc"))


def test_tied_weights_are_sent_once(model):
    names = [name for name, _ in named_weights(model)]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in named_weights(model))


def test_no_rollout_before_weights(tiny_folder):
    engine = VLLMEngine.__new__(VLLMEngine)
    engine.policy_version = -1
    with pytest.raises(RolloutError, match="no weights yet"):
        engine.rollout([(1,)], lambda _: [None], params(), seed=0)
    assert AutoModelForCausalLM.from_pretrained(tiny_folder).config.tie_word_embeddings
