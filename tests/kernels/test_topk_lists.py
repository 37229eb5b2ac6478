"""What `topk_step_kl` does with awkward lists and logits, and with tokens in no step (reference backend)."""

import pytest
import torch
from step_kl_inputs import MASK, make_inputs
from topk_inputs import DIVERGENCES, TAILS, TOKEN_FIELDS, make_teacher_lists, run

from sod_kernels import SodWeighting, steps_from_mask


class TestAwkwardLists:
    def test_duplicates_count_once_with_their_largest_value(self):
        student, teacher, sampled = make_inputs()
        log_probs, ids = make_teacher_lists(teacher, 4)
        low = torch.full_like(log_probs[..., :1], -torch.inf)
        doubled = (
            torch.cat([low, log_probs, log_probs[..., 1:2], log_probs[..., :1] - 3.0], -1),
            torch.cat([ids[..., 2:3], ids, ids[..., 1:2], ids[..., :1]], -1),
        )
        for tail in TAILS:
            ours = run(student, doubled, sampled_ids=sampled, tail=tail)
            wanted = run(student, (log_probs, ids), sampled_ids=sampled, tail=tail)
            for name in TOKEN_FIELDS:
                torch.testing.assert_close(getattr(ours, name), getattr(wanted, name), rtol=1e-12, atol=1e-14)

    def test_absent_entries_may_hold_anything(self):
        student, teacher, _ = make_inputs()
        log_probs, ids = make_teacher_lists(teacher, 4)
        odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 5.0], dtype=torch.float64).expand(
            log_probs.shape
        )
        mixed = (torch.cat([odd, log_probs], -1), torch.cat([torch.full_like(ids, -100), ids], -1))
        for tail in TAILS:
            (grad,) = torch.autograd.grad(run(student, mixed, tail=tail).loss, student)
            (want,) = torch.autograd.grad(run(student, (log_probs, ids), tail=tail).loss, student)
            torch.testing.assert_close(grad, want, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_a_token_without_a_list_has_no_divergence(self, tail, divergence):
        student, teacher, sampled = make_inputs((3, 7))
        log_probs, ids = make_teacher_lists(teacher, 4)
        ids[1] = -1
        out = run(student, (log_probs, ids), sampled_ids=sampled, tail=tail, divergence=divergence)
        assert out.token_kl[1] == 0
        assert out.teacher_log_probs[1] == 0
        (grad,) = torch.autograd.grad(out.loss, student)
        assert bool((grad[1] == 0).all())
        assert float(grad[0].abs().max()) > 0

    def test_sampled_token_outside_the_list_gets_the_tail(self):
        student, teacher, _ = make_inputs((5, 7))
        log_probs, ids = make_teacher_lists(teacher, 3, shuffled=False)
        outside = teacher.argsort(-1)[:, 0]
        out = run(student, (log_probs, ids), sampled_ids=outside)
        torch.testing.assert_close(out.teacher_log_probs, (1 - log_probs.exp().sum(-1)).log())
        assert bool(
            (out.teacher_log_probs >= teacher.log_softmax(-1).gather(-1, outside[:, None])[:, 0]).all()
        )
        torch.testing.assert_close(
            out.student_log_probs, student.log_softmax(-1).gather(-1, outside[:, None])[:, 0]
        )
        listed = run(student, (log_probs, ids), sampled_ids=ids[:, 1])
        torch.testing.assert_close(listed.teacher_log_probs, log_probs[:, 1])
        floored = run(student, (log_probs, ids), sampled_ids=ids[:, 1], min_log_prob=-0.5)
        torch.testing.assert_close(floored.teacher_log_probs, log_probs[:, 1].clamp(min=-0.5))

    def test_a_listed_minus_infinity_is_a_probability_of_zero(self):
        student, teacher, _ = make_inputs((2, 7))
        log_probs, ids = make_teacher_lists(teacher, 4)
        log_probs[0, 1] = -torch.inf
        out = run(student, (log_probs, ids))
        assert out.token_kl.isinf().tolist() == [True, False]
        (grad,) = torch.autograd.grad(out.token_kl.sum(), student)
        assert bool((grad[0] == 0).all())
        assert float(grad[1].abs().max()) > 0
        for options in ({"min_log_prob": -9.0}, {"divergence": "jsd"}, {"divergence": "forward_kl"}):
            out = run(student, (log_probs, ids), **options)
            assert bool(out.token_kl.isfinite().all())
            (grad,) = torch.autograd.grad(out.token_kl.sum(), student)
            assert bool(grad.isfinite().all())

    @pytest.mark.parametrize("tail", TAILS)
    def test_a_mass_that_underflows_is_a_mass(self, tail):
        logits = torch.tensor([[0.0, -800.0, 1.0]], dtype=torch.float64, requires_grad=True)
        lists = (torch.tensor([[0.5, 0.0]], dtype=torch.float64).log(), torch.tensor([[0, 1]]))
        assert logits.softmax(-1)[0, 1] == 0
        out = run(logits, lists, tail=tail)
        assert out.token_kl.tolist() == [torch.inf]
        (grad,) = torch.autograd.grad(out.token_kl.sum() + out.student_entropy.sum(), logits)
        assert bool(grad.isfinite().all())

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("tail", TAILS)
    def test_a_student_that_excludes_listed_ids(self, tail, divergence):
        student, teacher, sampled = make_inputs((3, 7))
        log_probs, ids = make_teacher_lists(teacher, 3)
        logits = student.detach().clone()
        logits[0, ids[0, 0]] = -torch.inf
        logits[1, ids[1]] = -torch.inf
        logits.requires_grad_()
        out = run(logits, (log_probs, ids), sampled_ids=sampled, tail=tail, divergence=divergence)
        assert not bool(out.token_kl.isnan().any())
        is_infinite = divergence == "forward_kl" or (tail == "renormalise" and divergence != "forward_kl")
        assert out.token_kl.isinf().tolist() == [
            divergence == "forward_kl",
            is_infinite,
            False,
        ]
        (grad,) = torch.autograd.grad(out.token_kl.sum() + out.student_entropy.sum(), logits)
        assert bool(grad.isfinite().all())

    def test_a_peaked_teacher_whose_list_rounds_to_one_stays_finite(self):
        teacher = torch.zeros(2, 40)
        teacher[:, 5] = 25.0
        student, _, _ = make_inputs((2, 40), dtype=torch.float32)
        log_probs, ids = make_teacher_lists(teacher, 8)
        log_probs[1, ids[1] == 5] = 0.0
        assert float(log_probs.exp().sum(-1).max()) >= 1.0
        out = run(student, (log_probs, ids))
        assert bool(out.token_kl.isfinite().all())
        out.loss.backward()
        assert bool(student.grad.isfinite().all())

    def test_a_student_without_a_tail_has_a_finite_gradient(self):
        student = torch.zeros(1, 6)
        student[:, 2:] = -torch.inf
        student.requires_grad_()
        teacher = torch.tensor([[0.4, 0.4, 0.05, 0.05, 0.05, 0.05]]).log()
        for divergence in DIVERGENCES:
            out = run(student, make_teacher_lists(teacher, 2), divergence=divergence)
            (grad,) = torch.autograd.grad(out.loss, student)
            assert bool(grad.isfinite().all())
            assert out.token_kl.isfinite().all()

    @pytest.mark.parametrize("tail", TAILS)
    def test_a_nan_logit_spoils_its_own_token_only(self, tail):
        student, teacher, sampled = make_inputs((3, 7))
        lists = make_teacher_lists(teacher, 3)
        logits = student.detach().clone()
        logits[1, 2] = torch.nan
        logits.requires_grad_()
        out = run(logits, lists, sampled_ids=sampled, tail=tail)
        assert out.token_kl.isnan().tolist() == [False, True, False]
        (grad,) = torch.autograd.grad(out.token_kl.sum(), logits)
        assert bool(grad[::2].isfinite().all())
        clean = run(student, lists, sampled_ids=sampled, tail=tail)
        assert torch.equal(out.token_kl[::2], clean.token_kl[::2])

    def test_padding_columns_and_packed_rows(self):
        student, teacher, sampled = make_inputs()
        lists = make_teacher_lists(teacher, 4)
        wide = torch.cat([student.detach(), torch.full((2, 7, 3), torch.nan, dtype=torch.float64)], -1)
        wide.requires_grad_()
        padded = run(wide, lists, response_mask=MASK, sampled_ids=sampled, vocab_size=11)
        plain = run(student, lists, response_mask=MASK, sampled_ids=sampled)
        packed = run(
            student.flatten(0, 1),
            [each.flatten(0, 1) for each in lists],
            steps_from_mask(MASK).flatten(),
            sampled_ids=sampled.flatten(),
        )
        assert torch.equal(plain.loss, padded.loss)
        assert torch.equal(plain.token_kl.flatten(), packed.token_kl)
        grads = [torch.autograd.grad(out.loss, at)[0] for out, at in ((padded, wide), (plain, student))]
        assert torch.equal(grads[0][..., :11], grads[1])
        assert bool((grads[0][..., 11:] == 0).all())

    @pytest.mark.parametrize("tail", TAILS)
    def test_garbage_outside_steps_changes_nothing(self, tail):
        student, teacher, sampled = make_inputs()
        log_probs, ids = make_teacher_lists(teacher, 4)
        clean = run(student, (log_probs, ids), response_mask=MASK, sampled_ids=sampled, tail=tail)
        outside = MASK == 0
        dirty = torch.where(outside[..., None], torch.nan, student.detach()).requires_grad_()
        lists = (
            torch.where(outside[..., None], torch.nan, log_probs),
            torch.where(outside[..., None], 1 << 40, ids),
        )
        out = run(
            dirty, lists, response_mask=MASK, sampled_ids=torch.where(outside, -100, sampled), tail=tail
        )
        assert torch.equal(out.loss, clean.loss)
        for name in TOKEN_FIELDS:
            assert bool((getattr(out, name)[outside] == 0).all()), name
        grads = [torch.autograd.grad(each.loss, at)[0] for each, at in ((out, dirty), (clean, student))]
        assert torch.equal(*grads)
        assert bool((grads[0][outside] == 0).all())

    @pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
    def test_empty_batches(self, shape):
        student, _, sampled = make_inputs(shape)
        lists = (torch.zeros(*shape[:-1], 2), torch.zeros(*shape[:-1], 2, dtype=torch.int64))
        out = run(student, lists, sampled_ids=sampled, weighting=SodWeighting())
        assert out.loss.item() == 0.0
        out.loss.backward()
        assert student.grad.shape == shape
