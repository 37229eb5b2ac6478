"""Checks of what a single sweep needs, in which the gradients are made with the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_single_sweep(function: str, single_sweep: Any, reduction: str) -> None:
    """Check the flag, and that there is one loss.

    Args:
        function: Name for the message.
        single_sweep: Bool.
        reduction: One of `arguments.REDUCTIONS`.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a loss per token in a single sweep.
    """
    if not isinstance(single_sweep, bool):
        raise TypeError(f"{function}: single_sweep is {type(single_sweep).__name__}; wanted True or False.")
    if single_sweep and reduction == "none":
        raise ValueError(
            f"{function}: reduction='none' in a single sweep, which makes the gradients before it knows what "
            "is done with each token's loss. Use single_sweep=False, or token_weights and another reduction."
        )


def check_known_weights(function: str, single_sweep: bool, weighting: Any, process_group: Any) -> None:
    """Check that a single sweep over logits knows the factor of each row's gradient at that row.

    Args:
        function: Name for the message.
        single_sweep: Whether it is one.
        weighting: Checked.
        process_group: Any; only None will do.

    Raises:
        ValueError: If it is one and the weights depend on the sweep, or the rows are spread over ranks.
    """
    if not single_sweep:
        return
    if weighting is not None and not isinstance(weighting, Tensor):
        raise ValueError(
            f"{function}: weighting is {type(weighting).__name__} in a single sweep, which makes a row's "
            "gradient before it has the statistics of the steps; wanted None or a tensor (S,). Use "
            "single_sweep=False, or linear_step_kl, whose single sweep waits for them."
        )
    if process_group is not None:
        raise ValueError(
            f"{function}: process_group= in a single sweep, which makes a row's gradient before the ranks "
            "have exchanged what it needs of the whole row. Use single_sweep=False."
        )
