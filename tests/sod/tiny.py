"""Tiny models, and attempts that they might have made."""

from __future__ import annotations

import torch

from sod.models import build_qwen3
from sod.types import Trajectory, Turn

V = 40
"""Tokens of `make_model`."""


def sharpened(model):
    """Multiply the matrices of a model in place, so that probabilities depend visibly on every token."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model


def make_model(seed, hidden_size=16):
    return build_qwen3(
        vocab_size=V,
        hidden_size=hidden_size,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=64,
        seed=seed,
    ).eval()


def sampled_trajectories(model, count=5, temperature=0.8, turns=2):
    """Random ids with the log-probs that the model gives them, one plain forward per trajectory."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        lengths = [(3, 2 + index), *[(2, 3)] * (turns - 1)]
        ids = torch.randint(0, V, (sum(a + b for a, b in lengths),), generator=generator)
        with torch.no_grad():
            log_probs = (model(input_ids=ids[None]).logits[0].double() / temperature).log_softmax(1)
        played, at = [], 0
        for context, sampled in lengths:
            begin, at = at, at + context + sampled
            positions = range(begin + context, at)
            played.append(
                Turn(
                    context_ids=tuple(ids[begin : begin + context].tolist()),
                    sampled_ids=tuple(ids[p].item() for p in positions),
                    sampled_log_probs=tuple(float(log_probs[p - 1, ids[p]]) for p in positions),
                )
            )
        made.append(Trajectory(task_id=f"task{index}", turns=tuple(played)))
    return made
