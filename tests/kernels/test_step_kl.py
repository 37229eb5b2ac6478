"""What `step_kl` promises, on the reference backend: the others are held against the same kit."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sod_kernels import SodWeighting, StepStatistics, TurnWeighting, sod_weights, step_kl, steps_from_mask
from sod_kernels.testing import make_case, truth

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
MASK = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 0, 0]])


def _inputs(shape=(2, 7, 11), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    sampled = torch.randint(shape[-1], shape[:-1], generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), sampled


def _kl(student, teacher):
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _OpSpy(TorchDispatchMode):
    """Notes the calls of our ops, and the memory of their logits."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sod_kernels":
            logits = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.dim() == 3]
            self.calls.append((func._opname, [arg.data_ptr() for arg in logits]))
        return func(*args, **(kwargs or {}))


class TestOutputs:
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_equals_textbook_formulas(self, divergence):
        case = make_case("scattered_steps", divergence=divergence, dtype=torch.float64)
        out = step_kl(
            case.student_logits,
            case.teacher_logits,
            case.step_ids,
            sampled_ids=case.sampled_ids,
            num_steps=case.num_steps,
            step_trajectory=torch.zeros(case.num_steps, dtype=torch.int64),
            divergence=divergence,
            beta=0.3 if divergence == "jsd" else None,
        )
        exact = truth(case)
        for name in ("token_kl", "student_entropy", "student_log_probs", "teacher_log_probs"):
            torch.testing.assert_close(getattr(out, name), getattr(exact, name))

    def test_step_statistics(self):
        student, teacher, sampled = _inputs()
        ids = steps_from_mask(MASK)
        kept = {}

        def watch(statistics):
            kept["statistics"] = statistics
            return torch.ones_like(statistics.divergence)

        out = step_kl(student, teacher, ids, sampled_ids=sampled, weighting=watch)
        statistics = kept["statistics"]
        assert out.step_tokens.tolist() == [2, 3, 2, 1]
        assert statistics.trajectory.tolist() == [0, 0, 1, 1]
        for step in range(4):
            at = ids == step
            torch.testing.assert_close(out.step_divergence[step], out.token_kl[at].mean().detach())
            torch.testing.assert_close(
                statistics.uncertainty[step], -out.student_log_probs[at].mean().detach()
            )
        step_kl(student, teacher, ids, weighting=watch)
        torch.testing.assert_close(
            kept["statistics"].uncertainty[1], out.student_entropy[ids == 1].mean().detach()
        )
        out = step_kl(student, teacher, ids, sampled_ids=sampled, step_divergence="abs_log_ratio")
        gap = (out.student_log_probs - out.teacher_log_probs).abs().detach()
        torch.testing.assert_close(out.step_divergence[0], gap[ids == 0].mean())

    def test_detached_and_differentiable_parts(self):
        student, teacher, sampled = _inputs()
        teacher.requires_grad_()
        out = step_kl(student, teacher, response_mask=MASK, sampled_ids=sampled, weighting=SodWeighting())
        for name in ("loss", "token_kl", "student_entropy", "student_log_probs"):
            assert getattr(out, name).requires_grad, name
        for name in ("step_divergence", "step_weights", "step_tokens", "teacher_log_probs"):
            assert not getattr(out, name).requires_grad, name
        (out.loss + out.student_entropy.sum()).backward()
        assert teacher.grad is None
        assert bool((student.grad[MASK == 0] == 0).all())

    @pytest.mark.parametrize(
        ("dtype", "wanted"),
        [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
    )
    def test_output_dtypes(self, dtype, wanted):
        student, teacher, sampled = _inputs(dtype=dtype)
        out = step_kl(student, teacher, sampled_ids=sampled, backend="reference")
        names = (
            "loss",
            "token_kl",
            "student_entropy",
            "student_log_probs",
            "step_divergence",
            "step_weights",
        )
        assert {getattr(out, name).dtype for name in names} == {wanted}
        assert out.step_tokens.dtype == torch.int64
        out.loss.backward()
        assert student.grad.dtype == dtype

    def test_log_probs_are_none_without_sampled_ids(self):
        student, teacher, _ = _inputs()
        out = step_kl(student, teacher)
        assert out.student_log_probs is None
        assert out.teacher_log_probs is None

    def test_jsd_ends_are_the_kls(self):
        student, teacher, _ = _inputs()
        for beta, name in ((0, "forward_kl"), (1, "reverse_kl")):
            ours = step_kl(student, teacher, divergence="jsd", beta=beta).token_kl
            assert torch.equal(ours, step_kl(student, teacher, divergence=name).token_kl)

    def test_jsd_beta_defaults_to_a_half_and_weighs_the_teacher(self):
        student, teacher, _ = _inputs()
        p, q = student.softmax(-1), teacher.softmax(-1)
        for beta in (None, 0.5, 0.2):
            weight = 0.5 if beta is None else beta
            mixture = (1 - weight) * p + weight * q
            wanted = weight * (q * (q / mixture).log()).sum(-1) + (1 - weight) * (
                p * (p / mixture).log()
            ).sum(-1)
            torch.testing.assert_close(
                step_kl(student, teacher, divergence="jsd", beta=beta).token_kl, wanted
            )

    def test_temperature_divides_both_without_a_square(self):
        student, teacher, _ = _inputs()
        out = step_kl(student, teacher, temperature=2.5)
        torch.testing.assert_close(out.token_kl, _kl(student / 2.5, teacher / 2.5))


class TestGradient:
    @pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5)])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_gradcheck_of_every_output(self, divergence, shape):
        student, teacher, sampled = _inputs(shape)
        ids = torch.arange(math.prod(shape[:-1])).view(shape[:-1]) // 2
        ids = ids if len(shape) == 2 else torch.tensor([[0, -1, 1], [2, 2, 3]])
        weights = torch.linspace(0.3, 1.2, int(ids.max()) + 1, dtype=torch.float64)

        def outputs(logits):
            out = step_kl(
                logits,
                teacher,
                ids,
                sampled_ids=sampled,
                divergence=divergence,
                temperature=0.7,
                weighting=weights,
                reduction="step_mean",
            )
            return out.loss, out.token_kl, out.student_log_probs, out.student_entropy

        assert torch.autograd.gradcheck(outputs, (student,))

    @pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
    def test_gradcheck_with_a_floor(self, divergence):
        student, teacher, _ = _inputs((6, 9))

        def loss(logits):
            return step_kl(logits, teacher, divergence=divergence, min_log_prob=-2.5).loss

        floored = (
            _kl(student, teacher).detach() - step_kl(student, teacher, min_log_prob=-2.5).token_kl.detach()
        )
        assert float(floored.abs().max()) > 0.01
        assert torch.autograd.gradcheck(loss, (student,))

    def test_one_backward_sweep_for_everything(self):
        student, teacher, sampled = _inputs()
        with _OpSpy() as spy:
            out = step_kl(student, teacher, response_mask=MASK, sampled_ids=sampled, weighting=SodWeighting())
            advantage = torch.randn(MASK.shape, dtype=torch.float64)
            mixed = out.loss + (out.student_log_probs * advantage).sum() - 0.01 * out.student_entropy.mean()
            (mixed + out.token_kl.square().sum()).backward()
        assert [name for name, _ in spy.calls] == ["step_kl_forward", "step_kl_backward"]

    def test_views_go_in_without_a_copy(self):
        student, teacher, _ = _inputs((2, 8, 11))
        with _OpSpy() as spy:
            step_kl(student[:, :-1], teacher[:, 1:], response_mask=MASK)
        assert spy.calls[0][1] == [student.data_ptr(), teacher[:, 1:].data_ptr()]

    def test_other_layouts_give_the_same(self):
        student, teacher, _ = _inputs()
        want = step_kl(student, teacher, response_mask=MASK).loss
        turned = student.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
        assert turned.stride(-1) != 1
        out = step_kl(turned, teacher, response_mask=MASK)
        assert torch.equal(out.loss, want)
        (grad,) = torch.autograd.grad(out.loss, turned)
        assert torch.equal(grad, torch.autograd.grad(want, student)[0])

    def test_double_backward_says_that_there_is_none(self):
        student, teacher, _ = _inputs()
        (grad,) = torch.autograd.grad(step_kl(student, teacher).loss, student, create_graph=True)
        with pytest.raises(RuntimeError, match="create_graph=True"):
            grad.sum().backward()

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_gradient_rows_sum_to_zero(self, divergence):
        student, teacher, sampled = _inputs()
        out = step_kl(student, teacher, sampled_ids=sampled, divergence=divergence)
        (out.loss + out.student_log_probs.sum() + out.student_entropy.sum()).backward()
        assert float(student.grad.abs().max()) > 0.1
        assert float(student.grad.sum(-1).abs().max()) < 1e-14

    def test_infinite_divergence_has_no_gradient_but_the_others_do(self):
        student, teacher, sampled = _inputs((2, 5))
        teacher[0, 1] = -torch.inf
        out = step_kl(student, teacher, sampled_ids=sampled)
        assert out.token_kl.isinf().tolist() == [True, False]
        (grad,) = torch.autograd.grad(out.token_kl.sum(), student, retain_graph=True)
        assert bool((grad[0] == 0).all())
        assert float(grad[1].abs().max()) > 0
        (grad,) = torch.autograd.grad(out.student_log_probs.sum() + out.student_entropy.sum(), student)
        assert bool(grad.isfinite().all())
        assert float(grad[0].abs().max()) > 0


class TestExcludedTokens:
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("reduction", ["none", "sum", "token_mean", "step_mean", "sequence_mean"])
    def test_garbage_outside_steps_changes_nothing(self, divergence, reduction):
        student, teacher, sampled = _inputs()
        options = {"divergence": divergence, "reduction": reduction, "response_mask": MASK}
        options["weighting"] = SodWeighting()
        clean = step_kl(student, teacher, sampled_ids=sampled, **options)
        (want,) = torch.autograd.grad(clean.loss.sum(), student)
        outside = MASK == 0
        dirty = student.detach().clone()
        dirty[outside] = torch.tensor(
            [torch.nan, torch.inf, -torch.inf] * 3 + [0.0, 1e30], dtype=torch.float64
        )
        dirty.requires_grad_()
        out = step_kl(
            dirty,
            torch.where(outside[..., None], torch.nan, teacher),
            sampled_ids=torch.where(outside, -100, sampled),
            token_weights=torch.where(outside, torch.nan, torch.ones(MASK.shape)),
            **options,
        )
        (grad,) = torch.autograd.grad(out.loss.sum(), dirty)
        assert torch.equal(out.loss, clean.loss)
        assert torch.equal(grad, want)
        assert bool((grad[outside] == 0).all())
        for name in ("token_kl", "student_entropy", "student_log_probs", "teacher_log_probs"):
            assert bool((getattr(out, name)[outside] == 0).all()), name

    def test_weight_zero_silences_an_infinite_divergence(self):
        student, teacher, _ = _inputs((4, 5))
        teacher[2, 1] = -torch.inf
        ids = torch.tensor([0, 0, 1, 1])
        out = step_kl(student, teacher, ids, weighting=SodWeighting())
        assert out.step_weights.tolist() == [1.0, 0.0]
        torch.testing.assert_close(out.loss, out.token_kl[:2].sum() / 4)
        (grad,) = torch.autograd.grad(out.loss, student)
        assert bool(grad.isfinite().all())
        assert bool((grad[2:] == 0).all())

    def test_padded_vocabulary_equals_the_sliced_one(self):
        student, teacher, sampled = _inputs((2, 7, 11))
        wide_student = torch.cat(
            [student.detach(), torch.full((2, 7, 3), torch.nan, dtype=torch.float64)], -1
        )
        wide_teacher = torch.cat([teacher, torch.full((2, 7, 6), 1e9, dtype=torch.float64)], -1)
        wide_student.requires_grad_()
        sliced = step_kl(student, teacher, response_mask=MASK, sampled_ids=sampled)
        padded = step_kl(wide_student, wide_teacher, response_mask=MASK, sampled_ids=sampled, vocab_size=11)
        assert torch.equal(sliced.loss, padded.loss)
        sliced.loss.backward()
        padded.loss.backward()
        assert torch.equal(wide_student.grad[..., :11], student.grad)
        assert bool((wide_student.grad[..., 11:] == 0).all())

    @pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
    @pytest.mark.parametrize("reduction", ["none", "sum", "token_mean", "step_mean", "sequence_mean"])
    def test_empty_batches(self, shape, reduction):
        student, teacher, sampled = _inputs(shape)
        out = step_kl(student, teacher, sampled_ids=sampled, reduction=reduction, weighting=SodWeighting())
        assert out.loss.sum().item() == 0.0
        out.loss.sum().backward()
        assert student.grad.shape == shape

    def test_batch_without_a_step(self):
        student, teacher, _ = _inputs((3, 5))
        out = step_kl(student, teacher, torch.full((3,), -1), weighting=TurnWeighting())
        assert out.loss.item() == 0.0
        assert out.step_weights.shape == (0,)
        out.loss.backward()
        assert bool((student.grad == 0).all())


class TestSteps:
    def test_packed_equals_padded(self):
        student, teacher, sampled = _inputs()
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
        student, teacher, _ = _inputs()
        assert step_kl(student, teacher).step_tokens.tolist() == [7, 7]
        assert step_kl(student[0], teacher[0]).step_tokens.tolist() == [7]

    def test_one_row_per_turn_with_given_trajectories(self):
        student, teacher, _ = _inputs((5, 4, 11))
        trajectory = torch.tensor([70, -3, 70, -3, 70])
        out = step_kl(student, teacher, step_trajectory=trajectory, weighting=SodWeighting())
        assert torch.equal(out.step_weights, sod_weights(out.step_divergence, trajectory))
        assert out.step_weights[:2].tolist() == [1.0, 1.0]

    def test_a_step_may_span_rows_if_its_trajectory_is_given(self):
        student, teacher, _ = _inputs((2, 2, 5))
        ids = torch.tensor([[0, 1], [1, 2]])
        out = step_kl(student, teacher, ids, step_trajectory=torch.zeros(3, dtype=torch.int64))
        assert out.step_tokens.tolist() == [1, 2, 1]

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
    def test_id_dtypes(self, dtype):
        student, teacher, sampled = _inputs()
        out = step_kl(student, teacher, steps_from_mask(MASK).to(dtype), sampled_ids=sampled.to(dtype))
        assert torch.equal(out.loss, step_kl(student, teacher, response_mask=MASK).loss)

    def test_weights_of_steps_reach_their_tokens(self):
        student, teacher, _ = _inputs()
        weights = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
        out = step_kl(student, teacher, response_mask=MASK, weighting=weights, reduction="none")
        per_token = torch.cat([weights, torch.zeros(1)])[steps_from_mask(MASK)]
        torch.testing.assert_close(out.loss, per_token * _kl(student, teacher))

    @given(cut=st.lists(st.integers(0, 3), min_size=12, max_size=12))
    @settings(max_examples=25, deadline=None)
    def test_resegmentation_moves_no_token(self, cut):
        student, teacher, _ = _inputs((12, 6))
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
        student, teacher, _ = _inputs((10, 6))
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
        arguments = (_kl(student, teacher).detach(), self.IDS, self.WEIGHTS, token_weights, self.TRAJECTORY)
        wanted = torch.as_tensor(_loop(reduction, *arguments), dtype=torch.float64)
        torch.testing.assert_close(out.loss.detach(), wanted)

    @pytest.mark.parametrize(
        ("reduction", "own"), [("token_mean", 8), ("step_mean", 4), ("sequence_mean", 2)]
    )
    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_denominator_replaces_the_last_divisor(self, reduction, own, as_tensor):
        student, teacher, _ = _inputs((10, 6))
        options = {"step_trajectory": self.TRAJECTORY, "reduction": reduction}
        plain = step_kl(student, teacher, self.IDS, **options).loss
        divisor = torch.tensor(32) if as_tensor else 32
        torch.testing.assert_close(
            step_kl(student, teacher, self.IDS, denominator=divisor, **options).loss, plain * own / 32
        )

    @pytest.mark.parametrize("reduction", ["token_mean", "step_mean", "sequence_mean"])
    def test_accumulation_over_micro_batches_equals_one_batch(self, reduction):
        student, teacher, _ = _inputs((4, 5, 6))
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
        student, teacher, _ = _inputs((3, 5))
        weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
        step_kl(student, teacher, token_weights=weights).loss.backward()
        assert weights.grad is None


class TestWeightings:
    def test_function_sees_the_statistics_without_gradient(self):
        student, teacher, _ = _inputs()

        def halve(statistics):
            assert isinstance(statistics, StepStatistics)
            assert not torch.is_grad_enabled()
            return 0.5 / (1.0 + statistics.divergence)

        out = step_kl(student, teacher, response_mask=MASK, weighting=halve)
        torch.testing.assert_close(out.step_weights, 0.5 / (1.0 + out.step_divergence))

    def test_weights_are_reproducible_from_the_output(self):
        student, teacher, _ = _inputs(dtype=torch.float32)
        out = step_kl(student, teacher, response_mask=MASK, weighting=SodWeighting(delta=0.5))
        assert torch.equal(
            out.step_weights, sod_weights(out.step_divergence, torch.tensor([0, 0, 1, 1]), delta=0.5)
        )

    def test_no_weighting_means_one_where_there_are_tokens(self):
        student, teacher, _ = _inputs()
        out = step_kl(student, teacher, response_mask=MASK, num_steps=5)
        assert out.step_weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


class TestInvariants:
    @given(seed=st.integers(0, 10**6), shift=st.floats(-1e4, 1e4), divergence=st.sampled_from(DIVERGENCES))
    @settings(max_examples=40, deadline=None)
    def test_shift_of_either_row_changes_nothing(self, seed, shift, divergence):
        student, teacher, _ = _inputs((3, 17), seed=seed)
        before = step_kl(student, teacher, divergence=divergence).token_kl
        after = step_kl(student + shift, teacher - shift, divergence=divergence).token_kl
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)

    @given(seed=st.integers(0, 10**6), scale=st.floats(0, 30), divergence=st.sampled_from(DIVERGENCES))
    @settings(max_examples=40, deadline=None)
    def test_never_negative(self, seed, scale, divergence):
        student, teacher, _ = _inputs((3, 17), dtype=torch.float32, seed=seed)
        teacher = student.detach() + scale * 1e-3 * teacher
        assert bool((step_kl(student, teacher, divergence=divergence).token_kl >= 0).all())

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_equal_logits_have_no_divergence_and_no_gradient(self, divergence):
        student, _, _ = _inputs()
        out = step_kl(student, student.detach().clone(), divergence=divergence)
        assert out.token_kl.abs().max().item() < 1e-15
        out.loss.backward()
        assert float(student.grad.abs().max()) < 1e-15

    def test_bitwise_repeatable_and_inputs_untouched(self):
        student, teacher, sampled = _inputs(dtype=torch.float32)
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
