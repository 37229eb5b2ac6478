"""A teacher in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sod.packing import Batch
from sod.scoring import HiddenRows, row_states
from sod.teacher.base import Capability

WeightCopy = Callable[[Tensor], Tensor]
"""Copies a weight from host memory to where it is computed with."""


class LocalTeacher:
    """A frozen causal language model next to the student.

    Attributes:
        model: The model.
        copy_weight: How its weights get from host memory to the device; None where they stay on it.
    """

    def __init__(self, model: PreTrainedModel, *, copy_weight: WeightCopy | None = None) -> None:
        """Freeze a model.

        Args:
            model: The teacher; put in evaluation mode, its parameters no longer require gradients.
            copy_weight: Makes it an *offloaded* teacher: its weights stay where they are now, `hidden`
                scores with copies of them and `release` lets the copies go. See `copies_to`.
        """
        self.model = model
        self.copy_weight = copy_weight
        self._is_copied = False
        model.train(False)
        model.requires_grad_(False)
        weights = () if copy_weight is None else (*model.parameters(), *model.buffers())
        self._home = [(weight, weight.data) for weight in weights]

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Everything: whoever gives hidden states gives the rest."""
        return frozenset(Capability)

    @property
    def fingerprint(self) -> str:
        """Changes with every weight."""
        return model_fingerprint(self.model)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> HiddenRows:
        """Score the rows of a batch; see `sod.teacher.base.HiddenTeacher.hidden`.

        The head of the scores outlives `release`: as long as they are kept, it stays where it was.
        """
        if self.copy_weight is not None and not self._is_copied:
            self._is_copied = True
            for weight, home in self._home:
                weight.data = self.copy_weight(home)
        return row_states(self.model, batch.to(self.model.device)).detach()

    def release(self) -> None:
        """Let the copies of an offloaded teacher's weights go; the next question makes them again."""
        for weight, home in self._home:
            weight.data = home
        self._is_copied = False


def copies_to(device: torch.device) -> WeightCopy:
    """Give what copies weights to a device, for an offloaded teacher."""
    return lambda weight: weight.to(device)


def model_fingerprint(model: PreTrainedModel) -> str:
    """Give a text that changes with every weight of a model, and with nothing else.

    Args:
        model: The model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=32)
    for name, weight in model.state_dict().items():
        digest.update(f"{name}:{weight.dtype}:{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
