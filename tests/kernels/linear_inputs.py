"""Heads, batches and the full-logits formula that the tests of `linear_step_kl` share."""

import torch

from sod_kernels import step_kl

# Steps out of order in the batch and of every length: 0 has 13 rows, 1 one row, 4 none, 2 lies apart.
PACKED_IDS = torch.tensor([-1, -1] + [0] * 13 + [-1] + [1] + [3] * 4 + [2] * 3 + [-1] * 2 + [2] * 2 + [5] * 4)
PACKED_TRAJECTORY = torch.tensor([7, 7, 3, 7, 3, 3])
PADDED_IDS = torch.tensor([[0, 0, 0, -1, 1, 1, 1], [-1, 2, 2, 2, 2, 2, 2], [3, -1, -1, 4, 4, -1, 4]])
NUM_COLUMNS = 11


def make_heads(
    shape,
    *,
    sizes=(4, 6, 3),
    num_columns=(NUM_COLUMNS,) * 3,
    dtype=torch.float64,
    has_bias=False,
    has_reference=False,
    seed=0,
):
    """Keyword arguments: hidden states, weights and biases of student, teacher and perhaps reference."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {}
    models = ("student", "teacher", "reference")[: 3 if has_reference else 2]
    for model, size, columns in zip(models, sizes, num_columns, strict=False):
        tensors = {"hidden": (*shape, size), "weight": (columns, size)}
        if has_bias:
            tensors["bias"] = (columns,)
        for name, its_shape in tensors.items():
            values = torch.randn(its_shape, generator=generator, dtype=torch.float64).to(dtype)
            arguments[f"{model}_{name}"] = values.requires_grad_(model == "student")
    return arguments


def learned(heads):
    return [heads[name] for name in ("student_hidden", "student_weight", "student_bias") if name in heads]


def full_logits(heads, model, dtype, *, scale=1.0, softcap=None, vocab_size=None):
    """What the op must never make: the logits of the whole batch."""
    hidden, weight = heads[f"{model}_hidden"].to(dtype), heads[f"{model}_weight"].to(dtype)[:vocab_size]
    logits = scale * (hidden @ weight.T)
    if f"{model}_bias" in heads:
        logits = logits + heads[f"{model}_bias"].to(dtype)[:vocab_size]
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def through_logits(
    heads, ids, *, scales=None, softcaps=None, vocab_size=None, dtype=torch.float64, **options
):
    """`step_kl` on full logits, to be differentiated by autograd."""
    scales, softcaps = scales or {}, softcaps or {}
    logits = {
        f"{model}_logits": full_logits(
            heads,
            model,
            dtype,
            scale=scales.get(model, 1.0),
            softcap=softcaps.get(model),
            vocab_size=vocab_size,
        )
        for model in ("student", "teacher", "reference")
        if f"{model}_hidden" in heads
    }
    return step_kl(**logits, step_ids=ids, backend="reference", **options)


def norm_error(ours, exact):
    return float((ours.double() - exact.double()).norm() / exact.double().norm())
