"""Weights that did not arrive are found, whoever keeps them back."""

from __future__ import annotations

import copy

import pytest
import torch

from sod.engines.hf import HFEngine
from sod.engines.scripted import ScriptedEngine
from sod.engines.weight_check import NUM_IDS, check_ids, model_scores, update_and_check
from sod.errors import WeightSyncError


class Forgetful(HFEngine):
    def update_weights(self, model_or_state, policy_version):
        self.policy_version = policy_version


def test_the_text_reaches_over_the_vocabulary_and_is_always_the_same():
    ids = check_ids(512)
    assert ids == check_ids(512)
    assert len(ids) == NUM_IDS
    assert min(ids) < 60
    assert max(ids) > 450
    assert max(check_ids(7)) < 7


def test_scores_are_those_of_a_plain_forward_and_the_mode_stays(tiny_model):
    ids = check_ids(512)
    tiny_model.train()
    scores = model_scores(tiny_model, ids)
    assert tiny_model.training
    with torch.no_grad():
        wanted = tiny_model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    assert scores == pytest.approx([float(wanted[i, ids[i + 1]]) for i in range(len(ids) - 1)], abs=1e-5)


def test_weights_that_arrive_pass_and_old_ones_are_named(tiny_model):
    own = copy.deepcopy(tiny_model)
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(1.1)
    assert update_and_check(HFEngine(own, pad_id=0), tiny_model, 4, vocab_size=512, bound=1e-5) == 0.0
    assert torch.equal(own.model.norm.weight, tiny_model.model.norm.weight)
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(1.1)
    wanted = (
        r"Forgetful does not have the trainer's weights of update 5: at position \d+ .* weight_bound = 0.01"
    )
    with pytest.raises(WeightSyncError, match=wanted):
        update_and_check(Forgetful(own, pad_id=0), tiny_model, 5, vocab_size=512, bound=0.01)
    with torch.no_grad():
        own.model.norm.weight.fill_(torch.nan)
    with pytest.raises(WeightSyncError, match="log-prob nan"):
        update_and_check(Forgetful(own, pad_id=0), tiny_model, 5, vocab_size=512, bound=0.01)


def test_an_engine_without_weights_has_nothing_to_prove(tiny_model):
    engine = ScriptedEngine([])
    assert update_and_check(engine, tiny_model, 6, vocab_size=512, bound=1e-5) == 0.0
    assert engine.policy_version == 6
    engine.close()
