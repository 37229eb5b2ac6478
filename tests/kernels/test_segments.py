"""Masks to step ids, and sums per step, against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sod_kernels import segments, step_means, steps_from_mask
from sod_kernels.segments import dense_ids, segment_sums


def _runs_by_loop(mask):
    ids, current = [], -1
    for row in mask:
        is_inside = False
        ids.append([])
        for bit in row:
            if bit and not is_inside:
                current += 1
            is_inside = bool(bit)
            ids[-1].append(current if bit else -1)
    return ids


class TestStepsFromMask:
    def test_runs_of_two_rows(self):
        mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 1]])
        assert steps_from_mask(mask).tolist() == [[-1, 0, 0, -1, 1], [2, 2, -1, -1, 3]]

    @given(st.integers(0, 4), st.integers(0, 9), st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None)
    def test_equals_a_loop(self, num_rows, num_tokens, random):
        mask = [[random.randint(0, 1) for _ in range(num_tokens)] for _ in range(num_rows)]
        ids = steps_from_mask(torch.tensor(mask, dtype=torch.int64).view(num_rows, num_tokens))
        assert ids.dtype == torch.int64
        assert ids.tolist() == _runs_by_loop(mask)

    @pytest.mark.parametrize(
        "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16]
    )
    def test_mask_dtypes(self, dtype):
        mask = torch.tensor([1, 1, 0, 1]).to(dtype)
        assert steps_from_mask(mask).tolist() == [0, 0, -1, 1]

    def test_more_dimensions_and_strides(self):
        mask = torch.tensor([[[1, 0, 1], [0, 1, 1]], [[1, 1, 1], [0, 0, 0]]])
        assert steps_from_mask(mask).tolist() == [[[0, -1, 1], [-1, 2, 2]], [[3, 3, 3], [-1, -1, -1]]]
        turned = torch.tensor([[1, 0], [1, 1], [0, 1]]).T
        assert steps_from_mask(turned).tolist() == [[0, 0, -1], [-1, 1, 1]]

    def test_mask_is_left_alone(self):
        mask = torch.tensor([[1, 0, 1]])
        steps_from_mask(mask)
        assert mask.tolist() == [[1, 0, 1]]

    @pytest.mark.parametrize(
        ("mask", "error", "message"),
        [
            (
                torch.tensor([0, 2, 1]),
                ValueError,
                "steps_from_mask: response_mask holds 2; wanted only 0 and 1",
            ),
            (torch.tensor([0.0, 0.5]), ValueError, "holds 0.5"),
            (torch.tensor([0.0, torch.nan]), ValueError, "holds nan"),
            (torch.tensor(1), ValueError, "has no dimension"),
            ([0, 1], TypeError, "response_mask is list; wanted a tensor"),
            (torch.tensor([1j]), TypeError, "has dtype torch.complex64"),
        ],
    )
    def test_bad_masks(self, mask, error, message):
        with pytest.raises(error, match=message):
            steps_from_mask(mask)


class TestStepMeans:
    @given(st.lists(st.integers(-1, 5), max_size=40), st.integers(0, 10**6))
    @settings(max_examples=60, deadline=None)
    def test_equals_a_loop(self, ids, seed):
        values = torch.randn(len(ids), generator=torch.Generator().manual_seed(seed))
        means = step_means(values, torch.tensor(ids, dtype=torch.int64), 7)
        assert means.dtype == torch.float64
        for step in range(7):
            chosen = [value for value, index in zip(values.tolist(), ids, strict=True) if index == step]
            assert means[step].item() == pytest.approx(
                sum(chosen) / len(chosen) if chosen else 0.0, abs=1e-12
            )

    def test_values_outside_steps_are_not_read(self):
        values = torch.tensor([[torch.nan, 1.0], [3.0, torch.inf]])
        assert step_means(values, torch.tensor([[-1, 1], [1, -1]]), 2).tolist() == [0.0, 2.0]

    def test_odd_values_stay_in_their_step(self):
        values = torch.tensor([torch.inf, 1.0, torch.nan, 2.0])
        means = step_means(values, torch.tensor([0, 1, 2, 1]), 3)
        assert means[:2].tolist() == [torch.inf, 1.5]
        assert bool(means[2].isnan())

    def test_large_batches_use_lanes_and_chunks_and_agree_with_sorting(self, monkeypatch):
        monkeypatch.setattr(segments, "_CHUNK_TOKENS", 1000)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(-1, 6, (10_007,), generator=generator, dtype=torch.int32)
        values = torch.randn(10_007, generator=generator)
        columns = torch.stack([values, -2.0 * values, values**2, values - 1.0])
        scattered = segments._scatter_sums(columns, ids, 6)
        torch.testing.assert_close(scattered, segments._sorted_sums(columns, ids, 6), rtol=1e-13, atol=1e-12)
        assert scattered[-1].tolist() == [(ids == step).sum().item() for step in range(6)]

    def test_same_bits_for_any_number_of_threads(self):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(-1, 9, (300_000,), generator=generator)
        values = torch.randn(300_000, generator=generator)
        before = torch.get_num_threads()
        try:
            results = []
            for threads in (1, 2, 2):
                torch.set_num_threads(threads)
                results.append(step_means(values, ids, 9))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[1], results[2])

    def test_no_gradient(self):
        values = torch.ones(3, requires_grad=True)
        assert not step_means(values, torch.zeros(3, dtype=torch.int64), 1).requires_grad

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"values": [1.0]}, TypeError, "step_means: values is list; wanted a tensor"),
            ({"values": torch.ones(3, dtype=torch.int64)}, TypeError, "values has dtype torch.int64"),
            (
                {"step_ids": torch.zeros(2, dtype=torch.int64)},
                ValueError,
                r"step_ids has shape \(2,\); wanted \(3,\)",
            ),
            ({"step_ids": torch.zeros(3)}, TypeError, "step_ids has dtype torch.float32"),
            (
                {"step_ids": torch.tensor([0, 1, 2])},
                ValueError,
                r"step_ids holds 2 at \[2\]; wanted ids from -1 to 1",
            ),
            ({"step_ids": torch.tensor([0, -2, 1])}, ValueError, "step_ids holds -2"),
            ({"num_steps": 2.0}, TypeError, "num_steps is float; wanted an integer"),
            ({"num_steps": True}, TypeError, "num_steps is bool"),
            ({"num_steps": -1}, ValueError, "num_steps=-1; wanted at least 0"),
        ],
    )
    def test_bad_arguments(self, change, error, message):
        arguments = {"values": torch.ones(3), "step_ids": torch.tensor([0, 1, -1]), "num_steps": 2}
        with pytest.raises(error, match=message):
            step_means(**{**arguments, **change})


@pytest.mark.parametrize("sums", [segments._scatter_sums, segments._sorted_sums])
def test_both_ways_to_sum(sums):
    values, ids = (
        torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, torch.nan, 5.0, 7.0]]),
        torch.tensor([2, -1, 2, 0]),
    )
    first, second, counts = [8.0, 0.0, 5.0, 0.0], [7.0, 0.0, 8.0, 0.0], [1.0, 0.0, 2.0, 0.0]
    assert sums(values, ids, 4).tolist() == [first, second, counts]
    assert sums(values[:1], ids, 4).tolist() == [first, counts]
    empty = sums(values[:, :0], ids[:0], 2)
    assert empty.tolist() == [[0.0, 0.0]] * 3


def test_segment_sums_accumulate_in_float64():
    values = torch.full((3,), 1.0, dtype=torch.float32)
    values[0] = 2.0**24
    assert segment_sums(values, torch.zeros(3, dtype=torch.int64), 1).item() == 2.0**24 + 2


@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(-2, 2), max_size=20))
@settings(max_examples=60, deadline=None)
def test_dense_ids_number_labels_in_ascending_order(labels):
    rank = {label: number for number, label in enumerate(sorted(set(labels)))}
    assert dense_ids(torch.tensor(labels, dtype=torch.int64)).tolist() == [rank[label] for label in labels]
