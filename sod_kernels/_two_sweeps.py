"""A gradient known beforehand, for backends that make it in a sweep of its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sod_kernels.types import DivergenceSpec, TokenGradients, TokenInputs, TokenStats


def in_two_sweeps(
    forward: Callable[[TokenInputs, int, DivergenceSpec], TokenStats], backward: Callable[..., Tensor]
) -> Callable[..., tuple[TokenStats, Tensor]]:
    """Make a backend's `Backend.forward_backward` of its two sweeps, one after the other.

    Args:
        forward: The backend's forward sweep.
        backward: Its backward sweep.

    Returns:
        The function.
    """

    def forward_backward(
        upstream: TokenGradients,
        inputs: TokenInputs,
        num_steps: int,
        spec: DivergenceSpec,
        *,
        out: Tensor | None = None,
    ) -> tuple[TokenStats, Tensor]:
        stats = forward(inputs, num_steps, spec)
        return stats, backward(upstream, inputs, stats.row_state, spec, out=out)

    return forward_backward
