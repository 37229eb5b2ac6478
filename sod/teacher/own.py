"""The student as its own teacher."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sod.packing import Batch
from sod.scoring import HiddenRows, row_states
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
    def hidden(self, batch: Batch) -> HiddenRows:
        """Score the rows of a batch; see `sod.teacher.base.HiddenTeacher.hidden`."""
        was_training = self.model.training
        self.model.train(False)
        try:
            return row_states(self.model, batch.to(self.model.device)).detach()
        finally:
            self.model.train(was_training)
