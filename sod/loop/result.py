"""What a finished run gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run gives.

    Attributes:
        model: The trained student.
        folder: Run folder.
        checkpoint: Its last checkpoint.
        metrics: Row of the last round.
    """

    model: PreTrainedModel
    folder: Path
    checkpoint: Path
    metrics: dict[str, Any]
