"""Heads for the units of `unit_inputs`, and `unit_kl` on full logits, that tests of the linear form share."""

from dataclasses import replace

import torch
from linear_inputs import full_logits, learned
from unit_inputs import random_pair, run

from sod_kernels import linear_unit_kl

STEPS = torch.tensor([0] * 5 + [1] * 4 + [2] * 6)
# Of a span on the student's side only, on the teacher's, on both, of neither, and a single pair that is none.
LENGTHS = [(1, 1), (2, 1), (1, 1), (1, 3), (3, 2), (1, 1), (1, 1), (2, 2)]


def make_case(*, dtype=torch.float64, has_bias=False, sizes=(37, 41), **pair_options):
    """The units, and keyword arguments of both heads; the pair's logits are not those of the heads."""
    pair = random_pair(sizes=sizes, lengths=LENGTHS, **pair_options)
    generator = torch.Generator().manual_seed(11)
    heads = {}
    for model, rows, columns, size in (
        ("student", len(pair.student), sizes[0], 6),
        ("teacher", len(pair.teacher), sizes[1], 9),
    ):
        shapes = {"hidden": (rows, size), "weight": (columns, size)}
        if has_bias:
            shapes["bias"] = (columns,)
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            heads[f"{model}_{name}"] = values.requires_grad_(model == "student")
    return pair, heads


def run_linear(pair, heads, **options):
    options = {"backend": "reference", **options}
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids}
    return linear_unit_kl(**heads, units=pair.units, vocab_map=pair.vocab_map, **labels, **options)


def through_logits(pair, heads, *, scales=None, softcaps=None, dtype=torch.float64, **options):
    """`unit_kl` on full logits, to be differentiated by autograd."""
    student, teacher = (
        full_logits(
            heads,
            model,
            dtype,
            scale=(scales or {}).get(model, 1.0),
            softcap=(softcaps or {}).get(model),
        )
        for model in ("student", "teacher")
    )
    return run(replace(pair, student=student, teacher=teacher), **options)


def gradients(loss, heads, **options):
    return torch.autograd.grad(loss, [each for each in learned(heads) if each.requires_grad], **options)
