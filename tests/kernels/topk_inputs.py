"""Inputs and an independent float64 formula that the tests of `topk_step_kl` share."""

import torch

from sod_kernels import topk_step_kl

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
TOKEN_FIELDS = ("token_kl", "student_entropy", "student_log_probs", "teacher_log_probs")
TAILS = ("bucket", "renormalise", "drop")


def make_teacher_lists(teacher_logits, k, *, shuffled=True):
    log_probs, ids = teacher_logits.log_softmax(-1).topk(k, dim=-1)
    if shuffled:
        order = torch.randperm(k, generator=torch.Generator().manual_seed(3))
        log_probs, ids = log_probs[..., order], ids[..., order]
    return log_probs, ids


def run(student, lists, *arguments, **options):
    return topk_step_kl(student, *lists, *arguments, backend="reference", **options)


def textbook(student, lists, *, tail, divergence, beta=0.5, temperature=1.0):
    """The categories one token at a time, then the formula over whole probability vectors."""
    vocab_size = student.shape[-1]
    p = (student.double() / temperature).softmax(-1).reshape(-1, vocab_size)
    values = []
    for row, log_q, ids in zip(
        p, lists[0].double().reshape(len(p), -1), lists[1].reshape(len(p), -1), strict=True
    ):
        listed = {}
        for value, token in zip(log_q, ids.tolist(), strict=True):
            if token >= 0 and (token not in listed or value > listed[token]):
                listed[token] = value
        a = row[list(listed)]
        b = torch.stack(list(listed.values())).exp()
        if tail == "bucket" and len(listed) < vocab_size:
            a, b = torch.cat([a, 1 - a.sum()[None]]), torch.cat([b, 1 - b.sum()[None]])
        if tail == "renormalise":
            a, b = a / a.sum(), b / b.sum()
        m = (1 - beta) * a + beta * b
        values.append(
            {
                "reverse_kl": (a * (a / b).log()).sum(),
                "forward_kl": (b * (b / a).log()).sum(),
                "jsd": beta * (b * (b / m).log()).sum() + (1 - beta) * (a * (a / m).log()).sum(),
            }[divergence]
        )
    return torch.stack(values).view(student.shape[:-1])
