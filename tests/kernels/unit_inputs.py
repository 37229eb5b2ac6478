"""Inputs and an independent float64 formula that the tests of `unit_kl` share."""

import math
from dataclasses import dataclass, replace

import torch

from sod_kernels import Units, VocabMap, unit_kl

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
SCORES = ("log_prob", "logit")


@dataclass(frozen=True)
class Pair:
    """One batch of two tokenisers."""

    student: torch.Tensor
    teacher: torch.Tensor
    student_ids: torch.Tensor
    teacher_ids: torch.Tensor
    units: Units
    vocab_map: VocabMap

    @property
    def swapped(self):
        units, columns = self.units, self.vocab_map
        return Pair(
            self.teacher,
            self.student,
            self.teacher_ids,
            self.student_ids,
            Units(units.teacher_spans, units.student_spans),
            VocabMap(columns.teacher_columns, columns.student_columns),
        )

    def to(self, dtype):
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))


def run(pair, **options):
    options = {"backend": "reference", **options}
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids}
    return unit_kl(pair.student, pair.teacher, pair.units, pair.vocab_map, **labels, **options)


def run_with_gradient(pair, **options):
    student = pair.student.detach().clone().requires_grad_()
    out = run(replace(pair, student=student), **options)
    (grad,) = torch.autograd.grad(out.loss.sum(), student)
    return out, grad


def worked_example():
    """The text "42+" and its end: the student writes 4|2|+|end, the teacher 42|+|end."""
    student = [[2, 1, 0, -1, -2], [0, 3, 1, 2, -1], [0.5, -0.5, 2, 0, 1], [-1, 0, -1, 0, 3]]
    teacher = [[-2, 0, 2.5, 0.5, 1.5, -1], [1, 3, -1, 0, -0.5, 0.5], [4, 0, -2, -1, 0, 1]]
    return Pair(
        torch.tensor(student, dtype=torch.float64),
        torch.tensor(teacher, dtype=torch.float64),
        torch.tensor([0, 1, 2, 4]),
        torch.tensor([2, 1, 0]),
        Units(torch.tensor([[0, 2], [2, 3], [3, 4]]), torch.tensor([[0, 1], [1, 2], [2, 3]])),
        VocabMap(torch.tensor([0, 1, 2, 4]), torch.tensor([4, 3, 1, 0])),
    )


def random_pair(seed=0, *, lengths=None, sizes=(37, 41), num_shared=23, dtype=torch.float64, scale=2.0):
    """Units of the given lengths on both sides with a row of nobody between them; shuffled pairs."""
    lengths = lengths or [(1, 1), (2, 1), (1, 1), (1, 3), (3, 2), (1, 1), (1, 1), (2, 2)]
    generator = torch.Generator().manual_seed(seed)
    spans, rows = [], [1, 0]
    for length in lengths:
        spans.append([[rows[side], rows[side] + length[side]] for side in (0, 1)])
        rows = [rows[side] + length[side] + (len(spans) % 3 == 0) for side in (0, 1)]
    spans = torch.tensor(spans, dtype=torch.int64).view(-1, 2, 2)
    logits = [scale * torch.randn(rows[side], sizes[side], generator=generator).double() for side in (0, 1)]
    ids = [torch.randint(sizes[side], (rows[side],), generator=generator) for side in (0, 1)]
    columns = [torch.randperm(size, generator=generator)[:num_shared] for size in sizes]
    # Single tokens are mostly pairs of the map.
    for number, (first, second) in enumerate(spans.tolist()):
        if lengths[number] == (1, 1) and number != 5:
            place = number % num_shared
            ids[0][first[0]], ids[1][second[0]] = columns[0][place], columns[1][place]
    units = Units(spans[:, 0].contiguous(), spans[:, 1].contiguous())
    logits = [each.to(dtype) for each in logits]
    return Pair(*logits, *ids, units, VocabMap(*columns))


def _divergence(a, b, divergence, beta):
    def kl(one, other):
        return (one.exp() * (one - other)).sum()

    if divergence == "reverse_kl":
        return kl(a, b)
    if divergence == "forward_kl":
        return kl(b, a)
    m = torch.logaddexp(a + math.log(1 - beta), b + math.log(beta))
    return beta * kl(b, m) + (1 - beta) * kl(a, m)


def textbook(pair, *, score="log_prob", divergence="reverse_kl", beta=0.5, temperature=1.0, **options):
    """The scores of the paper, one unit after the other: log-probabilities, then the softmax over the space.

    Returns (U,) divergences of float64 logits, differentiable by the student's.
    """
    masks, topk = options.get("mask_first_token", False), options.get("topk")
    x, y = pair.student.double() / temperature, pair.teacher.double() / temperature
    student = dict(
        zip(pair.vocab_map.student_columns.tolist(), range(pair.vocab_map.num_shared), strict=True)
    )
    teacher = dict(
        zip(pair.vocab_map.teacher_columns.tolist(), range(pair.vocab_map.num_shared), strict=True)
    )
    values = []
    spans = zip(pair.units.student_spans.tolist(), pair.units.teacher_spans.tolist(), strict=True)
    for (s0, s1), (t0, t1) in spans:
        labels = pair.student_ids[s0:s1].tolist(), pair.teacher_ids[t0:t1].tolist()
        is_pair = student.get(labels[0][0], -1) == teacher.get(labels[1][0], -2)
        has_span = not (s1 - s0 == t1 - t0 == 1 and is_pair)
        keep = list(range(len(student)))
        if has_span and masks:
            keep = [c for c in keep if c not in (student.get(labels[0][0]), teacher.get(labels[1][0]))]
        if topk is not None:
            order = x[s0, pair.vocab_map.student_columns[keep]].topk(min(topk, len(keep))).indices
            keep = [keep[place] for place in order.tolist()]
        scores = []
        for z, columns, first, ids in (
            (x, pair.vocab_map.student_columns, s0, labels[0]),
            (y, pair.vocab_map.teacher_columns, t0, labels[1]),
        ):
            rows = z[first : first + len(ids)]
            log_p = rows.log_softmax(-1)
            whole = rows if score == "logit" else log_p
            row = whole[0, columns[keep]]
            if has_span:
                row = torch.cat([row, whole[torch.arange(len(ids)), torch.tensor(ids)].mean()[None]])
            scores.append(row.log_softmax(-1))
        values.append(_divergence(*scores, divergence, beta))
    return torch.stack(values)
