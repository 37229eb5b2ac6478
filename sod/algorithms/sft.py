"""Supervised fine-tuning: cross-entropy on the trained turns of expert trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sod.algorithms.base import LossContext, LossOutput
from sod.packing import Batch
from sod.scoring import ModelScores, TeacherScores, logits_of
from sod_kernels import token_log_probs


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Loss = mean over trained tokens of -log p(token); step divergence = that mean per step.

    Attributes:
        name: Name in a TOML file.
        needs_teacher: It reads no teacher.
        needs_reference: Nor a reference.
        vocab_size: Columns of the logits that are real tokens; None for all.
    """

    name: str = "sft"
    needs_teacher: bool = False
    needs_reference: bool = False
    vocab_size: int | None = None

    def loss(
        self, batch: Batch, student: ModelScores, teacher: TeacherScores | None, context: LossContext
    ) -> LossOutput:
        """Compute the loss of a microbatch; see `sod.algorithms.base.Algorithm.loss`."""
        token_nll = -token_log_probs(logits_of(student), batch.labels, vocab_size=self.vocab_size).log_probs
        is_trained = batch.row_loss_mask
        kept = torch.where(is_trained, token_nll, 0.0)
        zeros = token_nll.new_zeros(batch.num_steps, dtype=torch.float64)
        step_sums = zeros.index_add(0, batch.row_steps, token_nll.detach().double())
        step_tokens = torch.bincount(batch.row_steps, minlength=batch.num_steps)
        return LossOutput(
            loss=kept.sum() / context.denominator,
            token_sums={"nll/token": kept.detach().sum()},
            step_divergence=(step_sums / step_tokens.clamp(min=1)).float(),
            step_weights=torch.ones_like(zeros, dtype=torch.float32),
            step_tokens=step_tokens,
        )
