"""The cheap truth over distinct rows, against autograd in float64 over all of them."""

from dataclasses import replace

import pytest
import torch

from benchmarks.inputs import HiddenInputs, TopKInputs, make_inputs
from benchmarks.shapes import Case, Pair
from benchmarks.truth import TruthOf
from sod_kernels import SodWeighting, step_kl

# Not a multiple of the 32 distinct rows, so that they occur unequally often.
ROWS = 77
PAIR = Pair(name="tiny", vocab=301, student_width=12, teacher_width=20)
WIDE_STUDENT = Pair(name="tiny", vocab=301, student_width=20, teacher_width=12)


def make(op, pair=PAIR, rows=ROWS):
    return make_inputs(Case(op=op, pair=pair, rows=rows, dtype="float32", top_k=9), "cpu")


def in_float64(inputs):
    """Leaves of all rows and the logits made of them."""
    leaves = tuple(leaf.detach().double().requires_grad_() for leaf in inputs.leaves)
    if isinstance(inputs, HiddenInputs):
        return leaves, leaves[0] @ leaves[1].t(), inputs.teacher.double() @ inputs.teacher_head.double().t()
    return leaves, leaves[0], inputs.teacher.double()


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize(
    ("op", "pair"), [("step_kl", PAIR), ("linear_step_kl", PAIR), ("linear_step_kl", WIDE_STUDENT)]
)
def test_truth_is_what_step_kl_gives_in_float64_over_all_rows(op, pair, divergence, is_weighted):
    inputs = make(op, pair)
    leaves, student, teacher = in_float64(inputs)
    output = step_kl(
        student,
        teacher,
        inputs.rows.step_ids,
        num_steps=inputs.rows.num_steps,
        divergence=divergence,
        weighting=SodWeighting() if is_weighted else None,
    )
    gradients = torch.autograd.grad(output.loss, leaves)
    errors = TruthOf(inputs).errors(output.loss, gradients, divergence, is_weighted=is_weighted)
    assert errors.loss < 1e-12
    assert errors.gradient < 1e-12


def test_steps_differ_enough_for_weights_to_matter():
    inputs = make("step_kl")
    plain, weighted = (TruthOf(inputs).truth("reverse_kl", is_weighted=w) for w in (False, True))
    assert weighted.loss < 0.7 * plain.loss


def test_topk_truth_is_the_divergence_over_the_list_and_a_bucket():
    inputs = make("topk_step_kl")
    assert isinstance(inputs, TopKInputs)
    student = inputs.student.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(ROWS):
        p, q = student[row].softmax(-1), inputs.teacher_log_probs[row].double().exp()
        listed = inputs.teacher_ids[row]
        other = torch.ones(PAIR.vocab, dtype=torch.bool).index_fill(0, listed, False)
        total = total + (p[listed] * (p[listed] / q).log()).sum()
        total = total + p[other].sum() * (p[other].sum() / (1 - q.sum())).log()
    loss = total / ROWS
    errors = TruthOf(inputs).errors(
        loss, torch.autograd.grad(loss, (student,)), "reverse_kl", is_weighted=False
    )
    assert errors.loss < 1e-12
    assert errors.gradient < 1e-11


def exact(inputs):
    leaves, student, teacher = in_float64(inputs)
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return loss, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_a_gradient_wrong_in_one_row_is_seen(row):
    inputs = make("step_kl")
    loss, (gradient,) = exact(inputs)
    gradient[row] *= 1.5
    errors = TruthOf(inputs).errors(loss, (gradient,), "reverse_kl", is_weighted=False)
    assert errors.gradient > 1e-3


@pytest.mark.parametrize("leaf", [0, 1])
def test_a_wrong_gradient_of_either_leaf_is_seen(leaf):
    inputs = make("linear_step_kl")
    loss, gradients = exact(inputs)
    gradients[leaf].mul_(1.01)
    errors = TruthOf(inputs).errors(loss, gradients, "reverse_kl", is_weighted=False)
    assert errors.gradient == pytest.approx(0.01, rel=1e-6)


def test_a_loss_that_is_no_number_is_infinitely_wrong():
    inputs = make("step_kl")
    loss, gradients = exact(inputs)
    truth = TruthOf(inputs)
    nan = loss.detach() * float("nan")
    assert truth.errors(nan, None, "reverse_kl", is_weighted=False).loss == float("inf")
    broken = (gradients[0] * float("nan"),)
    assert truth.errors(loss, broken, "reverse_kl", is_weighted=False).gradient == float("inf")
    assert truth.errors(loss.detach() * 1.1, None, "reverse_kl", is_weighted=False).loss == pytest.approx(0.1)


def test_inputs_are_the_same_every_time_and_rows_repeat():
    first, second = make("step_kl"), make("step_kl")
    assert torch.equal(first.student, second.student)
    source = first.rows.source
    assert torch.equal(first.student, first.student[first.rows.firsts()[source]])
    assert first.rows.counts().sum() == ROWS
    assert set(first.rows.step_ids.tolist()) == set(range(8))


def test_fewer_rows_than_distinct_ones_are_all_distinct():
    inputs = make("step_kl", rows=5)
    assert inputs.rows.counts().tolist() == [1] * 5
    assert replace(inputs.rows).num_steps == 5
