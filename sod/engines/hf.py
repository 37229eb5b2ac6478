"""The engine inside the training process: it samples with the very module that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sod.engines.base import Respond, SamplingParams, WeightSource
from sod.engines.lockstep import LockstepDecoder
from sod.engines.sampling import RowRandom
from sod.engines.weight_check import model_scores


class HFEngine:
    """Samples with a transformers model that the trainer also trains.

    Attributes:
        policy_version: Number of optimiser updates behind the weights.
    """

    policy_version: int

    def __init__(
        self, model: nn.Module, *, pad_id: int, vocab_size: int | None = None, max_batch: int | None = None
    ) -> None:
        """Share a model.

        Args:
            model: A decoder-only transformers model with a language-modelling head.
            pad_id: Token id to the left of shorter prompts; any id that the model has.
            vocab_size: Columns of the logits that are real tokens; columns beyond are never sampled and
                take no probability. None takes all.
            max_batch: Rows decoded together; more prompts run one batch after another. None takes all.
        """
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"HFEngine: max_batch must be 1 or more, got {max_batch}.")
        self.model = model
        self.policy_version = 0
        self._pad_id = pad_id
        self._vocab_size = vocab_size
        self._max_batch = max_batch

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Take over new weights; for the shared model itself only the version changes.

        Args:
            model_or_state: The trained module or its state dict.
            policy_version: Number of optimiser updates behind them.
        """
        if model_or_state is not self.model:
            if isinstance(model_or_state, nn.Module):
                model_or_state = model_or_state.state_dict()
            self.model.load_state_dict(model_or_state)
        self.policy_version = policy_version

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Sample all rows to their end; results travel through `respond`.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn.
            params: How to sample.
            seed: Makes the call repeatable; a row's draws depend on it and the row number alone.

        Raises:
            ValueError: A prompt is empty or leaves no room for a token.
            ModelError: The model has layers that are not attention.
            RolloutError: An observation leaves no room for a token, or logits are not finite.
        """
        limit = self._token_limit(params)
        for row, prompt in enumerate(prompts):
            _check_prompt(row, prompt, limit)
        decoder = LockstepDecoder(
            self.model,
            respond,
            params,
            random=RowRandom(seed),
            token_limit=limit,
            pad_id=self._pad_id,
            vocab_size=self._vocab_size,
        )
        size = self._max_batch or max(len(prompts), 1)
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(prompts), size):
                decoder.run(prompts[start : start + size], first_row=start)
        finally:
            self.model.train(was_training)

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Score a text; see `sod.engines.base.RolloutEngine.score`."""
        return model_scores(self.model, ids)

    def close(self) -> None:
        """Do nothing; the model is the trainer's."""

    def _token_limit(self, params: SamplingParams) -> int:
        config: Any = self.model.config
        num_positions = int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30))
        wanted = params.max_total_tokens
        if wanted is not None and wanted > num_positions:
            raise ValueError(
                f"HFEngine.rollout: max_total_tokens is {wanted}, but the model has {num_positions} "
                "positions; lower it."
            )
        return num_positions if wanted is None else wanted


def _check_prompt(row: int, prompt: Sequence[int], limit: int) -> None:
    if not 0 < len(prompt) < limit:
        raise ValueError(
            f"HFEngine.rollout: prompt {row} has {len(prompt)} tokens; it needs at least 1 and fewer than "
            f"the {limit} that a row may have in all. Shorten it or raise max_total_tokens."
        )
