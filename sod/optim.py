"""Optimisers, and the learning rate as a plain function of the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from sod.config import MuonSection, OptimizerBase, OptimizerSection


def learning_rate_scale(section: OptimizerBase, update: int, num_updates: int) -> float:
    """Give the share of the peak learning rate at one update.

    It rises linearly over the warm-up, then is constant, or falls (linearly or as a half cosine) so that
    the last update has `final_fraction`. It depends on its arguments alone, so there is no state to save.

    Args:
        section: Schedule, warm-up and final fraction.
        update: Updates made before this one.
        num_updates: Updates of the whole run.

    Returns:
        A number in [0, 1].
    """
    if update < section.warmup_updates:
        return (update + 1) / section.warmup_updates
    if section.schedule == "constant":
        return 1.0
    span = num_updates - 1 - section.warmup_updates
    progress = min(1.0, (update - section.warmup_updates) / span) if span > 0 else 1.0
    remaining = 1.0 - progress if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.final_fraction + (1.0 - section.final_fraction) * remaining


class OptimizerSet:
    """One optimiser, or Muon and AdamW side by side, driven as one."""

    def __init__(self, model: nn.Module, section: OptimizerSection) -> None:
        """Divide a model's trainable parameters among optimisers.

        Args:
            model: Muon is kept from what its `get_input_embeddings` and `get_output_embeddings` give.
            section: Which optimiser and its settings.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices: list[Tensor] = []
        self.parameters: tuple[Tensor, ...] = tuple(trained)
        if isinstance(section, MuonSection):
            kept_out = _embedding_ids(model)
            matrices = [p for p in trained if p.ndim == 2 and id(p) not in kept_out]
        taken = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in trained if id(parameter) not in taken]
        self._optimizers: list[Optimizer] = []
        if isinstance(section, MuonSection) and matrices:
            self._optimizers.append(
                Muon(
                    matrices,
                    lr=section.matrix_learning_rate,
                    weight_decay=section.matrix_weight_decay,
                    momentum=section.momentum,
                )
            )
        if rest:
            self._optimizers.append(_adamw(rest, section))
        self._peaks = [[float(group["lr"]) for group in one.param_groups] for one in self._optimizers]

    def step(self, scale: float) -> None:
        """Make one update at `scale` times the peak learning rates."""
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def clip(self, max_norm: float) -> Tensor:
        """Clip gradients to a norm over all parameters, and give the norm before; not finite: no change."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if bool(torch.isfinite(norm)):
            nn.utils.clip_grads_with_norm_(list(self.parameters), max_norm, norm)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """State of every optimiser, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Take over what `state_dict` gave.

        Args:
            states: One state per optimiser.

        Raises:
            ValueError: If the state is of another set of optimisers.
        """
        if len(states) != len(self._optimizers):
            raise ValueError(
                f"OptimizerSet.load_state_dict: got {len(states)} states, wanted {len(self._optimizers)}; "
                "the checkpoint was made with other [optimizer] settings."
            )
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _embedding_ids(model: nn.Module) -> set[int]:
    found: set[int] = set()
    for name in ("get_input_embeddings", "get_output_embeddings"):
        getter = getattr(model, name, None)
        module = getter() if getter is not None else None
        if module is not None:
            found |= {id(parameter) for parameter in module.parameters()}
    return found


def _adamw(parameters: Sequence[Tensor], section: OptimizerBase) -> AdamW:
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    plain = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, section.weight_decay), (plain, 0.0))
        if group
    ]
    return AdamW(groups, lr=section.learning_rate, betas=(section.beta1, section.beta2), eps=section.eps)
