"""GRPO: the reward alone, relative to the other attempts at the same task."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sod.algorithms.base import LossContext, LossOutput
from sod.algorithms.policy import ClippedSurrogate
from sod.algorithms.presets import surrogate_of
from sod.config_algorithms import GRPOSection
from sod.packing import Batch
from sod.scoring import ModelScores, TeacherScores, logits_of
from sod_kernels import step_means, token_log_probs


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Loss = mean over trained tokens of the clipped surrogate with the trajectory's advantage.

    The step divergence that it reports is the mean -log p of the step's tokens.

    Attributes:
        name: Name in a TOML file.
        temperature: Divides the logits; that of the rollouts.
        surrogate: Bounds of the ratio.
        vocab_size: Columns of the logits that are real tokens; None for all.
        needs_teacher: It reads no teacher.
        needs_reference: Nor a reference.

    Source: arXiv 2605.07725, equations (2) and (3), averaged over the tokens of the minibatch.
    """

    name: str = "grpo"
    temperature: float = 1.0
    surrogate: ClippedSurrogate = field(default_factory=ClippedSurrogate)
    vocab_size: int | None = None
    needs_teacher: bool = False
    needs_reference: bool = False

    def loss(
        self, batch: Batch, student: ModelScores, teacher: TeacherScores | None, context: LossContext
    ) -> LossOutput:
        """Compute the loss of a microbatch; see `sod.algorithms.base.Algorithm.loss`."""
        log_probs, entropy = token_log_probs(
            logits_of(student), batch.labels, temperature=self.temperature, vocab_size=self.vocab_size
        )
        is_trained = batch.row_loss_mask
        token_loss, is_clipped = self.surrogate.loss(log_probs, batch.row_log_probs, batch.row_advantages)
        trained = torch.where(is_trained, token_loss, 0.0)
        nll = step_means(-log_probs.detach(), batch.row_steps, batch.num_steps)
        return LossOutput(
            loss=trained.sum() / context.denominator,
            token_sums={
                "policy/loss": trained.detach().sum(),
                "policy/clipped": (is_clipped & is_trained).sum(),
                "policy/advantage_abs": torch.where(is_trained, batch.row_advantages.abs(), 0.0).sum(),
                "entropy/token": torch.where(is_trained, entropy.detach(), 0.0).sum(),
            },
            step_divergence=nll.float(),
            step_weights=torch.ones_like(nll, dtype=torch.float32),
            step_tokens=torch.bincount(batch.row_steps, minlength=batch.num_steps),
        )


def grpo(section: GRPOSection) -> GRPO:
    """Make GRPO from its settings."""
    return GRPO(surrogate=surrogate_of(section))
