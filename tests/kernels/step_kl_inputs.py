"""Inputs and the plain formula that the tests of `step_kl` share."""

import torch

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
MASK = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 0, 0]])


def make_inputs(shape=(2, 7, 11), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    sampled = torch.randint(shape[-1], shape[:-1], generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), sampled


def plain_kl(student, teacher):
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
