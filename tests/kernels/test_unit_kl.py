"""`unit_kl` against the hand-worked example, the textbook formula and its own promises, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unit_inputs import (
    DIVERGENCES,
    SCORES,
    Pair,
    random_pair,
    run,
    run_with_gradient,
    textbook,
    worked_example,
)

from sod_kernels import Units, VocabMap, step_kl

# Of the unit "42", "+" and the end; then the sum's gradient.
VALUES = {
    ("log_prob", "reverse_kl"): [0.115838, 0.191470, 0.051222],
    ("log_prob", "forward_kl"): [0.112704, 0.138132, 0.027516],
    ("log_prob", "jsd"): [0.028268, 0.038636, 0.008546],
    ("logit", "reverse_kl"): [0.029682, 0.191470, 0.051222],
    ("logit", "forward_kl"): [0.028446, 0.138132, 0.027516],
    ("logit", "jsd"): [0.007244, 0.038636, 0.008546],
}
LOSSES = {"log_prob": 0.089633, "logit": 0.068094}
GRADIENTS = {
    "log_prob": [
        [-0.016552, 0.035706, -0.013700, -0.003600, -0.001854],
        [0.003600, -0.041308, 0.009785, 0.026599, 0.001324],
    ],
    "logit": [[0.033568, 0.032986, -0.009210, 0, -0.001246], [0, -0.056098, 0, 0, 0]],
}
LAST_ROWS = [[0.198560, -0.000546, -0.305505, 0, 0.107491], [-0.001545, 0.087453, -0.001545, 0, -0.084363]]
SWAPPED = {
    "log_prob": ([0.112704, 0.138132, 0.027516], [-0.001083, -0.008, 0.215738, -0.055578, -0.151076, 0]),
    "logit": ([0.028446, 0.138132, 0.027516], [0.001097, 0.008104, 0.098727, -0.029026, -0.078901, 0]),
}


def close(ours, wanted, tolerance=6e-7):
    torch.testing.assert_close(ours, torch.as_tensor(wanted, dtype=ours.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("score", SCORES)
def test_worked_example_values(score, divergence):
    out = run(worked_example(), score=score, divergence=divergence)
    close(out.unit_kl, VALUES[score, divergence])
    close(out.loss, sum(VALUES[score, divergence]) / 4)
    assert out.step_tokens.tolist() == [4]
    assert out.step_units.tolist() == [3]


@pytest.mark.parametrize("score", SCORES)
def test_worked_example_gradient(score):
    out, grad = run_with_gradient(worked_example(), score=score)
    close(out.loss, LOSSES[score])
    close(4 * grad, GRADIENTS[score] + LAST_ROWS, 1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_worked_example_with_the_roles_swapped(score):
    values, first_row = SWAPPED[score]
    out, grad = run_with_gradient(worked_example().swapped, score=score, reduction="sum")
    close(out.unit_kl, values)
    close(grad[0], first_row, 1e-6)


def test_worked_example_of_a_coarser_alignment():
    example = worked_example()
    coarse = Units(torch.tensor([[0, 3], [3, 4]]), torch.tensor([[0, 2], [2, 3]]))
    for score, value in (("log_prob", 0.153552), ("logit", 0.096013)):
        close(run(replace(example, units=coarse), score=score).unit_kl, [value, 0.051222])


def test_worked_example_of_the_teacher_mass():
    for score in SCORES:
        out = run(worked_example(), score=score, min_teacher_mass=0.5)
        close(out.unit_teacher_mass, [0.981435, 0.923692, 0.952296])
        assert out.unit_steps.tolist() == [0, 0, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("score", SCORES)
def test_equals_the_textbook(score, divergence, temperature):
    pair = random_pair()
    options = {"score": score, "divergence": divergence, "temperature": temperature}
    if divergence == "jsd":
        options["beta"] = 0.3
    out, grad = run_with_gradient(pair, reduction="sum", **options)
    student = pair.student.clone().requires_grad_()
    wanted = textbook(replace(pair, student=student), **options)
    torch.testing.assert_close(out.unit_kl, wanted.detach(), rtol=1e-10, atol=1e-12)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), student)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"mask_first_token": True}, {"topk": 5}, {"topk": 5, "mask_first_token": True}]
)
@pytest.mark.parametrize("score", SCORES)
def test_narrower_spaces_equal_the_textbook(score, options):
    pair = random_pair(4)
    # Spans whose first tokens are shared, on one side or on both.
    ids, columns = pair.student_ids.clone(), pair.vocab_map
    ids[pair.units.student_spans[1, 0]] = columns.student_columns[9]
    teacher_ids = pair.teacher_ids.clone()
    teacher_ids[pair.units.teacher_spans[[1, 4], 0]] = columns.teacher_columns[[3, 4]]
    pair = replace(pair, student_ids=ids, teacher_ids=teacher_ids)
    out, grad = run_with_gradient(pair, reduction="sum", score=score, **options)
    student = pair.student.clone().requires_grad_()
    wanted = textbook(replace(pair, student=student), score=score, **options)
    torch.testing.assert_close(out.unit_kl, wanted.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.sum(), student)[0], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(out.unit_kl, run(pair, score=score).unit_kl)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("score", SCORES)
def test_gradcheck(score, divergence):
    pair = random_pair(1, sizes=(9, 8), num_shared=5, lengths=[(2, 1), (1, 1), (1, 2)])
    student = pair.student.requires_grad_()

    def losses(logits):
        out = run(replace(pair, student=logits), score=score, divergence=divergence)
        return out.loss, out.unit_kl

    assert torch.autograd.gradcheck(losses, student)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_identity_map_and_single_tokens_are_step_kl(divergence):
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(6, 300, generator=generator) for _ in range(2))
    ids = torch.randint(300, (6,), generator=generator)
    spans = torch.stack([torch.arange(6), torch.arange(1, 7)], -1)
    every = torch.arange(300)
    pair = Pair(student, teacher, ids, ids, Units(spans, spans), VocabMap(every, every))
    steps = torch.tensor([0, 0, 1, 1, 1, 2])
    for backend in ("reference", "native"):
        options = {"divergence": divergence, "step_ids": steps, "num_steps": 3, "backend": backend}
        out, grad = run_with_gradient(pair, **options)
        x = student.clone().requires_grad_()
        wanted = step_kl(x, teacher, options.pop("step_ids"), **options)
        wanted.loss.backward()
        tolerance = {"rtol": 0, "atol": 0} if backend == "native" else {"rtol": 1e-7, "atol": 1e-9}
        torch.testing.assert_close(out.unit_kl, wanted.token_kl.detach(), **tolerance)
        torch.testing.assert_close(out.unit_entropy, wanted.student_entropy.detach(), **tolerance)
        torch.testing.assert_close(grad, x.grad, **tolerance)
        torch.testing.assert_close(out.loss, wanted.loss)
        torch.testing.assert_close(out.step_divergence, wanted.step_divergence)
        assert out.step_tokens.tolist() == wanted.step_tokens.tolist()


@given(st.integers(0, 1000), st.sampled_from(SCORES))
def test_order_of_the_columns_does_not_matter(seed, score):
    pair = random_pair(seed)
    order = torch.randperm(pair.vocab_map.num_shared, generator=torch.Generator().manual_seed(seed))
    columns = pair.vocab_map
    shuffled = VocabMap(columns.student_columns[order], columns.teacher_columns[order])
    first, first_grad = run_with_gradient(pair, score=score)
    second, second_grad = run_with_gradient(replace(pair, vocab_map=shuffled), score=score)
    assert torch.equal(first.unit_kl, second.unit_kl)
    assert torch.equal(first_grad, second_grad)


@pytest.mark.parametrize("row", range(3))
def test_a_shift_of_one_row_of_a_span_tells_the_scores_apart(row):
    pair = random_pair(lengths=[(3, 2)])
    moved = pair.student.clone()
    moved[1 + row] += 1.7
    moved = replace(pair, student=moved)
    close(run(moved).unit_kl, run(pair).unit_kl, 1e-12)
    assert abs(float(run(moved, score="logit").unit_kl - run(pair, score="logit").unit_kl)) > 1e-3
    one = random_pair(lengths=[(1, 2)])
    shifted = replace(one, student=one.student + 1.7)
    close(run(shifted, score="logit").unit_kl, run(one, score="logit").unit_kl, 1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_rows_of_log_probs_add_up_to_zero(divergence):
    _, grad = run_with_gradient(random_pair(2), divergence=divergence)
    close(grad.sum(-1), torch.zeros(len(grad)), 1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("score", SCORES)
def test_equal_sides_differ_by_nothing(score, divergence):
    pair = random_pair(3, lengths=[(1, 1), (2, 2), (3, 3)])
    columns = VocabMap(*(2 * [pair.vocab_map.student_columns]))
    spans = 2 * [pair.units.student_spans]
    ids = pair.student_ids
    pair = Pair(pair.student, pair.student.clone(), ids, ids, Units(*spans), columns)
    out, grad = run_with_gradient(pair, score=score, divergence=divergence)
    close(out.unit_kl, torch.zeros(3), 1e-14)
    close(grad, torch.zeros_like(grad), 1e-14)


def test_rows_outside_units_are_not_read():
    pair = random_pair()
    inside = torch.zeros(len(pair.student), dtype=torch.bool)
    for start, end in pair.units.student_spans.tolist():
        inside[start:end] = True
    assert not inside.all()
    student, teacher = pair.student.clone(), pair.teacher.clone()
    student[~inside] = torch.nan
    ids = torch.where(inside, pair.student_ids, 10**6)
    out, grad = run_with_gradient(replace(pair, student=student, teacher=teacher, student_ids=ids))
    assert torch.equal(out.unit_kl, run(pair).unit_kl)
    assert (grad[~inside] == 0).all()
    assert (grad[inside] != 0).any(-1).all()


def test_tokens_in_no_step_silence_their_units_and_are_not_counted():
    """As the appended end of a response that was cut, or a unit that reaches into an observation."""
    pair = worked_example()
    student = pair.student.clone()
    student[3] = torch.nan
    cut = replace(pair, student=student)
    out, grad = run_with_gradient(cut, step_ids=torch.tensor([0, 0, 0, -1]))
    close(out.unit_kl, [0.115838, 0.191470, 0])
    close(out.loss, (0.115838 + 0.191470) / 3)
    assert (grad[3] == 0).all()
    assert out.unit_steps.tolist() == [0, 0, -1]
    half = run(pair, step_ids=torch.tensor([0, -1, 0, 0]))
    assert half.unit_steps.tolist() == [-1, 0, 0]
    assert float(half.unit_kl[0]) == 0


def test_a_unit_across_two_steps_belongs_to_the_earlier():
    out = run(worked_example(), step_ids=torch.tensor([0, 1, 1, 1]))
    assert out.unit_steps.tolist() == [0, 1, 1]
    assert out.step_tokens.tolist() == [1, 3]
    assert out.step_units.tolist() == [1, 2]
    close(out.step_divergence, [0.115838, (0.191470 + 0.051222) / 2])


def test_one_to_one_leaves_out_spans_but_counts_their_tokens():
    out, grad = run_with_gradient(worked_example(), unit_filter="one_to_one")
    close(out.unit_kl, [0, 0.191470, 0.051222])
    close(out.loss, (0.191470 + 0.051222) / 4)
    assert (grad[:2] == 0).all()
    assert out.step_units.tolist() == [2]


def test_single_tokens_that_are_no_pair_get_a_span_column():
    pair = random_pair()
    without = run(pair, unit_filter="one_to_one").unit_steps.tolist()
    assert without == [0, -1, 0, -1, -1, -1, 0, -1]


def test_teacher_mass_leaves_out_units_without_loss_or_gradient():
    pair = random_pair(6, num_shared=6)
    mass = run(pair, min_teacher_mass=1e-9).unit_teacher_mass
    middle = float(mass.sort().values[3:5].mean())
    out, grad = run_with_gradient(pair, min_teacher_mass=middle, reduction="sum")
    kept = mass >= middle
    assert kept.tolist() == (out.unit_steps >= 0).tolist()
    assert 0 < int(kept.sum()) < len(kept)
    full = run(pair)
    close(out.loss, full.unit_kl[kept].sum(), 1e-12)
    for number, (start, end) in enumerate(pair.units.student_spans.tolist()):
        assert bool((grad[start:end] != 0).any()) == bool(kept[number])
    # By hand: the shared columns at the first row, and the geometric mean of a span.
    log_p = pair.teacher.log_softmax(-1)
    start, end = pair.units.teacher_spans[3].tolist()
    shared = log_p[start, pair.vocab_map.teacher_columns].exp().sum()
    labels = pair.teacher_ids[start:end]
    span = log_p[torch.arange(start, end), labels].mean().exp()
    close(mass[3], (shared + span).clamp(max=1.0), 1e-12)


def test_excluded_columns_have_no_weight():
    pair = random_pair(lengths=[(2, 1), (1, 1)])
    first, column = pair.units.student_spans[0, 0], pair.vocab_map.student_columns[0]
    student = pair.student.clone()
    student[first, column] = -torch.inf
    out, grad = run_with_gradient(replace(pair, student=student))
    assert out.unit_kl.isfinite().all()
    assert grad.isfinite().all()
    assert grad[first, column] == 0
    teacher = pair.teacher.clone()
    teacher[pair.units.teacher_spans[0, 0], pair.vocab_map.teacher_columns[0]] = -torch.inf
    out, grad = run_with_gradient(replace(pair, teacher=teacher), reduction="none")
    assert out.unit_kl.isinf().tolist() == [True, False]
    assert (grad[first : first + 2] == 0).all()
    assert (grad[pair.units.student_spans[1, 0]] != 0).any()
    both = run(replace(pair, student=student, teacher=teacher))
    assert both.unit_kl.isfinite().all()


def test_a_span_that_a_side_excludes():
    pair = random_pair(lengths=[(2, 2)])
    student, teacher = pair.student.clone(), pair.teacher.clone()
    student[2, pair.student_ids[2]] = -torch.inf
    out, grad = run_with_gradient(replace(pair, student=student))
    assert out.unit_kl.isfinite().all()
    assert grad.isfinite().all()
    teacher[1, pair.teacher_ids[1]] = -torch.inf
    out, grad = run_with_gradient(replace(pair, teacher=teacher))
    assert out.unit_kl.isinf().all()
    assert (grad == 0).all()


def test_padding_columns_count_nowhere():
    pair = random_pair()
    wide = replace(
        pair,
        student=torch.cat([pair.student, torch.full((len(pair.student), 3), 50.0)], -1),
        teacher=torch.cat([pair.teacher, torch.full((len(pair.teacher), 2), 50.0)], -1),
    )
    sizes = {"student_vocab_size": 37, "teacher_vocab_size": 41}
    out, grad = run_with_gradient(wide, **sizes)
    assert torch.equal(out.unit_kl, run(pair).unit_kl)
    assert (grad[:, 37:] == 0).all()
    assert torch.equal(grad[:, :37], run_with_gradient(pair)[1])
    assert not torch.allclose(run(wide).unit_kl, out.unit_kl)


def test_no_units():
    empty = Units(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2, dtype=torch.int64))
    for topk in (None, 2):
        out, grad = run_with_gradient(replace(worked_example(), units=empty), topk=topk)
        assert float(out.loss.detach()) == 0
        assert (grad == 0).all()
        assert out.step_tokens.tolist() == [4]
        assert out.unit_kl.shape == (0,)


def test_top_columns_of_all_are_all():
    pair = random_pair()
    out, grad = run_with_gradient(pair, topk=pair.vocab_map.num_shared, mask_first_token=True)
    wanted, wanted_grad = run_with_gradient(pair, mask_first_token=True)
    assert torch.equal(out.unit_kl, wanted.unit_kl)
    assert torch.equal(grad, wanted_grad)


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def pushes(first, second, *, masks):
    """Both want 42, the student as 4 and 2: what a step of descent does to log p(4) and log p(2 after 4)."""
    rest, later = (1 - first) / 4, (1 - second) / 4
    student = logs([first, rest, rest, rest, rest], [later, second, later, later, later])
    pair = replace(
        worked_example(),
        student=student,
        teacher=logs([0.01, 0.01, 0.95, 0.01, 0.01, 0.01]),
        units=Units(torch.tensor([[0, 2]]), torch.tensor([[0, 1]])),
        student_ids=torch.tensor([0, 1]),
        teacher_ids=torch.tensor([2]),
    )
    _, gradient = run_with_gradient(pair, mask_first_token=masks)
    towards = torch.eye(5, dtype=torch.float64)[:2] - student.exp()
    return (-(gradient * towards).sum(-1)).tolist()


def test_a_right_span_pushes_its_own_first_token_away_unless_that_is_masked():
    assert pushes(0.3, 0.9, masks=False)[0] > 0.05
    assert pushes(0.7, 0.9, masks=False)[0] < -0.02
    assert pushes(0.7, 0.9, masks=True)[0] > 0.05


def test_without_the_first_token_nothing_holds_the_ones_after_it():
    assert pushes(0.98, 0.3, masks=False)[1] > 0.1
    assert abs(pushes(0.98, 0.3, masks=True)[1]) < 0.001


def test_beside_a_longer_span_of_the_teacher_its_first_token_wants_half_of_the_mass():
    # Both want 42: the teacher writes it as 4 and 2, and the student can write 4 too.
    units = Units(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]))
    teacher = logs([1e-9, 1e-9, 1, 1e-9], [1e-9, 1e-9, 1e-9, 1])
    columns = VocabMap(torch.tensor([0, 1]), torch.tensor([2, 3]))
    ids = torch.tensor([2]), torch.tensor([2, 3])

    def distance(of_span, of_first, masks):
        pair = Pair(logs([of_first, 1e-9, of_span]), teacher, *ids, units, columns)
        return float(run(pair, mask_first_token=masks).unit_kl[0])

    assert distance(1.0, 1e-9, False) == pytest.approx(math.log(2), abs=1e-6)
    assert distance(0.5, 0.5, False) == pytest.approx(0, abs=1e-6)
    assert distance(1.0, 1e-9, True) == pytest.approx(0, abs=1e-6)
