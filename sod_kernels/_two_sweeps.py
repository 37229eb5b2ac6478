"""A gradient known beforehand, for backends that make it in a sweep of its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sod_kernels.types import DivergenceSpec, TokenGradients, TokenInputs, TokenStats


def forward_then_backward(
    forward: Callable[[TokenInputs, int, DivergenceSpec], TokenStats],
    backward: Callable[..., Tensor],
    upstream: TokenGradients,
    inputs: TokenInputs,
    num_steps: int,
    spec: DivergenceSpec,
    out: Tensor | None,
) -> tuple[TokenStats, Tensor]:
    """Run a backend's two sweeps one after the other; see `Backend.forward_backward`.

    Args:
        forward: The backend's forward sweep.
        backward: Its backward sweep.
        upstream: Gradients of the outputs.
        inputs: Of both.
        num_steps: S.
        spec: What to compute.
        out: Takes the gradient, or None.

    Returns:
        Statistics and gradient.
    """
    stats = forward(inputs, num_steps, spec)
    return stats, backward(upstream, inputs, stats.row_state, spec, out=out)
