"""A teacher in this process."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sod.packing import Batch
from sod.scoring import row_logits
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
        """Full logits."""
        return frozenset({Capability.LOGITS})

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Score the rows of a batch; see `sod.teacher.base.Teacher.logits`."""
        return row_logits(self.model, batch.to(self.model.device))
