"""A teacher in this process."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel

from sod.packing import Batch
from sod.scoring import HiddenRows, row_states
from sod.teacher.base import Capability


class LocalTeacher:
    """A frozen causal language model next to the student."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Freeze a model.

        Args:
            model: The teacher; put in evaluation mode, its parameters no longer require gradients.
        """
        self.model = model
        model.train(False)
        model.requires_grad_(False)

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
        """Score the rows of a batch; see `sod.teacher.base.HiddenTeacher.hidden`."""
        return row_states(self.model, batch.to(self.model.device))


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
