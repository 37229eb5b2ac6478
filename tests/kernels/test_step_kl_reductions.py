"""What `step_kl` promises of steps, weights and reductions, and what must never change its result."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_kl_inputs import DIVERGENCES, MASK, make_inputs, plain_kl

from sod_kernels import SodWeighting, StepStatistics, TurnWeighting, sod_weights, step_kl, steps_from_mask


class TestSteps:
    def test_packed_equals_padded(self):
        student, teacher, sampled = make_inputs()
        padded = step_kl(
            student, teacher, response_mask=MASK, sampled_ids=sampled, weighting=SodWeighting(), num_steps=6
        )
        packed = step_kl(
            student.flatten(0, 1),
            teacher.flatten(0, 1),
            steps_from_mask(MASK).flatten(),
            sampled_ids=sampled.flatten(),
            step_trajectory=torch.tensor([0, 0, 1, 1, 0, 0]),
            weighting=SodWeighting(),
        )
        assert torch.equal(padded.loss, packed.loss)
        assert torch.equal(padded.step_weights, packed.step_weights)
        assert torch.equal(padded.token_kl.flatten(), packed.token_kl)
        assert padded.step_tokens.tolist() == [2, 3, 2, 1, 0, 0]

    def test_without_ids_and_mask_a_row_is_a_step(self):
        student, teacher, _ = make_inputs()
        assert step_kl(student, teacher).step_tokens.tolist() == [7, 7]
        assert step_kl(student[0], teacher[0]).step_tokens.tolist() == [7]

    def test_one_row_per_turn_with_given_trajectories(self):
        student, teacher, _ = make_inputs((5, 4, 11))
        trajectory = torch.tensor([70, -3, 70, -3, 70])
        out = step_kl(student, teacher, step_trajectory=trajectory, weighting=SodWeighting())
        assert torch.equal(out.step_weights, sod_weights(out.step_divergence, trajectory))
        assert out.step_weights[:2].tolist() == [1.0, 1.0]

    def test_a_step_may_span_rows_if_its_trajectory_is_given(self):
        student, teacher, _ = make_inputs((2, 2, 5))
        ids = torch.tensor([[0, 1], [1, 2]])
        out = step_kl(student, teacher, ids, step_trajectory=torch.zeros(3, dtype=torch.int64))
        assert out.step_tokens.tolist() == [1, 2, 1]

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
    def test_id_dtypes(self, dtype):
        student, teacher, sampled = make_inputs()
        out = step_kl(student, teacher, steps_from_mask(MASK).to(dtype), sampled_ids=sampled.to(dtype))
        assert torch.equal(out.loss, step_kl(student, teacher, response_mask=MASK).loss)

    def test_weights_of_steps_reach_their_tokens(self):
        student, teacher, _ = make_inputs()
        weights = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
        out = step_kl(student, teacher, response_mask=MASK, weighting=weights, reduction="none")
        per_token = torch.cat([weights, torch.zeros(1)])[steps_from_mask(MASK)]
        torch.testing.assert_close(out.loss, per_token * plain_kl(student, teacher))

    @given(cut=st.lists(st.integers(0, 3), min_size=12, max_size=12))
    @settings(max_examples=25, deadline=None)
    def test_resegmentation_moves_no_token(self, cut):
        student, teacher, _ = make_inputs((12, 6))
        ids = torch.tensor(cut)
        fine = step_kl(student, teacher, ids, num_steps=4)
        coarse = step_kl(student, teacher, torch.where(ids < 2, 0, 1), num_steps=2)
        assert torch.equal(fine.loss, coarse.loss)
        sums = (fine.step_divergence * fine.step_tokens).view(2, 2).sum(1)
        torch.testing.assert_close(sums, coarse.step_divergence * coarse.step_tokens)


def _loop(reduction, token_kl, ids, weights, token_weights, trajectory):
    """The reductions as loops over Python numbers."""
    by_step, tokens = {}, []
    for kl, step, weight in zip(token_kl.tolist(), ids.tolist(), token_weights.tolist(), strict=True):
        value = 0.0 if step < 0 else weights[step].item() * weight * kl
        tokens.append(value)
        if step >= 0:
            by_step.setdefault(step, []).append(value)
    counted = [value for values in by_step.values() for value in values]
    if reduction == "none":
        return torch.tensor(tokens, dtype=torch.float64)
    if reduction == "sum":
        return sum(counted)
    if reduction == "token_mean":
        return sum(counted) / len(counted)
    groups = by_step
    if reduction == "sequence_mean":
        groups = {}
        for step, values in by_step.items():
            groups.setdefault(trajectory[step].item(), []).extend(values)
    return sum(sum(values) / len(values) for values in groups.values()) / len(groups)


class TestReductions:
    IDS = torch.tensor([4, 0, 0, -1, 2, 2, 2, 5, -1, 4])
    TRAJECTORY = torch.tensor([9, 9, -2, 5, 9, -2])
    WEIGHTS = torch.tensor([1.0, torch.nan, 0.4, torch.nan, 1.2, 0.7], dtype=torch.float64)

    @pytest.mark.parametrize("reduction", ["none", "sum", "token_mean", "step_mean", "sequence_mean"])
    def test_equals_a_loop(self, reduction):
        student, teacher, _ = make_inputs((10, 6))
        token_weights = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
        out = step_kl(
            student,
            teacher,
            self.IDS,
            step_trajectory=self.TRAJECTORY,
            weighting=self.WEIGHTS,
            token_weights=token_weights,
            reduction=reduction,
        )
        arguments = (
            plain_kl(student, teacher).detach(),
            self.IDS,
            self.WEIGHTS,
            token_weights,
            self.TRAJECTORY,
        )
        wanted = torch.as_tensor(_loop(reduction, *arguments), dtype=torch.float64)
        torch.testing.assert_close(out.loss.detach(), wanted)

    @pytest.mark.parametrize(
        ("reduction", "own"), [("token_mean", 8), ("step_mean", 4), ("sequence_mean", 2)]
    )
    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_denominator_replaces_the_last_divisor(self, reduction, own, as_tensor):
        student, teacher, _ = make_inputs((10, 6))
        options = {"step_trajectory": self.TRAJECTORY, "reduction": reduction}
        plain = step_kl(student, teacher, self.IDS, **options).loss
        divisor = torch.tensor(32) if as_tensor else 32
        torch.testing.assert_close(
            step_kl(student, teacher, self.IDS, denominator=divisor, **options).loss, plain * own / 32
        )

    @pytest.mark.parametrize("reduction", ["token_mean", "step_mean", "sequence_mean"])
    def test_accumulation_over_micro_batches_equals_one_batch(self, reduction):
        student, teacher, _ = make_inputs((4, 5, 6))
        ids = torch.arange(4)[:, None].expand(4, 5) * 2 + torch.tensor([0, 0, 1, 1, -1]).clamp(max=1)
        ids = torch.where(torch.tensor([True, True, True, True, False]), ids, -1)
        whole = step_kl(student, teacher, ids, reduction=reduction).loss
        total = {"token_mean": 16, "step_mean": 8, "sequence_mean": 4}[reduction]
        parts = [
            step_kl(
                student[rows],
                teacher[rows],
                ids[rows] - 4 * half * (ids[rows] >= 0),
                reduction=reduction,
                denominator=total,
            ).loss
            for half, rows in enumerate((slice(0, 2), slice(2, 4)))
        ]
        torch.testing.assert_close(whole, parts[0] + parts[1])

    def test_token_weights_get_no_gradient(self):
        student, teacher, _ = make_inputs((3, 5))
        weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
        step_kl(student, teacher, token_weights=weights).loss.backward()
        assert weights.grad is None


class TestWeightings:
    def test_function_sees_the_statistics_without_gradient(self):
        student, teacher, _ = make_inputs()

        def halve(statistics):
            assert isinstance(statistics, StepStatistics)
            assert not torch.is_grad_enabled()
            return 0.5 / (1.0 + statistics.divergence)

        out = step_kl(student, teacher, response_mask=MASK, weighting=halve)
        torch.testing.assert_close(out.step_weights, 0.5 / (1.0 + out.step_divergence))

    def test_weights_are_reproducible_from_the_output(self):
        student, teacher, _ = make_inputs(dtype=torch.float32)
        out = step_kl(student, teacher, response_mask=MASK, weighting=SodWeighting(delta=0.5))
        assert torch.equal(
            out.step_weights, sod_weights(out.step_divergence, torch.tensor([0, 0, 1, 1]), delta=0.5)
        )

    def test_no_weighting_means_one_where_there_are_tokens(self):
        student, teacher, _ = make_inputs()
        out = step_kl(student, teacher, response_mask=MASK, num_steps=5)
        assert out.step_weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


class TestInvariants:
    @given(seed=st.integers(0, 10**6), shift=st.floats(-1e4, 1e4), divergence=st.sampled_from(DIVERGENCES))
    @settings(max_examples=40, deadline=None)
    def test_shift_of_either_row_changes_nothing(self, seed, shift, divergence):
        student, teacher, _ = make_inputs((3, 17), seed=seed)
        before = step_kl(student, teacher, divergence=divergence).token_kl
        after = step_kl(student + shift, teacher - shift, divergence=divergence).token_kl
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)

    @given(seed=st.integers(0, 10**6), scale=st.floats(0, 30), divergence=st.sampled_from(DIVERGENCES))
    @settings(max_examples=40, deadline=None)
    def test_never_negative(self, seed, scale, divergence):
        student, teacher, _ = make_inputs((3, 17), dtype=torch.float32, seed=seed)
        teacher = student.detach() + scale * 1e-3 * teacher
        assert bool((step_kl(student, teacher, divergence=divergence).token_kl >= 0).all())

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_equal_logits_have_no_divergence_and_no_gradient(self, divergence):
        student, _, _ = make_inputs()
        out = step_kl(student, student.detach().clone(), divergence=divergence)
        assert out.token_kl.abs().max().item() < 1e-15
        out.loss.backward()
        assert float(student.grad.abs().max()) < 1e-15

    def test_bitwise_repeatable_and_inputs_untouched(self):
        student, teacher, sampled = make_inputs(dtype=torch.float32)
        given_tensors = [student, teacher, MASK, sampled, torch.ones(MASK.shape)]
        before = copy.deepcopy([tensor.detach() for tensor in given_tensors])

        def run():
            out = step_kl(
                student,
                teacher,
                response_mask=MASK,
                sampled_ids=sampled,
                token_weights=given_tensors[-1],
                weighting=TurnWeighting(min_turns=1, mean_preserving=True),
            )
            return out.loss, torch.autograd.grad(out.loss, student)[0]

        first, second = run(), run()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, given_tensors, strict=True))
