"""The trained module under the continuous batching of transformers.

Rows of one wave of turns share the model's passes and leave it as they end, so unlike lengths cost little;
the observations of a wave are read together when its last turn has ended. With draws, a rollout is
repeatable only as far as the library's scheduling is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from sod.config_engines import ContinuousSection
from sod.engines.base import Generation, Respond, SamplingParams, WeightSource
from sod.engines.sampling import mix_seed
from sod.engines.turnwise import TurnBook, TurnRequest
from sod.engines.weight_check import model_scores
from sod.errors import RolloutError


class ContinuousEngine:
    """Samples with the trained transformers model, continuously batched.

    Log-probabilities are those of the distribution that was sampled from; with top_p below 1 those after
    the cut, and the turns say so.

    Attributes:
        policy_version: Number of optimiser updates behind the weights.
    """

    policy_version: int

    def __init__(
        self, model: PreTrainedModel, section: ContinuousSection, *, vocab_size: int | None, max_batch: int
    ) -> None:
        """Share a model.

        Args:
            model: A decoder-only transformers model.
            section: Size of the cache.
            vocab_size: Columns of the logits that are real tokens; None takes all.
            max_batch: Rows decoded at the same time.
        """
        self.policy_version = 0
        self._model: Any = model
        self._section = section
        self._vocab_size = vocab_size
        self._max_batch = max_batch
        config: Any = model.config
        self._text_config = config.get_text_config()

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Take over new weights; for the shared model itself only the version changes.

        Args:
            model_or_state: The trained module or its state dict.
            policy_version: Number of optimiser updates behind them.
        """
        if model_or_state is not self._model:
            state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
            self._model.load_state_dict(state)
        self.policy_version = policy_version

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Score a text; see `sod.engines.base.RolloutEngine.score`."""
        return model_scores(self._model, ids)

    def close(self) -> None:
        """Do nothing; the model is the trainer's, and the cache lives for one wave."""

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Sample all rows to their end; results travel through `respond`.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn, a whole wave at a time.
            params: How to sample.
            seed: Of the draws.

        Raises:
            ValueError: A prompt is empty or leaves no room for a token.
            RolloutError: An observation leaves no room for a token, or the library gave up on a row.
        """
        book = TurnBook(
            prompts,
            respond,
            params,
            seed=seed,
            num_positions=int(getattr(self._text_config, "max_position_embeddings", 1 << 30)),
            engine="ContinuousEngine",
            vocab_size=self._vocab_size,
        )
        requests = book.first_requests()
        was_training = self._model.training
        attention = self._model.config._attn_implementation
        wave = 0
        try:
            while requests:
                requests = book.answer(self._wave(book, requests, params, mix_seed(seed, wave)))
                wave += 1
        finally:
            # The library puts the model in its own mode.
            self._model.set_attn_implementation(attention)
            self._model.train(was_training)

    def _wave(
        self, book: TurnBook, requests: Sequence[TurnRequest], params: SamplingParams, seed: int
    ) -> list[tuple[int, Generation]]:
        outputs = self._model.generate_batch(
            inputs=[list(request.ids) for request in requests],
            generation_config=self._generation_config(params),
            continuous_batching_config=self._batching_config(seed),
            max_new_tokens=max(request.max_tokens for request in requests),
            warmup=False,
        )
        if len(outputs) != len(requests):
            raise RolloutError(
                f"ContinuousEngine.rollout: {len(requests)} turns asked for, {len(outputs)} came back; the "
                "generation thread died. Look at the log; raise [engine] num_pages if its cache was full."
            )
        ended = []
        for request, output in zip(requests, outputs.values(), strict=True):
            if output.error is not None:
                raise RolloutError(
                    f"ContinuousEngine.rollout: row {request.row} failed: {output.error}. Raise [engine] "
                    "num_pages if the cache was full."
                )
            # The wave has one limit; a row with less room ends sooner.
            size = request.max_tokens
            generation = book.generation(request, output.generated_tokens[:size], output.logprobs[:size])
            ended.append((request.row, generation))
        return ended

    def _generation_config(self, params: SamplingParams) -> GenerationConfig:
        columns = int(self._text_config.vocab_size)
        padding = None if self._vocab_size is None else list(range(self._vocab_size, columns))
        is_greedy = params.temperature == 0.0
        drawn = {} if is_greedy else {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
        make: Any = GenerationConfig
        config: GenerationConfig = make(
            do_sample=not is_greedy,
            eos_token_id=list(params.stop_ids),
            suppress_tokens=padding or None,
            **drawn,
        )
        return config

    def _batching_config(self, seed: int) -> ContinuousBatchingConfig:
        return ContinuousBatchingConfig(
            page_size=self._section.page_size,
            num_blocks=self._section.num_pages,
            max_batch_tokens=self._section.max_batch_tokens,
            max_requests_per_batch=self._max_batch,
            return_logprobs=True,
            seed=seed % (1 << 32),
        )
