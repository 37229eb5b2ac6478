"""What `step_kl` promises of its outputs, its gradient and the tokens it leaves out (reference backend)."""

import math

import pytest
import torch
from step_kl_inputs import DIVERGENCES, MASK, make_inputs, plain_kl
from torch.utils._python_dispatch import TorchDispatchMode

from sod_kernels import SodWeighting, TurnWeighting, step_kl, steps_from_mask
from sod_kernels.testing import make_case, truth


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
        student, teacher, sampled = make_inputs()
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
        student, teacher, sampled = make_inputs()
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
        student, teacher, sampled = make_inputs(dtype=dtype)
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
        student, teacher, _ = make_inputs()
        out = step_kl(student, teacher)
        assert out.student_log_probs is None
        assert out.teacher_log_probs is None

    def test_jsd_ends_are_the_kls(self):
        student, teacher, _ = make_inputs()
        for beta, name in ((0, "forward_kl"), (1, "reverse_kl")):
            ours = step_kl(student, teacher, divergence="jsd", beta=beta).token_kl
            assert torch.equal(ours, step_kl(student, teacher, divergence=name).token_kl)

    def test_jsd_beta_defaults_to_a_half_and_weighs_the_teacher(self):
        student, teacher, _ = make_inputs()
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
        student, teacher, _ = make_inputs()
        out = step_kl(student, teacher, temperature=2.5)
        torch.testing.assert_close(out.token_kl, plain_kl(student / 2.5, teacher / 2.5))


class TestGradient:
    @pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5)])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_gradcheck_of_every_output(self, divergence, shape):
        student, teacher, sampled = make_inputs(shape)
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
        student, teacher, _ = make_inputs((6, 9))

        def loss(logits):
            return step_kl(logits, teacher, divergence=divergence, min_log_prob=-2.5).loss

        floored = (
            plain_kl(student, teacher).detach()
            - step_kl(student, teacher, min_log_prob=-2.5).token_kl.detach()
        )
        assert float(floored.abs().max()) > 0.01
        assert torch.autograd.gradcheck(loss, (student,))

    def test_one_backward_sweep_for_everything(self):
        student, teacher, sampled = make_inputs()
        with _OpSpy() as spy:
            out = step_kl(student, teacher, response_mask=MASK, sampled_ids=sampled, weighting=SodWeighting())
            advantage = torch.randn(MASK.shape, dtype=torch.float64)
            mixed = out.loss + (out.student_log_probs * advantage).sum() - 0.01 * out.student_entropy.mean()
            (mixed + out.token_kl.square().sum()).backward()
        assert [name for name, _ in spy.calls] == ["step_kl_forward", "step_kl_backward"]

    def test_views_go_in_without_a_copy(self):
        student, teacher, _ = make_inputs((2, 8, 11))
        with _OpSpy() as spy:
            step_kl(student[:, :-1], teacher[:, 1:], response_mask=MASK)
        assert spy.calls[0][1] == [student.data_ptr(), teacher[:, 1:].data_ptr()]

    def test_other_layouts_give_the_same(self):
        student, teacher, _ = make_inputs()
        want = step_kl(student, teacher, response_mask=MASK).loss
        turned = student.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
        assert turned.stride(-1) != 1
        out = step_kl(turned, teacher, response_mask=MASK)
        assert torch.equal(out.loss, want)
        (grad,) = torch.autograd.grad(out.loss, turned)
        assert torch.equal(grad, torch.autograd.grad(want, student)[0])

    def test_double_backward_says_that_there_is_none(self):
        student, teacher, _ = make_inputs()
        (grad,) = torch.autograd.grad(step_kl(student, teacher).loss, student, create_graph=True)
        with pytest.raises(RuntimeError, match="create_graph=True"):
            grad.sum().backward()

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_gradient_rows_sum_to_zero(self, divergence):
        student, teacher, sampled = make_inputs()
        out = step_kl(student, teacher, sampled_ids=sampled, divergence=divergence)
        (out.loss + out.student_log_probs.sum() + out.student_entropy.sum()).backward()
        assert float(student.grad.abs().max()) > 0.1
        assert float(student.grad.sum(-1).abs().max()) < 1e-14

    def test_infinite_divergence_has_no_gradient_but_the_others_do(self):
        student, teacher, sampled = make_inputs((2, 5))
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
        student, teacher, sampled = make_inputs()
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
        student, teacher, _ = make_inputs((4, 5))
        teacher[2, 1] = -torch.inf
        ids = torch.tensor([0, 0, 1, 1])
        out = step_kl(student, teacher, ids, weighting=SodWeighting())
        assert out.step_weights.tolist() == [1.0, 0.0]
        torch.testing.assert_close(out.loss, out.token_kl[:2].sum() / 4)
        (grad,) = torch.autograd.grad(out.loss, student)
        assert bool(grad.isfinite().all())
        assert bool((grad[2:] == 0).all())

    def test_padded_vocabulary_equals_the_sliced_one(self):
        student, teacher, sampled = make_inputs((2, 7, 11))
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
        student, teacher, sampled = make_inputs(shape)
        out = step_kl(student, teacher, sampled_ids=sampled, reduction=reduction, weighting=SodWeighting())
        assert out.loss.sum().item() == 0.0
        out.loss.sum().backward()
        assert student.grad.shape == shape

    def test_batch_without_a_step(self):
        student, teacher, _ = make_inputs((3, 5))
        out = step_kl(student, teacher, torch.full((3,), -1), weighting=TurnWeighting())
        assert out.loss.item() == 0.0
        assert out.step_weights.shape == (0,)
        out.loss.backward()
        assert bool((student.grad == 0).all())
