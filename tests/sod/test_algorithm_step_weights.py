"""Step weights: the rule of the release, the heuristics of its ablation, and what they must not read."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from sod.algorithms import make_algorithm
from sod.algorithms.step_weights import (
    AdvantageGate,
    DecayAfterError,
    FirstTurns,
    FromAnchor,
    FromStatistics,
    StepContext,
)
from sod.config_algorithms import OPDSection, SODSection
from sod.errors import ConfigError
from sod_kernels import SodWeighting, step_means, steps_from_mask
from sod_kernels.types import StepStatistics


def context(trajectory, turn, errors, divergence=None, tokens=None):
    size = len(turn)
    statistics = StepStatistics(
        divergence=torch.tensor(divergence or [0.5] * size, dtype=torch.float64),
        uncertainty=torch.full((size,), 0.1, dtype=torch.float64),
        entropy=torch.full((size,), 0.2, dtype=torch.float64),
        tokens=torch.tensor(tokens or [3] * size),
        trajectory=torch.tensor(trajectory),
    )
    return StepContext(
        statistics=statistics, turn=torch.tensor(turn), errors_before=torch.tensor(errors), round_number=1
    )


def test_steps_after_the_first_error_decay_whatever_their_order():
    given = context([4, 4, 4, 4, 9, 9], [0, 1, 2, 3, 0, 1], [0, 0, 1, 3, 0, 0])
    decayed = DecayAfterError(decay=0.9)(given)
    assert decayed.tolist() == pytest.approx([1, 1, 0.9, 0.81, 1, 1])
    shuffled = context([4, 9, 4, 4, 9, 4], [3, 1, 0, 2, 0, 1], [3, 0, 0, 1, 0, 0])
    assert DecayAfterError(decay=0.9)(shuffled).tolist() == pytest.approx([0.81, 1, 1, 0.9, 1, 1])


def test_masking_keeps_the_steps_before_the_error_only():
    given = context([0, 0, 0], [0, 1, 2], [0, 1, 1])
    assert DecayAfterError(decay=0.0)(given).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("divergence", [1.0, 0.2 / 0.25, 0.2 / 0.5, 1.2]),
        ("decay_after_error", [1.0, 1.0, 0.9, 0.81]),
        ("mask_after_error", [1.0, 1.0, 0.0, 0.0]),
    ],
)
def test_the_ablations_are_one_setting(name, wanted):
    weight = make_algorithm(SODSection(weight=name)).weight
    given = context([0] * 4, [0, 1, 2, 3], [0, 0, 1, 2], divergence=[0.2, 0.25, 0.5, 0.1])
    assert weight(given).tolist() == pytest.approx(wanted, abs=1e-5)


def test_without_a_bound_a_step_may_count_more_than_once():
    weight = make_algorithm(SODSection(delta=float("inf"))).weight
    given = context([0, 0], [0, 1], [0, 0], divergence=[0.6, 0.2])
    assert weight(given).tolist() == pytest.approx([1.0, 3.0], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "anchor", "wanted"),
    [
        ({"anchor": "constant", "constant": 0.3}, None, 0.3),
        ({"anchor": "batch_quantile", "quantile": 1.0}, 9.0, 0.8),
        ({"anchor": "entropy", "entropy_factor": 1.5}, 9.0, 0.3),
        ({"anchor": "running_quantile"}, 0.25, 0.25),
        ({"anchor": "running_quantile"}, None, 0.2),
        ({"anchor": "running_quantile", "quantile": 0.0}, None, 0.1),
    ],
)
def test_an_anchor_of_the_whole_batch(options, anchor, wanted):
    given = context([0, 0, 1, 1], [0, 1, 0, 1], [0] * 4, divergence=[0.1, 0.8, 0.2, 5.0], tokens=[1, 2, 3, 0])
    weights = FromAnchor(sharpness=1.0, epsilon=0.1, **options)(replace(given, anchor=anchor)).tolist()
    assert weights[3] == 0.0
    assert weights[:3] == pytest.approx([min((wanted + 0.1) / (d + 0.1), 1.2) for d in (0.1, 0.8, 0.2)])


def test_a_sharp_weight_falls_faster_beyond_the_anchor():
    given = context([0, 0, 0], [0, 1, 2], [0, 0, 0], divergence=[0.1, 0.5, 1.1])
    made = FromAnchor(anchor="constant", constant=0.5, epsilon=0.1)(given).tolist()
    assert made == pytest.approx([1.2, 1.0, 0.125])


def test_an_anchor_of_the_trajectory_is_sods():
    given = context([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [0] * 5, divergence=[0.1, 0.8, 0.2, 0.05, 9.0])
    weights = FromAnchor(anchor="first_step", sharpness=1.0, epsilon=0.02, delta=0.5, min_weight=0.1)(given)
    wanted = SodWeighting(epsilon=0.02, delta=0.5)(given.statistics).clamp(min=0.1)
    assert weights.tolist() == wanted.tolist() == pytest.approx([1.0, 0.12 / 0.82, 1.0, 1.5, 0.1])


def test_an_anchored_weight_has_a_least():
    given = context([0, 0], [0, 1], [0, 0], divergence=[0.1, 50.0])
    assert FromAnchor(anchor="constant", min_weight=0.3)(given).tolist() == pytest.approx([1.0, 0.3])


@pytest.mark.parametrize(("round_number", "reach"), [(1, 1), (5, 1), (6, 2), (11, 2), (12, 3), (600, 9)])
def test_turns_come_in_from_the_front(round_number, reach):
    given = replace(context([0] * 9, list(range(9)), [0] * 9), round_number=round_number)
    assert FirstTurns(rounds_per_turn=6)(given).tolist() == [1.0] * reach + [0.0] * (9 - reach)


def test_a_gate_opens_for_trajectories_that_did_worse():
    given = context([0, 0, 1, 2], [0, 1, 0, 0], [0] * 4)
    gate = AdvantageGate(low=0.1, high=0.5, steepness=2.0)
    opened = gate(replace(given, advantages=torch.tensor([-1.0, -1.0, 0.0, 30.0]))).tolist()
    assert opened == pytest.approx([0.1 + 0.4 / (1 + math.exp(-2.0))] * 2 + [0.3, 0.1])
    with pytest.raises(ValueError, match=r"context\.advantages is None; wanted \(S,\)"):
        gate(given)


def released_rule(mask, gap, epsilon=1e-6, delta=0.2):
    """The running product over the runs of a mask, token by token, as the release walks it."""
    runs, inside = [], False
    for position, value in enumerate(mask):
        if value and not inside:
            runs.append([])
        if value:
            runs[-1].append(gap[position])
        inside = bool(value)
    means = [sum(run) / len(run) for run in runs]
    weights, product = [], 1.0
    for k in range(len(means)):
        if k:
            product *= (means[k - 1] + epsilon) / (means[k] + epsilon)
        weights.append(min(product, 1.0 + delta) if k else 1.0)
    return weights


def test_weights_are_those_of_the_released_rule_on_ten_thousand_masks():
    draw = random.Random(0)
    rows, length, worst = 10_000, 24, 0.0
    mask = torch.tensor([[draw.random() < 0.6 for _ in range(length)] for _ in range(rows)])
    gap = torch.rand(rows, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e-3
    ids = steps_from_mask(mask.long())
    count = int(ids.max()) + 1
    owner = torch.arange(rows)[:, None].expand(rows, length)
    trajectory = torch.zeros(count, dtype=torch.int64).scatter_reduce(0, ids[mask], owner[mask], "amax")
    means = step_means(gap, ids, count)
    statistics = StepStatistics(
        divergence=means,
        uncertainty=means,
        entropy=means,
        tokens=torch.bincount(ids[mask], minlength=count),
        trajectory=trajectory,
    )
    zeros = torch.zeros(count, dtype=torch.int64)
    ours = FromStatistics(weighting=SodWeighting())(
        StepContext(statistics=statistics, turn=zeros, errors_before=zeros, round_number=1)
    )
    by_row = ours.split(torch.bincount(trajectory, minlength=rows).tolist())
    for row, weights in enumerate(by_row):
        wanted = released_rule(mask[row].tolist(), gap[row].tolist())
        assert len(wanted) == weights.numel()
        worst = max([worst, *(abs(a - b) for a, b in zip(weights.tolist(), wanted, strict=True))])
    assert worst < 1e-6


def last_step_only(given):
    """A step weight of somebody's own."""
    last = given.turn.max()
    return (given.turn == last).double()


NOT_A_FUNCTION = 3


class TestOneOfYourOwn:
    def test_by_module(self):
        weight = make_algorithm(OPDSection(weight=f"{__name__}:last_step_only")).weight
        assert weight(context([0, 0, 0], [0, 1, 2], [0] * 3)).tolist() == [0.0, 0.0, 1.0]

    def test_by_the_name_that_a_package_registered(self, tmp_path, monkeypatch):
        package = tmp_path / "weights_of_mine-1.dist-info"
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: weights-of-mine\nVersion: 1\n")
        (package / "entry_points.txt").write_text(f"[sod.step_weights]\nlast = {__name__}:last_step_only\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert make_algorithm(OPDSection(weight="last")).weight is last_step_only
        with pytest.raises(ConfigError, match=r"weight = 'lastt': unknown; did you mean 'last'\?"):
            make_algorithm(OPDSection(weight="lastt"))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nothing", "weight = 'nothing': unknown; registered: none; or give 'module:FUNCTION'"),
            ("no_such_module:f", "cannot be imported: No module named 'no_such_module'"),
            (f"{__name__}:nothing", "cannot be imported: .* has no attribute 'nothing'"),
            (f"{__name__}:NOT_A_FUNCTION", "wanted a function of a StepContext, got int"),
        ],
    )
    def test_what_cannot_be_had_is_named(self, name, message):
        with pytest.raises(ConfigError, match=message):
            make_algorithm(OPDSection(weight=name))
