"""The student as its own teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sod.packing import Batch
from sod.scoring import row_logits
from sod.teacher.base import Capability


class CurrentPolicy:
    """The student as it stands, without a gradient; its scores change with every update."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the student.

        Args:
            model: Goes on being trained; nothing of it is changed.
        """
        self.model = model

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Everything."""
        return frozenset(Capability)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Score the rows of a batch; see `sod.teacher.base.Teacher.logits`."""
        was_training = self.model.training
        self.model.train(False)
        try:
            return row_logits(self.model, batch.to(self.model.device))
        finally:
            self.model.train(was_training)
