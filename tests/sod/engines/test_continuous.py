"""Continuous batching of transformers against the lockstep engine."""

from __future__ import annotations

import math

import pytest
import torch

from sod.config_engines import ContinuousSection, LockstepSection, VLLMSection
from sod.engines.factory import make_engine, weight_bound
from sod.engines.hf import HFEngine
from sod.engines.hf_continuous import ContinuousEngine
from sod.errors import ConfigError, RolloutError
from tests.sod.streams import PROMPTS, make_recorder, params

VOCAB = 500


def rollout(engine, sampling):
    recorder = make_recorder()
    engine.rollout(PROMPTS, recorder, sampling, seed=3)
    return recorder


def made(model, **section):
    return make_engine(
        ContinuousSection(num_pages=256, max_batch_tokens=128, **section),
        model,
        pad_id=0,
        vocab_size=VOCAB,
        max_batch=4,
        max_total_tokens=512,
    )


def test_greedy_trajectories_are_those_of_the_lockstep_engine(tiny_model):
    engine = made(tiny_model)
    assert isinstance(engine, ContinuousEngine)
    attention = tiny_model.config._attn_implementation
    lockstep = rollout(HFEngine(tiny_model, pad_id=0, vocab_size=VOCAB), params(temperature=0.0))
    continuous = rollout(engine, params(temperature=0.0))
    assert continuous.streams == lockstep.streams
    for row in lockstep.streams:
        assert continuous.log_probs[row] == pytest.approx(lockstep.log_probs[row], abs=1e-4)
        reasons = [[g.stop_reason for g in one.generations[row]] for one in (continuous, lockstep)]
        assert reasons[0] == reasons[1]
    assert tiny_model.config._attn_implementation == attention


def test_drawn_log_probs_are_those_of_the_policy(tiny_model):
    recorder = rollout(made(tiny_model), params(temperature=0.7))
    assert not any(one.is_truncated for turns in recorder.generations.values() for one in turns)
    num_sampled = 0
    for row, ids in recorder.streams.items():
        with torch.no_grad():
            logits = tiny_model.eval()(torch.tensor([ids])).logits[0, :-1, :VOCAB].float()
        wanted = (logits / 0.7).log_softmax(-1)
        for place in range(1, len(ids)):
            if recorder.is_sampled[row][place]:
                num_sampled += 1
                assert recorder.log_probs[row][place] == pytest.approx(
                    wanted[place - 1, ids[place]].item(), abs=1e-4
                )
    assert num_sampled >= 20


def test_a_cut_vocabulary_is_flagged_and_its_log_probs_are_those_after_the_cut(tiny_model):
    recorder = rollout(made(tiny_model), params(temperature=0.7, top_p=0.6))
    assert all(one.is_truncated for turns in recorder.generations.values() for one in turns)
    num_raised = 0
    for row, ids in recorder.streams.items():
        with torch.no_grad():
            logits = tiny_model.eval()(torch.tensor([ids])).logits[0, :-1, :VOCAB].float()
        full = (logits / 0.7).log_softmax(-1)
        for place in range(1, len(ids)):
            if recorder.is_sampled[row][place]:
                gain = recorder.log_probs[row][place] - full[place - 1, ids[place]].item()
                # What a cut at 0.6 explains: at most -log(0.6) more, which the alignment check allows.
                assert -1e-4 <= gain <= -math.log(0.6) + 1e-4
                num_raised += gain > 1e-2
    assert num_raised >= 10


def test_turns_that_the_library_gave_up_are_named(tiny_model, monkeypatch):
    class Failed:
        error = "out of pages"

    answers = {}
    monkeypatch.setattr(type(tiny_model), "generate_batch", lambda *_, **__: answers, raising=True)
    with pytest.raises(RolloutError, match=r"5 turns asked for, 0 came back; .*raise \[engine\] num_pages"):
        rollout(made(tiny_model), params(temperature=0.0))
    answers.update({str(row): Failed() for row in range(len(PROMPTS))})
    with pytest.raises(RolloutError, match=r"row 0 failed: out of pages\. Raise \[engine\] num_pages"):
        rollout(made(tiny_model), params(temperature=0.0))
    assert tiny_model.config._attn_implementation == "sdpa"


def test_weights_are_shared_or_copied(tiny_model):
    engine = made(tiny_model)
    state = {name: value * 1.5 for name, value in tiny_model.state_dict().items()}
    engine.update_weights(state, 3)
    assert torch.equal(tiny_model.state_dict()["model.norm.weight"], state["model.norm.weight"])
    assert engine.policy_version == 3
    assert len(engine.score((1, 2, 3))) == 2
    engine.close()


def test_bounds_and_missing_engines():
    assert weight_bound(LockstepSection()) == 1e-3
    assert weight_bound(VLLMSection(dtype="bfloat16")) == 0.5
    assert weight_bound(VLLMSection(weight_bound=0.25)) == 0.25


def test_vllm_that_is_not_installed_is_said(tiny_model, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("sod.engines.vllm_local.version", absent)
    options = {"pad_id": 0, "vocab_size": VOCAB, "max_batch": 4, "max_total_tokens": 64}
    with pytest.raises(ConfigError, match="vLLM is not installed here; install it beside this package"):
        make_engine(VLLMSection(), tiny_model, **options)
