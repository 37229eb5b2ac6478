"""Optimisers: the schedule, who gets Muon, clipping, and a state that comes back exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from sod.config import AdamWSection, MuonSection
from sod.models import build_qwen3
from sod.optim import OptimizerSet, learning_rate_scale


def model(seed=0):
    return build_qwen3(
        vocab_size=32,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_positions=16,
        seed=seed,
    )


def backward(one, seed):
    ids = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(seed))
    one(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("linear", 0.6, 0.2), ("cosine", 0.6, 0.2), ("constant", 1.0, 1.0)]
)
def test_schedule_rises_then_falls_to_the_final_fraction(schedule, middle, last):
    final = 0.0 if schedule == "constant" else 0.2
    section = AdamWSection(schedule=schedule, warmup_updates=4, final_fraction=final)
    scales = [learning_rate_scale(section, update, 15) for update in range(15)]
    assert scales[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert scales[9] == pytest.approx(middle)
    assert scales[14] == pytest.approx(last)
    assert all(a >= b for a, b in pairwise(scales[4:]))


def test_a_warm_up_as_long_as_the_run_leaves_no_room_to_divide_by():
    section = AdamWSection(schedule="linear", warmup_updates=3)
    assert [learning_rate_scale(section, update, 3) for update in range(3)] == pytest.approx(
        [1 / 3, 2 / 3, 1]
    )


def test_muon_takes_the_matrices_inside_the_layers_alone():
    one = model()
    backward(one, 0)
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    made = OptimizerSet(one, MuonSection(learning_rate=1e-12, weight_decay=0.0, matrix_learning_rate=0.1))
    made.step(1.0)
    moved = {
        name for name, value in one.named_parameters() if (value - before[name]).abs().max().item() > 1e-6
    }
    matrices = {name for name, value in one.named_parameters() if value.ndim == 2}
    assert moved == matrices - {"model.embed_tokens.weight"}


def test_weight_decay_leaves_vectors_alone():
    one = model()
    for parameter in one.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    OptimizerSet(one, AdamWSection(learning_rate=0.1, weight_decay=0.5)).step(1.0)
    for name, value in one.named_parameters():
        wanted = before[name] if value.ndim < 2 else before[name] * (1 - 0.05)
        torch.testing.assert_close(value.detach(), wanted)


def test_the_scale_is_a_share_of_the_peak():
    results = []
    for rate, scale in ((0.1, 0.5), (0.05, 1.0)):
        one = model()
        backward(one, 0)
        made = OptimizerSet(one, AdamWSection(learning_rate=rate))
        made.step(scale)
        results.append(one.model.embed_tokens.weight.detach().clone())
    assert torch.equal(*results)


def test_clip_gives_the_norm_before_and_bounds_it_after():
    one = model()
    backward(one, 0)
    made = OptimizerSet(one, AdamWSection())
    wanted = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in one.parameters()))
    assert float(made.clip(0.01)) == pytest.approx(wanted, rel=1e-5)
    after = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in one.parameters()))
    assert after == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_that_is_not_finite_is_seen_and_left():
    one = model()
    backward(one, 0)
    one.model.norm.weight.grad[0] = math.nan
    made = OptimizerSet(one, AdamWSection())
    kept = one.model.embed_tokens.weight.grad.clone()
    assert math.isnan(float(made.clip(0.01)))
    assert torch.equal(one.model.embed_tokens.weight.grad, kept)


@pytest.mark.parametrize("section", [AdamWSection(learning_rate=0.01), MuonSection(learning_rate=0.01)])
def test_state_comes_back_to_the_bit(section):
    def updates(one, made, seeds):
        for seed in seeds:
            made.zero_grad()
            backward(one, seed)
            made.step(0.7)

    straight = model()
    made = OptimizerSet(straight, section)
    updates(straight, made, range(6))

    first = model()
    made = OptimizerSet(first, section)
    updates(first, made, range(3))
    second = model(seed=9)
    second.load_state_dict(first.state_dict())
    resumed = OptimizerSet(second, section)
    resumed.load_state_dict(made.state_dict())
    updates(second, resumed, range(3, 6))
    for (name, a), b in zip(straight.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_state_of_another_optimiser_is_refused():
    state = OptimizerSet(model(), AdamWSection()).state_dict()
    with pytest.raises(ValueError, match=r"got 1 states, wanted 2; .*other \[optimizer\] settings"):
        OptimizerSet(model(), MuonSection()).load_state_dict(state)
