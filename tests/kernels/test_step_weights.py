"""SOD's and ATOD's step weights: golden vectors, loops over Python numbers, and the awkward values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sod_kernels import SodWeighting, StepStatistics, TurnWeighting, sod_weights, tdur_weights

DOUBLE = torch.float64


def _double(values):
    return torch.tensor(values, dtype=DOUBLE)


def _sod_by_loop(divergence, trajectory, tokens, delta, epsilon):
    """The paper's running product, clipped on output only."""
    weights, before, product = [], {}, {}
    for d, name, count in zip(divergence, trajectory, tokens, strict=True):
        if count == 0:
            weights.append(0.0)
            continue
        if name not in before:
            product[name] = 1.0
            weights.append(1.0)
        else:
            product[name] *= (before[name] + epsilon) / (d + epsilon)
            weights.append(min(product[name], 1.0 + delta))
        before[name] = d
    return weights


def _tdur_by_loop(d, h, tokens, trajectory, min_turns, min_divergence, mean_preserving):
    def scaled(values, index, turns):
        low, high = min(values[j] for j in turns), max(values[j] for j in turns)
        return 0.5 if high - low < 1e-8 else (values[index] - low) / (high - low)

    weights = [0.0] * len(d)
    for name in set(trajectory):
        turns = [k for k, other in enumerate(trajectory) if other == name and tokens[k] > 0]
        if len(turns) < min_turns or not turns or max(d[k] for k in turns) < min_divergence:
            for k in turns:
                weights[k] = 1.0
            continue
        z = {k: 1 - (1 - scaled(d, k, turns)) * (1 - scaled(h, k, turns)) for k in turns}
        if mean_preserving:
            total = sum(tokens[k] for k in turns)
            mean = sum(tokens[k] * z[k] for k in turns) / total
            r = {k: min(max(z[k] / (mean + 1e-8), 0.5), 2.0) for k in turns}
            mean_r = sum(tokens[k] * r[k] for k in turns) / total
            z = {k: r[k] / (mean_r + 1e-8) for k in turns}
        for k in turns:
            weights[k] = z[k]
    return weights


STEP = st.tuples(
    st.floats(0, 5) | st.sampled_from([0.0, 0.3, 0.3]),
    st.floats(0, 3) | st.just(0.5),
    st.integers(0, 40),
    st.sampled_from([-7, 0, 3, 10**12]),
)


class TestSodWeights:
    @pytest.mark.parametrize(
        ("divergence", "wanted"),
        [
            ([0.2, 0.25, 0.5, 1.25, 0.4, 0.1], [1, 0.800001, 0.400001, 0.160001, 0.500001, 1.2]),
            ([0.0, 0.2, 0.2], [1, 5.0e-6, 5.0e-6]),
            ([0.2, 0.0, 0.2], [1, 1.2, 1]),
            ([0.3], [1]),
            ([], []),
        ],
    )
    def test_golden_vectors(self, divergence, wanted):
        torch.testing.assert_close(sod_weights(_double(divergence)), _double(wanted), rtol=0, atol=5e-7)

    def test_case_of_the_paper(self):
        assert sod_weights(_double([0.218, 1.284]))[1].item() == pytest.approx(0.170, abs=5e-4)

    @given(st.lists(STEP, max_size=14), st.sampled_from([0.0, 0.2, 3.0]))
    @settings(max_examples=100, deadline=None)
    def test_equals_the_running_product(self, steps, delta):
        d, _, tokens, trajectory = (
            (list(column) for column in zip(*steps, strict=True)) if steps else ([],) * 4
        )
        ours = sod_weights(
            _double(d),
            torch.tensor(trajectory, dtype=torch.int64),
            delta=delta,
            epsilon=1e-6,
            step_tokens=torch.tensor(tokens, dtype=torch.int64),
        )
        wanted = _sod_by_loop(d, trajectory, tokens, delta, 1e-6)
        torch.testing.assert_close(ours, _double(wanted), rtol=1e-9, atol=1e-12)

    def test_no_upper_clip(self):
        assert sod_weights(_double([1.0, 0.01]), delta=math.inf)[1].item() == pytest.approx(100.0, rel=1e-3)

    def test_a_step_without_tokens_is_never_the_anchor(self):
        weights = sod_weights(_double([0.0, 0.2, 0.4]), step_tokens=torch.tensor([0, 3, 3]))
        torch.testing.assert_close(weights, _double([0.0, 1.0, 0.5]), rtol=1e-4, atol=0)

    def test_infinite_divergence_gives_weight_zero_and_no_nan(self):
        assert sod_weights(_double([0.2, torch.inf, 0.2])).tolist() == [1.0, 0.0, 1.0]
        assert sod_weights(_double([torch.inf, torch.inf, 0.2])).tolist() == [1.0, 0.0, 1.2]

    def test_broken_anchor_spoils_its_trajectory_only(self):
        weights = sod_weights(_double([torch.nan, 0.2, 0.3, 0.3]), torch.tensor([1, 1, 0, 0]))
        assert weights[0].item() == 1.0
        assert bool(weights[1].isnan())
        assert weights[2:].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_dtype_is_kept_and_detached(self, dtype):
        divergence = torch.tensor([0.5, 1.0], dtype=dtype, requires_grad=True)
        weights = sod_weights(divergence)
        assert weights.dtype == dtype
        assert not weights.requires_grad


class TestTdurWeights:
    D, H = (0.101, 0.228, 0.022, 0.019, 0.138), (0.037, 0.025, 0.010, 0.006, 0.008)

    def test_golden_vectors(self):
        tokens = torch.tensor([40, 20, 20, 20, 20])
        d, h = _double(self.D), _double(self.H)
        ours = tdur_weights(d, h, tokens)
        torch.testing.assert_close(ours, _double([1, 1, 0.141534, 0, 0.597160]), rtol=0, atol=5e-7)
        kept = tdur_weights(d, h, tokens, mean_preserving=True)
        wanted = _double([1.421708, 1.421708, 0.442944, 0.442944, 0.848987])
        torch.testing.assert_close(kept, wanted, rtol=0, atol=5e-7)
        assert (kept * tokens).sum().item() / 120 == pytest.approx(1.0, abs=1e-7)

    def test_guards_and_flat_ranges(self):
        ones = torch.ones(3, dtype=torch.int64)
        assert tdur_weights(_double([0.1, 0.5]), _double([0.2, 0.1]), ones[:2]).tolist() == [1.0, 1.0]
        assert tdur_weights(_double([0.1] * 3), _double([0.2] * 3), ones).tolist() == [0.75] * 3
        flat = tdur_weights(_double([0.1] * 3), _double([0.1, 0.2, 0.4]), ones)
        torch.testing.assert_close(flat, _double([0.5, 2 / 3, 1.0]))
        assert (
            tdur_weights(_double([0.001, 0.002, 0.009]), _double([0.1, 0.2, 0.4]), ones).tolist() == [1.0] * 3
        )

    def test_turns_without_tokens_are_left_out(self):
        d, h, tokens = _double([0.0, *self.D]), _double([0.0, *self.H]), torch.tensor([0, 40, 20, 20, 20, 20])
        with_empty = tdur_weights(d, h, tokens, mean_preserving=True)
        assert with_empty[0].item() == 0.0
        assert torch.equal(with_empty[1:], tdur_weights(d[1:], h[1:], tokens[1:], mean_preserving=True))
        # Two turns with tokens and one without are two turns, which the guard leaves alone.
        assert tdur_weights(
            _double([0.1, 0.9, 0.0]), _double([0.1, 0.2, 0.0]), torch.tensor([5, 5, 0])
        ).tolist() == [
            1.0,
            1.0,
            0.0,
        ]

    @given(st.lists(STEP, max_size=14), st.booleans(), st.integers(1, 4), st.sampled_from([0.0, 0.01, 1.0]))
    @settings(max_examples=100, deadline=None)
    def test_equals_a_loop(self, steps, mean_preserving, min_turns, min_divergence):
        d, h, tokens, trajectory = (
            (list(column) for column in zip(*steps, strict=True)) if steps else ([],) * 4
        )
        options = {
            "min_turns": min_turns,
            "min_divergence": min_divergence,
            "mean_preserving": mean_preserving,
        }
        ours = tdur_weights(
            _double(d),
            _double(h),
            torch.tensor(tokens, dtype=torch.int64),
            torch.tensor(trajectory, dtype=torch.int64),
            **options,
        )
        wanted = _double(_tdur_by_loop(d, h, tokens, trajectory, **options))
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)

    def test_infinite_values_stand_out_without_nan(self):
        ones = torch.ones(3, dtype=torch.int64)
        weights = tdur_weights(_double([0.1, torch.inf, 0.3]), _double([0.3, 0.1, 0.2]), ones)
        torch.testing.assert_close(weights, _double([1.0, 1.0, 0.5]))

    def test_detached(self):
        d = _double(self.D).requires_grad_()
        assert not tdur_weights(d, _double(self.H), torch.ones(5)).requires_grad


class TestWeightingObjects:
    STATISTICS = StepStatistics(
        divergence=_double([0.2, 0.4, 0.0, 0.3, 0.9]),
        uncertainty=_double([0.5, 0.4, 0.0, 0.1, 0.3]),
        entropy=_double([0.4, 0.5, 0.0, 0.2, 0.2]),
        tokens=torch.tensor([3, 4, 0, 5, 6]),
        trajectory=torch.tensor([0, 0, 0, 0, 0]),
    )

    def test_sod(self):
        s = self.STATISTICS
        wanted = sod_weights(s.divergence, s.trajectory, delta=0.5, epsilon=1e-3, step_tokens=s.tokens)
        assert torch.equal(SodWeighting(delta=0.5, epsilon=1e-3)(s), wanted)

    def test_turn(self):
        s = self.STATISTICS
        options = {"min_turns": 2, "min_divergence": 0.1, "mean_preserving": True}
        wanted = tdur_weights(s.divergence, s.uncertainty, s.tokens, s.trajectory, **options)
        assert torch.equal(TurnWeighting(**options)(s), wanted)

    @pytest.mark.parametrize("weighting", [SodWeighting(), TurnWeighting()])
    def test_frozen(self, weighting):
        with pytest.raises(AttributeError):
            weighting.delta = 1.0


OK = {"step_divergence": torch.ones(3), "step_uncertainty": torch.ones(3), "step_tokens": torch.ones(3)}
BAD_STEPS = [
    ({"step_divergence": [1.0]}, TypeError, "step_divergence is list; wanted a tensor"),
    (
        {"step_divergence": torch.ones(3, dtype=torch.int64)},
        TypeError,
        "step_divergence has dtype torch.int64",
    ),
    ({"step_divergence": torch.ones(3, 1)}, ValueError, r"step_divergence has shape \(3, 1\); wanted \(S,\)"),
    ({"step_divergence": torch.tensor([1.0, -0.5, 1.0])}, ValueError, "holds -0.5; wanted at least 0"),
    ({"step_trajectory": torch.zeros(2, dtype=torch.int64)}, ValueError, r"step_trajectory has shape \(2,\)"),
    ({"step_trajectory": torch.zeros(3)}, TypeError, "step_trajectory has dtype torch.float32"),
    ({"step_tokens": torch.ones(4)}, ValueError, r"step_tokens has shape \(4,\); wanted \(3,\)"),
    ({"step_tokens": torch.ones(3, device="meta")}, ValueError, "step_tokens is on meta; wanted cpu"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_STEPS)
def test_bad_steps(change, error, message):
    arguments = {**OK, **change}
    with pytest.raises(error, match=f"tdur_weights: .*{message}|tdur_weights: {message}"):
        tdur_weights(**arguments)
    arguments.pop("step_uncertainty")
    with pytest.raises(error, match=f"sod_weights: .*{message}|sod_weights: {message}"):
        sod_weights(**arguments)


def test_uncertainty_must_match():
    with pytest.raises(TypeError, match=r"step_uncertainty has dtype torch.float64; wanted one of float32"):
        tdur_weights(**{**OK, "step_uncertainty": torch.ones(3, dtype=DOUBLE)})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"delta": -0.1}, ValueError, "delta=-0.1; wanted a finite number of at least 0"),
        ({"delta": math.nan}, ValueError, "delta=nan"),
        ({"delta": "0.2"}, TypeError, "delta is str; wanted a Python number"),
        ({"delta": True}, TypeError, "delta is bool"),
        ({"epsilon": 0.0}, ValueError, "epsilon=0.0; wanted a finite number above 0"),
        ({"epsilon": math.inf}, ValueError, "epsilon=inf"),
    ],
)
def test_bad_sod_options(options, error, message):
    with pytest.raises(error, match=f"sod_weights: {message}"):
        sod_weights(torch.ones(2), **options)
    with pytest.raises(error, match=f"SodWeighting: {message}"):
        SodWeighting(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_turns": 0}, ValueError, "min_turns=0; wanted at least 1"),
        ({"min_turns": 2.0}, TypeError, "min_turns is float; wanted an integer"),
        ({"min_divergence": -1}, ValueError, "min_divergence=-1; wanted a finite number of at least 0"),
        ({"mean_preserving": 1}, TypeError, "mean_preserving is int; wanted True or False"),
    ],
)
def test_bad_turn_options(options, error, message):
    with pytest.raises(error, match=f"tdur_weights: {message}"):
        tdur_weights(**OK, **options)
    with pytest.raises(error, match=f"TurnWeighting: {message}"):
        TurnWeighting(**options)
