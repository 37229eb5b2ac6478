"""ULD, GOLD and ALM over units: worked numbers, plain formulas, their frame, and what they do not see."""

from dataclasses import replace

import pytest
import torch
from unit_inputs import Pair, random_pair, worked_example

from sod_kernels import (
    CROSS_TOKENIZER_LOSSES,
    SodWeighting,
    Units,
    VocabMap,
    alm_unit_loss,
    gold_unit_loss,
    uld_unit_loss,
    unit_kl,
)

BASELINES = (uld_unit_loss, gold_unit_loss, alm_unit_loss)
STEPS = torch.tensor([0] * 5 + [1] * 4 + [2] * 6)


def run(loss, pair, **options):
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids}
    return loss(
        pair.student, pair.teacher, pair.units, pair.vocab_map, backend="reference", **labels, **options
    )


def close(ours, wanted, tolerance=2e-6):
    torch.testing.assert_close(ours, torch.as_tensor(wanted, dtype=ours.dtype), rtol=0, atol=tolerance)


def test_worked_example_of_alm():
    out = run(alm_unit_loss, worked_example())
    close(out.unit_kl, [0.115992, 0.106867, 0.005753])
    close(out.unit_student_log_probs, [2 * -0.451914, -0.592459, -0.127694])
    close(out.unit_teacher_log_probs, [-0.486496, -0.274384, -0.091334])
    close(out.loss, (0.115992 + 0.106867 + 0.005753) / 4)


def test_worked_example_of_uld():
    out = run(uld_unit_loss, worked_example())
    close(out.unit_kl, [0, 0.441989, 0.074144])
    assert out.unit_steps.tolist() == [-1, 0, 0]


def test_worked_example_of_gold():
    """TRL's numbers, which leave the end of the text out and divide by units."""
    example = worked_example()
    columns = VocabMap(example.vocab_map.student_columns[:3], example.vocab_map.teacher_columns[:3])
    example = replace(example, vocab_map=columns)
    options = {"step_ids": torch.tensor([0, 0, 0, -1]), "reduction": "sum"}
    for weight, value in ((1.0, 0.067791), (0.0, 0.305345), (None, 0.186568)):
        close(run(gold_unit_loss, example, matched_weight=weight, **options).loss / 2, value)


def _rows(logits, span, ids):
    """Distribution of a span's last row, times the probability of the tokens before."""
    start, end = span
    log_p = logits[start:end].log_softmax(-1)
    before = sum(log_p[j, ids[start + j]] for j in range(end - start - 1))
    return (log_p[-1] + before).exp()


def _sorted_distance(p, q):
    p, q = (each.sort(descending=True).values for each in (p, q))
    width = max(len(p), len(q))
    p, q = (torch.cat([each, each.new_zeros(width - len(each))]) for each in (p, q))
    return (p - q).abs().sum()


def plain(name, pair, temperature):
    """(U,) by the formulas, one unit after the other."""
    values = []
    x, y = pair.student / temperature, pair.teacher / temperature
    s, t = pair.vocab_map.student_columns, pair.vocab_map.teacher_columns
    for one, other in zip(pair.units.student_spans.tolist(), pair.units.teacher_spans.tolist(), strict=True):
        p, q = _rows(x, one, pair.student_ids), _rows(y, other, pair.teacher_ids)
        if name == "alm":
            ls, lt = (
                each.log()[ids[span[1] - 1]]
                for each, ids, span in ((p, pair.student_ids, one), (q, pair.teacher_ids, other))
            )
            values.append(lt - ls + lt * (ls / lt).log())
        elif name == "uld":
            values.append(_sorted_distance(p, q))
        else:
            a, b = p[s].clamp(min=1e-8), q[t].clamp(min=1e-8)
            m = 0.7 * a + 0.3 * b
            jsd = (0.7 * a * (a / m).log() + 0.3 * b * (b / m).log()).sum()
            rest = [
                torch.tensor([c not in set(cols.tolist()) for c in range(n)])
                for cols, n in ((s, 37), (t, 41))
            ]
            weight = len(s) / 41
            values.append(weight * jsd + (1 - weight) * _sorted_distance(p[rest[0]], q[rest[1]]))
    return torch.stack(values)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("name", "loss", "options"),
    [
        ("alm", alm_unit_loss, {}),
        ("uld", uld_unit_loss, {"unit_filter": None}),
        ("gold", gold_unit_loss, {"beta": 0.3}),
    ],
)
def test_value_and_gradient_are_those_of_the_formulas(name, loss, options, temperature):
    pair = random_pair(2)
    results = []
    for function in (
        lambda each: run(loss, each, temperature=temperature, **options).unit_kl,
        lambda each: plain(name, each, temperature),
    ):
        student = pair.student.clone().requires_grad_()
        values = function(replace(pair, student=student))
        factors = torch.linspace(-1, 2, 8).double()
        results.append((values.detach(), torch.autograd.grad((factors * values).sum(), student)[0]))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", BASELINES)
def test_the_frame_is_that_of_unit_kl(loss):
    """Steps, weights, padding, rows in no unit or step."""
    pair = random_pair(3)
    options = {"step_ids": STEPS, "step_trajectory": torch.tensor([0, 0, 1]), "token_weights": torch.ones(15)}
    options |= {"weighting": SodWeighting(), "reduction": "step_mean", "unit_filter": "one_to_one"}
    out, same = run(loss, pair, **options), run(unit_kl, pair, **options)
    assert out.unit_steps.tolist() == same.unit_steps.tolist()
    assert out.step_tokens.tolist() == same.step_tokens.tolist()
    assert out.step_units.tolist() == same.step_units.tolist()
    steps = out.unit_steps
    sums = torch.zeros(3).double().index_add(0, steps[steps >= 0], out.unit_kl[steps >= 0])
    close(out.step_divergence, sums / out.step_units.clamp(min=1), 1e-12)
    close(out.loss, (sums * out.step_weights / out.step_tokens).sum() / 3, 1e-12)
    inside = torch.zeros(15, dtype=torch.bool)
    for unit in (steps >= 0).nonzero().flatten().tolist():
        inside[slice(*pair.units.student_spans[unit].tolist())] = True
    student = torch.where(inside[:, None], pair.student, torch.nan)
    wide = torch.cat([student, torch.full((15, 2), 60.0).double()], -1).requires_grad_()
    again = run(loss, replace(pair, student=wide), student_vocab_size=37, **options)
    close(again.unit_kl, out.unit_kl, 1e-12)
    grad = torch.autograd.grad(again.loss, wide)[0]
    assert not grad[~inside].any()
    assert not grad[:, 37:].any()
    assert grad[inside].any(-1).all()


@pytest.mark.parametrize("loss", BASELINES)
def test_equal_sides_do_not_differ_and_no_units_are_no_loss(loss):
    pair = random_pair(3, lengths=[(1, 1), (2, 2), (3, 3)])
    columns = VocabMap(*(2 * [pair.vocab_map.student_columns]))
    spans, ids = 2 * [pair.units.student_spans], pair.student_ids
    pair = Pair(pair.student.requires_grad_(), pair.student.detach(), ids, ids, Units(*spans), columns)
    out = run(loss, pair, unit_filter=None)
    close(out.unit_kl, torch.zeros(3), 1e-14)
    close(torch.autograd.grad(out.loss, pair.student)[0], torch.zeros_like(pair.student), 1e-14)
    nothing = torch.empty(0, 2, dtype=torch.int64)
    out = run(loss, replace(pair, units=Units(nothing, nothing)))
    assert float(out.loss.detach()) == 0
    assert out.unit_kl.shape == (0,)


def test_what_they_do_not_see():
    pair = random_pair(1, lengths=[(1, 1)])
    places = (pair.vocab_map.student_columns[:2], pair.vocab_map.student_columns[[1, 0]])
    swapped = pair.student.clone()
    swapped[:, places[0]] = pair.student[:, places[1]]
    swapped = replace(pair, student=swapped)
    close(run(uld_unit_loss, swapped).unit_kl, run(uld_unit_loss, pair).unit_kl, 1e-14)
    assert not torch.equal(run(gold_unit_loss, swapped).unit_kl, run(gold_unit_loss, pair).unit_kl)
    others = pair.vocab_map.student_columns[5:8]
    assert int(pair.student_ids[1]) not in others.tolist()
    moved = pair.student.clone()
    moved[:, others] = moved[:, others].flip(-1)
    close(run(alm_unit_loss, replace(pair, student=moved)).unit_kl, run(alm_unit_loss, pair).unit_kl, 1e-14)


def test_finite_chunk_temperatures_go_over_into_the_limit():
    pair = random_pair(4)
    for divergence in ("forward_kl", "reverse_kl", "total_variation"):
        limit = run(alm_unit_loss, pair, divergence=divergence).unit_kl
        finite = run(alm_unit_loss, pair, divergence=divergence, chunk_temperature=1e6).unit_kl
        torch.testing.assert_close(1e6 * finite, limit, rtol=1e-4, atol=1e-6)
    one = run(alm_unit_loss, pair, divergence="reverse_kl", chunk_temperature=100.0)
    p, q = ((each / 100).exp() for each in (one.unit_student_log_probs, one.unit_teacher_log_probs))
    close(one.unit_kl, p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(), 1e-12)


def test_uld_of_the_largest_and_the_rest():
    pair = random_pair(lengths=[(1, 1)])
    p = pair.student[1].softmax(-1).sort(descending=True).values
    q = pair.teacher[0].softmax(-1).sort(descending=True).values
    wanted = (p[:4] - q[:4]).abs().sum() + (p[4:].sum() - q[4:].sum()).abs()
    close(run(uld_unit_loss, pair, topk=4).unit_kl, wanted[None], 1e-12)
    assert torch.equal(run(uld_unit_loss, pair, topk=41).unit_kl, run(uld_unit_loss, pair).unit_kl)


def test_ends_of_gold_are_the_kls_of_paired_columns():
    pair = random_pair(lengths=[(1, 1)])
    p = pair.student[1].softmax(-1)[pair.vocab_map.student_columns]
    q = pair.teacher[0].softmax(-1)[pair.vocab_map.teacher_columns]
    for beta, wanted in ((0.0, (q * (q / p).log()).sum()), (1.0, (p * (p / q).log()).sum())):
        close(run(gold_unit_loss, pair, beta=beta, matched_weight=1.0).unit_kl, wanted[None], 1e-12)


def test_the_table_calls_all_alike():
    pair = random_pair()
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids}
    options = {"step_ids": STEPS, "weighting": SodWeighting(), "temperature": 0.9}
    found = {}
    for name, loss in CROSS_TOKENIZER_LOSSES.items():
        student = pair.student.float().requires_grad_()
        arguments = (student, pair.teacher.float(), pair.units, pair.vocab_map)
        out = loss(*arguments, **labels, **options)
        out.loss.backward()
        assert student.grad.isfinite().all()
        assert out.loss.dtype == torch.float32
        assert out.backend == "native"
        found[name] = float(out.loss.detach())
    assert list(found) == ["simct", "simple_opd", "uld", "gold", "alm"]
    assert len(set(found.values())) == 5


@pytest.mark.parametrize(
    ("loss", "changes", "error", "message"),
    [
        (uld_unit_loss, {"topk": 0}, ValueError, "topk=0; wanted at least 1"),
        (
            gold_unit_loss,
            {"matched_weight": 1.5},
            ValueError,
            "matched_weight=1.5; wanted a weight, at most 1",
        ),
        (
            gold_unit_loss,
            {"matched_weight": -0.5},
            ValueError,
            "matched_weight=-0.5; wanted a finite number of",
        ),
        (gold_unit_loss, {"beta": 2.0}, ValueError, "beta=2.0; wanted"),
        (alm_unit_loss, {"divergence": "jsd"}, ValueError, "divergence='jsd'; wanted one of forward_kl"),
        (
            alm_unit_loss,
            {"chunk_temperature": 0.0},
            ValueError,
            "chunk_temperature=0.0; wanted a finite number",
        ),
        (uld_unit_loss, {"unit_filter": "1:1"}, ValueError, "unit_filter='1:1'; wanted one of one_to_one"),
        (alm_unit_loss, {"student_ids": torch.zeros(4)}, TypeError, "student_ids has dtype torch.float32"),
        (
            gold_unit_loss,
            {"temperature": -1.0},
            ValueError,
            "temperature=-1.0; wanted a finite number above 0",
        ),
    ],
)
def test_bad_input_is_named(loss, changes, error, message):
    example = worked_example()
    labels = {"student_ids": example.student_ids, "teacher_ids": example.teacher_ids}
    with pytest.raises(error, match=f"^{loss.__name__}: {message}"):
        loss(example.student, example.teacher, example.units, example.vocab_map, **labels | changes)
