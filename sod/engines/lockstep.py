"""One decode loop over a batch of growing sequences.

Every row is a stream of tokens. A row that samples adds one token per decode step; a row whose turn ended
has its observation forced in, one token per step beside others that sample, or many at once where that gets
more tokens read for the work (the others are then padded, and the holes are closed afterwards). Prompts are
read once, nothing is read twice, and a row that is over leaves the batch and the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sod.engines.base import Generation, Respond, SamplingParams
from sod.engines.sampling import RowRandom, sample
from sod.errors import ModelError, RolloutError
from sod.types import StopReason

STEP_TOKENS = 24
"""What a forward pass costs besides its tokens, counted in tokens. Between 10 and 36 small models on a CPU
go about equally fast; at 64 and beyond rows that sample wait for those that read (docs/log.md)."""


@dataclass(kw_only=True)
class _Stream:
    """One row: what is known of it but not yet read by the model, and its turn so far."""

    row: int
    num_tokens: int
    unread: list[int] = field(default_factory=list)
    sampled_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add_sampled(self, token: int, log_prob: float) -> None:
        self.sampled_ids.append(token)
        self.log_probs.append(log_prob)
        self.unread.append(token)
        self.num_tokens += 1

    def end_turn(self, stop_reason: StopReason, *, is_truncated: bool) -> Generation:
        generation = Generation(
            sampled_ids=tuple(self.sampled_ids),
            log_probs=tuple(self.log_probs),
            stop_reason=stop_reason,
            is_truncated=is_truncated,
        )
        self.sampled_ids, self.log_probs = [], []
        return generation


@dataclass(kw_only=True)
class _Batch:
    """The rows still running and what the model holds of them; row i of each is the same stream."""

    streams: list[_Stream]
    cache: DynamicCache
    # (B, positions so far) int64: 1 at tokens, 0 at padding.
    attention_mask: Tensor
    # (B,) int64: position of the next token of each row.
    next_position: Tensor
    # (B, V): scores of the next token, read only for rows without unread tokens.
    logits: Tensor

    def keep(self, rows: list[int]) -> None:
        if len(rows) == len(self.streams):
            return
        self.streams = [self.streams[row] for row in rows]
        if not rows:
            return
        index = torch.tensor(rows, device=self.logits.device)
        self.cache.batch_select_indices(index)
        self.attention_mask = self.attention_mask[index]
        self.next_position = self.next_position[index]
        self.logits = self.logits[index]
        self.close_holes()

    @property
    def can_have_holes(self) -> bool:
        """Whether padding may stand between tokens: not where a window counts positions."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def close_holes(self) -> None:
        """Move the tokens of every row to the right, and drop the columns that no row needs."""
        longest = int(self.next_position.max())
        if longest == self.attention_mask.shape[-1] or not self.can_have_holes:
            return
        # Padding comes first, tokens keep their order; keys carry their positions with them.
        order = self.attention_mask.argsort(dim=-1, stable=True)[:, -longest:]
        self.attention_mask = self.attention_mask.gather(-1, order)
        layers: list[Any] = self.cache.layers
        for layer in layers:
            index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[-1])
            layer.keys = layer.keys.gather(2, index)
            index = index[..., :1].expand(-1, -1, -1, layer.values.shape[-1])
            layer.values = layer.values.gather(2, index)


class LockstepDecoder:
    """Decodes batches of rows; see the module's text."""

    def __init__(
        self,
        model: nn.Module,
        respond: Respond,
        params: SamplingParams,
        *,
        random: RowRandom,
        token_limit: int,
        pad_id: int,
        vocab_size: int | None,
    ) -> None:
        """Bind what all batches of one rollout share.

        Args:
            model: A decoder-only transformers model, in evaluation mode.
            respond: Answers every ended turn.
            params: How to sample.
            random: The rows' streams of random numbers.
            token_limit: Tokens that a row may have in all.
            pad_id: Token id to the left of shorter prompts.
            vocab_size: Columns of the logits that are real tokens; None for all.
        """
        self._model = model
        self._respond = respond
        self._params = params
        self._random = random
        self._token_limit = token_limit
        self._pad_id = pad_id
        self._vocab_size = vocab_size
        self._device = next(model.parameters()).device
        self._is_truncated = params.is_truncated

    def run(self, prompts: Sequence[tuple[int, ...]], *, first_row: int) -> None:
        """Decode one batch to its end.

        Args:
            prompts: One non-empty token id sequence per row.
            first_row: Row number of the first prompt.

        Raises:
            ModelError: The model has layers that are not attention.
            RolloutError: An observation leaves no room for a token, or log-probabilities are not finite.
        """
        batch = self._prefill(prompts, first_row)
        while batch.streams:
            kept = self._answer(batch, self._sample(batch))
            with torch.inference_mode():
                batch.keep(kept)
                if kept:
                    self._read(batch)

    @torch.inference_mode()
    def _prefill(self, prompts: Sequence[tuple[int, ...]], first_row: int) -> _Batch:
        width = max(len(prompt) for prompt in prompts)
        # (B, P), prompts to the right.
        ids = torch.full((len(prompts), width), self._pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        mask = mask.to(self._device)
        cache = self._make_cache()
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = self._forward(ids.to(self._device), mask, positions, cache)
        return _Batch(
            streams=[_Stream(row=first_row + i, num_tokens=len(prompt)) for i, prompt in enumerate(prompts)],
            cache=cache,
            attention_mask=mask,
            next_position=mask.sum(dim=-1),
            logits=logits,
        )

    def _make_cache(self) -> DynamicCache:
        config: Any = self._model.config
        cache = DynamicCache(config=config)
        others = {type(layer).__name__ for layer in cache.layers if not isinstance(layer, DynamicLayer)}
        if others:
            # Such a state would take in the padding left of a prompt.
            name, kinds = type(self._model).__name__, ", ".join(sorted(others))
            raise ModelError(
                f"HFEngine.rollout: {name} keeps a state other than keys and values ({kinds}), which batches "
                "of growing rows cannot share; use a model with attention layers only."
            )
        return cache

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1, : self._vocab_size]
        return logits

    def _read(self, batch: _Batch) -> None:
        """Let the model read, in one pass, what is worth reading together."""
        lengths = [len(stream.unread) for stream in batch.streams]
        width = _read_width(lengths) if batch.can_have_holes else min(lengths)
        # (B, width), tokens to the right.
        ids = torch.full((len(lengths), width), self._pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, stream in enumerate(batch.streams):
            tokens = stream.unread[:width]
            del stream.unread[:width]
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        mask = mask.to(self._device)
        positions = batch.next_position[:, None] + (mask.cumsum(dim=-1) - 1).clamp(min=0)
        batch.next_position = batch.next_position + mask.sum(dim=-1)
        batch.attention_mask = torch.cat([batch.attention_mask, mask], dim=-1)
        batch.logits = self._forward(ids.to(self._device), batch.attention_mask, positions, batch.cache)
        if width > min(lengths):
            batch.close_holes()

    @torch.inference_mode()
    def _sample(self, batch: _Batch) -> list[tuple[int, Generation]]:
        """Add a token to every row that has nothing unread; return (index, turn) where a turn ended."""
        indices = [index for index, stream in enumerate(batch.streams) if not stream.unread]
        logits = batch.logits
        if len(indices) < len(batch.streams):
            logits = logits[torch.tensor(indices, device=self._device)]
        uniforms = None
        if self._params.temperature > 0.0:
            draws = [self._random.draw(batch.streams[index].row) for index in indices]
            uniforms = torch.tensor(draws, dtype=torch.float64).to(self._device)
        tokens, log_probs = sample(
            logits, uniforms, temperature=self._params.temperature, top_p=self._params.top_p
        )
        ended = []
        for index, token, log_prob in zip(indices, tokens.tolist(), log_probs.tolist(), strict=True):
            stream = batch.streams[index]
            if not math.isfinite(log_prob):
                raise RolloutError(
                    f"HFEngine.rollout: the model gave row {stream.row} a log-probability of {log_prob}; "
                    "its weights or logits are not finite. Look at the last updates."
                )
            stream.add_sampled(token, log_prob)
            stop_reason = self._stop_reason(stream, token)
            if stop_reason is not None:
                ended.append((index, stream.end_turn(stop_reason, is_truncated=self._is_truncated)))
        return ended

    def _stop_reason(self, stream: _Stream, token: int) -> StopReason | None:
        if token in self._params.stop_ids:
            return StopReason.STOP_TOKEN
        is_full = len(stream.sampled_ids) == self._params.max_turn_tokens
        return StopReason.LENGTH if is_full or stream.num_tokens == self._token_limit else None

    def _answer(self, batch: _Batch, ended: list[tuple[int, Generation]]) -> list[int]:
        """Ask for what follows the ended turns; return the indices of the rows that go on."""
        if not ended:
            return list(range(len(batch.streams)))
        answers = self._respond([(batch.streams[index].row, generation) for index, generation in ended])
        over = set()
        for (index, _), ids in zip(ended, answers, strict=True):
            stream = batch.streams[index]
            if ids is None:
                over.add(index)
                continue
            stream.unread.extend(ids)
            stream.num_tokens += len(ids)
            if stream.num_tokens >= self._token_limit:
                raise RolloutError(
                    f"HFEngine.rollout: the observation of row {stream.row} has {len(ids)} tokens and brings "
                    f"it to {stream.num_tokens}; {self._token_limit} are allowed and one must stay for the "
                    "answer. End the trajectory instead (respond with None)."
                )
        return [index for index in range(len(batch.streams)) if index not in over]


def _read_width(lengths: Sequence[int]) -> int:
    """How many tokens to read at most of each row: those that give most tokens for the cost of the pass."""

    def tokens_per_cost(width: int) -> float:
        return sum(min(length, width) for length in lengths) / (STEP_TOKENS + len(lengths) * width)

    return max(sorted(set(lengths)), key=tokens_per_cost)
