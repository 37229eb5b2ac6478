"""What `topk_step_kl` promises of its values, its gradient and awkward lists (reference backend)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_kl_inputs import MASK, make_inputs
from topk_inputs import DIVERGENCES, TAILS, TOKEN_FIELDS, make_teacher_lists, run, textbook
from torch.utils._python_dispatch import TorchDispatchMode

from sod_kernels import SodWeighting, TopKStepKLLoss, step_kl, steps_from_mask, topk_step_kl


class TestValues:
    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("k", [1, 4])
    def test_equals_the_textbook(self, divergence, tail, k):
        student, teacher, _ = make_inputs()
        lists = make_teacher_lists(teacher, k)
        options = {"divergence": divergence, "tail": tail, "temperature": 1.7}
        if divergence == "jsd":
            options["beta"] = 0.3
        ours = run(student, lists, **options).token_kl
        wanted = textbook(student, lists, **options)
        if tail != "drop":
            wanted = wanted.clamp(min=0.0)
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_a_whole_list_is_step_kl(self, divergence, tail):
        student, teacher, sampled = make_inputs()
        batch = {"response_mask": MASK, "sampled_ids": sampled, "divergence": divergence}
        batch["weighting"] = SodWeighting() if tail != "drop" else torch.tensor([0.3, 1.0, 0.0, 2.0])
        ours = run(student, make_teacher_lists(teacher, 11), tail=tail, **batch)
        wanted = step_kl(student, teacher, backend="reference", **batch)
        for name in (*TOKEN_FIELDS, "loss", "step_divergence", "step_weights", "step_tokens"):
            torch.testing.assert_close(getattr(ours, name), getattr(wanted, name), rtol=1e-9, atol=1e-12)
        objectives = (
            out.loss + out.student_log_probs.sum() - 0.1 * out.student_entropy.sum() for out in (ours, wanted)
        )
        grads = [torch.autograd.grad(objective, student)[0] for objective in objectives]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_a_whole_list_in_low_precision(self, dtype):
        student, teacher, _ = make_inputs(dtype=dtype)
        lists = make_teacher_lists(teacher.float(), 11)
        ours = run(student, lists)
        exact = step_kl(student.double(), teacher.double()).token_kl
        assert ours.token_kl.dtype == torch.float32
        torch.testing.assert_close(ours.token_kl.double(), exact, rtol=1e-5, atol=1e-5)
        ours.loss.backward()
        assert student.grad.dtype == dtype

    def test_temperature_divides_the_student_alone(self):
        student, teacher, _ = make_inputs()
        lists = make_teacher_lists(teacher, 5)
        torch.testing.assert_close(
            run(student, lists, temperature=2.0).token_kl, run(student / 2.0, lists).token_kl
        )

    def test_step_statistics_and_weights(self):
        student, teacher, sampled = make_inputs()
        lists, ids = make_teacher_lists(teacher, 6), steps_from_mask(MASK)
        lists = tuple(
            torch.cat([each, extra[..., None]], -1)
            for each, extra in zip(
                lists, (teacher.log_softmax(-1).gather(-1, sampled[..., None])[..., 0], sampled), strict=True
            )
        )
        kept = {}

        def watch(statistics):
            kept["statistics"] = statistics
            return SodWeighting()(statistics)

        out = run(student, lists, ids, sampled_ids=sampled, weighting=watch, step_divergence="abs_log_ratio")
        gap = (out.student_log_probs - out.teacher_log_probs).abs().detach()
        for step in range(4):
            at = ids == step
            torch.testing.assert_close(out.step_divergence[step], gap[at].mean())
            torch.testing.assert_close(
                kept["statistics"].uncertainty[step], -out.student_log_probs[at].mean().detach()
            )
        per_token = torch.cat([out.step_weights, torch.zeros(1)])[ids]
        torch.testing.assert_close(out.loss, (per_token * out.token_kl).sum() / (ids >= 0).sum())
        out = run(student, lists, ids)
        torch.testing.assert_close(out.step_divergence[1], out.token_kl[ids == 1].mean().detach())
        assert out.student_log_probs is None
        assert out.teacher_log_probs is None
        assert out.token_reference_kl is None

    @pytest.mark.parametrize("reduction", ["none", "sum", "token_mean", "step_mean", "sequence_mean"])
    def test_reductions_are_those_of_step_kl(self, reduction):
        student, teacher, _ = make_inputs()
        batch = {"response_mask": MASK, "token_weights": torch.rand(MASK.shape), "reduction": reduction}
        wanted = step_kl(student, teacher, backend="reference", **batch).loss
        torch.testing.assert_close(run(student, make_teacher_lists(teacher, 11), **batch).loss, wanted)


class TestGradient:
    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_gradcheck_of_every_output(self, divergence, tail):
        student, teacher, sampled = make_inputs((2, 3, 6))
        lists, ids = make_teacher_lists(teacher, 3), torch.tensor([[0, -1, 1], [2, 2, 3]])
        weights = torch.linspace(0.3, 1.2, 4, dtype=torch.float64)

        def outputs(logits):
            out = run(
                logits,
                lists,
                ids,
                sampled_ids=sampled,
                divergence=divergence,
                tail=tail,
                temperature=0.7,
                weighting=weights,
                reduction="step_mean",
            )
            return out.loss, out.token_kl, out.student_log_probs, out.student_entropy

        assert torch.autograd.gradcheck(outputs, (student,))

    @pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
    def test_gradcheck_with_a_floor(self, divergence):
        student, teacher, _ = make_inputs((6, 9))
        lists = make_teacher_lists(teacher, 7)

        def loss(logits):
            return run(logits, lists, divergence=divergence, min_log_prob=-2.5).loss

        plain = run(student, lists, divergence=divergence).loss
        assert float((loss(student) - plain).detach().abs()) > 1e-3
        assert torch.autograd.gradcheck(loss, (student,))

    def test_one_walk_over_the_student_forward_and_one_back(self):
        class Spy(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                is_wide = any(isinstance(arg, torch.Tensor) and arg.shape[-1:] == (1009,) for arg in args)
                if is_wide and func.namespace != "prim":
                    seen.append(func._opname)
                return func(*args, **(kwargs or {}))

        seen = []
        student, teacher, sampled = make_inputs((2, 4, 1009))
        lists = make_teacher_lists(teacher, 5)
        with Spy():
            out = run(student, lists, sampled_ids=sampled, weighting=SodWeighting())
            mixed = out.loss + out.student_log_probs.sum() - 0.01 * out.student_entropy.sum()
            mixed.backward()
        assert [name for name in seen if name not in ("detach", "view")] == [
            "log_probs_forward",
            "log_probs_backward",
        ]

    def test_double_backward_says_that_there_is_none(self):
        student, teacher, _ = make_inputs()
        out = run(student, make_teacher_lists(teacher, 3))
        (grad,) = torch.autograd.grad(out.loss, student, create_graph=True)
        with pytest.raises(RuntimeError, match=r"^topk_step_kl: .*create_graph=True"):
            grad.sum().backward()

    @pytest.mark.parametrize("tail", TAILS)
    def test_rows_sum_to_zero(self, tail):
        student, teacher, _ = make_inputs()
        run(student, make_teacher_lists(teacher, 4), tail=tail).loss.backward()
        assert float(student.grad.abs().max()) > 1e-3
        assert float(student.grad.sum(-1).abs().max()) < 1e-14


class TestBucketProperties:
    @given(seed=st.integers(0, 10**6), scale=st.floats(0, 30), divergence=st.sampled_from(DIVERGENCES))
    def test_never_negative(self, seed, scale, divergence):
        student, teacher, _ = make_inputs((4, 17), dtype=torch.float32, seed=seed)
        near = student.detach() + scale * 1e-3 * teacher
        lists = make_teacher_lists(scale * near, 1 + seed % 17)
        assert bool((run(scale * student, lists, divergence=divergence).token_kl >= 0).all())

    @given(seed=st.integers(0, 10**6), divergence=st.sampled_from(DIVERGENCES))
    def test_grows_with_the_list_up_to_step_kl(self, seed, divergence):
        student, teacher, _ = make_inputs((3, 9), seed=seed)
        whole = step_kl(student, teacher, divergence=divergence, backend="reference").token_kl
        values = [
            run(student, make_teacher_lists(teacher, k, shuffled=False), divergence=divergence).token_kl
            for k in range(1, 10)
        ]
        for fewer, more in zip(values, (*values[1:], whole), strict=True):
            # A tail is 1 minus a sum: a small one of the teacher has few digits left.
            assert bool((more - fewer >= -1e-9).all())

    def test_equal_sides_have_no_divergence_and_no_gradient(self):
        student, _, _ = make_inputs()
        out = run(student, make_teacher_lists(student.detach(), 4))
        assert out.token_kl.max().item() < 1e-14
        out.loss.backward()
        assert float(student.grad.abs().max()) < 1e-14

    def test_drop_goes_negative_where_bucket_does_not(self):
        teacher = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64).log()
        student = torch.tensor([[0.2, 0.4, 0.4]], dtype=torch.float64).log()
        lists = make_teacher_lists(teacher, 1)
        assert float(run(student, lists, tail="drop").token_kl) == pytest.approx(
            -0.2 * 1.3862943611, rel=1e-9
        )
        assert float(run(student, lists).token_kl) > 0

    def test_what_lies_below_zero_is_reported_as_zero_and_keeps_its_gradient(self):
        # As rounding may put it there, and a floor under the teacher does for certain.
        student, _, _ = make_inputs((4, 50))
        out = run(student, make_teacher_lists(student.detach(), 20), min_log_prob=-3.0)
        assert out.token_kl.tolist() == [0.0] * 4
        out.token_kl.sum().backward()
        assert bool((student.grad.abs().amax(-1) > 1e-3).all())


def test_bitwise_repeatable_and_inputs_untouched():
    student, teacher, sampled = make_inputs(dtype=torch.float32)
    lists = make_teacher_lists(teacher, 5)
    before = [each.detach().clone() for each in (student, *lists, sampled)]
    results = []
    for _ in range(2):
        out = run(student, lists, response_mask=MASK, sampled_ids=sampled)
        results.append((out.loss, *torch.autograd.grad(out.loss, student)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (student, *lists, sampled), strict=True))


def test_module_is_the_function_with_the_options_kept():
    student, teacher, sampled = make_inputs()
    lists = make_teacher_lists(teacher, 5)
    options = {"tail": "renormalise", "divergence": "jsd", "beta": 0.3, "temperature": 1.7, "vocab_size": 11}
    options |= {"weighting": SodWeighting(), "reduction": "sequence_mean", "backend": "reference"}
    batch = {"response_mask": MASK, "sampled_ids": sampled, "num_steps": 5, "denominator": 7.0}
    batch |= {"step_trajectory": torch.tensor([0, 0, 1, 1, 1]), "token_weights": torch.rand(MASK.shape)}
    ours = TopKStepKLLoss(**options)(student, *lists, **batch)
    assert torch.equal(ours.loss, topk_step_kl(student, *lists, **batch, **options).loss)
    assert repr(TopKStepKLLoss(tail="drop")) == "TopKStepKLLoss(tail='drop')"
    assert repr(TopKStepKLLoss()) == "TopKStepKLLoss()"
