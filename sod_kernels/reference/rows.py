"""What the definitions share: walking over rows in blocks, and expectations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_ENTRIES = 1 << 20


def blocks(shape: tuple[int, int], vocab_size: int) -> Iterator[tuple[slice, slice]]:
    """Cut (B, T) into blocks of about a million logits; merging B and T instead could copy.

    Args:
        shape: B and T.
        vocab_size: Logits per row.

    Yields:
        Slices of B and T that cover every row once.
    """
    num_rows, num_tokens = shape
    budget = max(1, _BLOCK_ENTRIES // vocab_size)
    tokens = max(1, min(num_tokens, budget))
    rows = max(1, budget // tokens)
    for row in range(0, num_rows, rows):
        for token in range(0, num_tokens, tokens):
            yield slice(row, row + rows), slice(token, token + tokens)


def mean(log_weights: Tensor, values: Tensor) -> Tensor:
    """Take the expectation under exp(log_weights); a weight of exactly 0 contributes 0 whatever the value.

    Args:
        log_weights: (..., V) log-probabilities.
        values: (..., V).

    Returns:
        (...).
    """
    return torch.where(log_weights == -torch.inf, 0.0, log_weights.exp() * values).sum(-1)
