"""A tiny model whose choices are clear."""

from __future__ import annotations

import torch


def sharpened(model):
    """Multiply the matrices of a model in place, so that probabilities depend visibly on every token."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model
