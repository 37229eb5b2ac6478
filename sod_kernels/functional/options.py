"""The options that the whole family shares: checked together, handed on as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._checks import arguments, weightings
from sod_kernels.types import DivergenceSpec, StepStatistics

Weighting = Tensor | Callable[[StepStatistics], Tensor] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """What every function of the family lets its caller choose; each means what it does in `step_kl`.

    Attributes:
        function: Name of the function, for messages.
        divergence: "reverse_kl", "forward_kl" or "jsd".
        beta: Weight of the teacher, for "jsd" only.
        temperature: Divides the logits.
        min_log_prob: Floor in nats, or None.
        step_divergence: "kl" or "abs_log_ratio".
        weighting: Step weights.
        token_weights: Weight of each token, or None.
        reduction: One of the five names.
        denominator: In place of the last division of a mean, or None.
        backend: "auto" or a name.

    Raises:
        TypeError: When made, if an option has the wrong type.
        ValueError: When made, if one has a wrong value, or two exclude each other.
    """

    function: str
    divergence: str
    beta: float | None
    temperature: float
    min_log_prob: float | None
    step_divergence: str
    weighting: Weighting
    token_weights: Tensor | None
    reduction: str
    denominator: float | Tensor | None
    backend: str

    def __post_init__(self) -> None:
        self.spec(1)
        arguments.check_options(self.function, self.step_divergence, self.reduction, self.backend)
        weightings.check_weighting(self.function, self.weighting, may_be_tensor=True)

    def spec(self, vocab_size: int) -> DivergenceSpec:
        """Say what a backend computes.

        Args:
            vocab_size: Valid columns.

        Returns:
            The ends of "jsd" as the KL that they are.
        """
        kind, weight = arguments.check_divergence(
            self.function, self.divergence, self.beta, self.temperature, self.min_log_prob
        )
        return DivergenceSpec(
            divergence=kind,
            beta=weight,
            temperature=self.temperature,
            vocab_size=vocab_size,
            min_log_prob=self.min_log_prob,
        )

    def check_tokens(self, step_ids: Tensor, sampled_ids: Tensor | None, *, vocab_size: int) -> None:
        """Check what comes per token.

        Args:
            step_ids: Leading shape, checked.
            sampled_ids: As given.
            vocab_size: Valid columns of the whole vocabulary.

        Raises:
            TypeError: For a wrong type or dtype.
            ValueError: For a wrong shape, device, id or denominator.
        """
        arguments.check_sampled_ids(
            self.function,
            sampled_ids,
            step_ids,
            vocab_size=vocab_size,
            step_divergence=self.step_divergence,
        )
        arguments.check_loss_arguments(
            self.function, self.token_weights, self.denominator, reduction=self.reduction, like=step_ids
        )

    def resolve_backend(self, like: Tensor, dtype: torch.dtype) -> str:
        """Choose the backend that runs.

        Args:
            like: Tensor on the device.
            dtype: Of the logits.

        Returns:
            Its name.

        Raises:
            BackendUnavailableError: If the backend cannot run there.
        """
        return _dispatch.resolve(self.backend, like.device.type, dtype, function=self.function)
