"""What engines that sample whole turns share: the rows, their contexts and the limits of the next turn.

Such an engine gets *requests*: all ids of a row so far, and how many tokens its turn may have. It hands the
turns back as they end, in any order, and gets the requests that follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sod.engines.base import Generation, Respond, SamplingParams
from sod.engines.sampling import mix_seed
from sod.errors import RolloutError
from sod.types import StopReason


@dataclass(frozen=True, kw_only=True)
class TurnRequest:
    """One turn that is to be sampled.

    Attributes:
        row: Row of the rollout.
        turn: Number of the turn within the row.
        ids: Everything before it, prompt included.
        max_tokens: Tokens that it may have.
        seed: Of its draws; the same for the same rollout seed, row and turn.
    """

    row: int
    turn: int
    ids: tuple[int, ...]
    max_tokens: int
    seed: int


class TurnBook:
    """The rows of one rollout."""

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        respond: Respond,
        params: SamplingParams,
        *,
        seed: int,
        num_positions: int,
        engine: str,
        vocab_size: int | None = None,
    ) -> None:
        """Check the prompts.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn.
            params: How to sample.
            seed: Of the whole rollout.
            num_positions: Tokens that the engine can hold in one row.
            engine: Its name, for messages.
            vocab_size: Ids that are tokens; None for all.

        Raises:
            ValueError: A prompt is empty or leaves no room for a token, or more tokens are allowed than the
                engine can hold.
        """
        wanted = params.max_total_tokens
        if wanted is not None and wanted > num_positions:
            raise ValueError(
                f"{engine}.rollout: max_total_tokens is {wanted}, but the engine holds {num_positions} "
                "tokens in a row; lower it, or start the engine with more."
            )
        self._limit = num_positions if wanted is None else wanted
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self._limit:
                raise ValueError(
                    f"{engine}.rollout: prompt {row} has {len(prompt)} tokens; it needs at least 1 and fewer "
                    f"than the {self._limit} that a row may have in all. Shorten it or raise "
                    "max_total_tokens."
                )
        self._ids: list[tuple[int, ...]] = list(prompts)
        self._turns = [0] * len(prompts)
        self._respond = respond
        self._params = params
        self._seed = seed
        self._engine = engine
        self._vocab_size = vocab_size

    def first_requests(self) -> list[TurnRequest]:
        """Give the first turn of every row."""
        return [self._request(row) for row in range(len(self._ids))]

    def generation(
        self, request: TurnRequest, sampled_ids: Sequence[int], log_probs: Sequence[float]
    ) -> Generation:
        """Check what came back for a request and put it into form.

        Args:
            request: What was asked for.
            sampled_ids: The turn's ids.
            log_probs: One per id, nats.

        Returns:
            The turn.

        Raises:
            RolloutError: The turn is empty or too long, goes on behind a stop token, has not one finite
                log-probability per id, ended before a stop token or its limit, or has an id that is no
                token.
        """
        ids, values = tuple(sampled_ids), tuple(log_probs)
        where = f"{self._engine}.rollout: row {request.row}, turn {request.turn}"
        if not 0 < len(ids) <= request.max_tokens or len(ids) != len(values):
            raise RolloutError(
                f"{where}: got {len(ids)} ids and {len(values)} log-probs; wanted as many of both, 1 to "
                f"{request.max_tokens}. The engine does not answer as asked; look at its log."
            )
        if not all(math.isfinite(value) for value in values):
            raise RolloutError(
                f"{where}: a log-probability is not finite; the engine's weights or logits are not. Look at "
                "the last updates."
            )
        if self._vocab_size is not None and max(ids) >= self._vocab_size:
            raise RolloutError(
                f"{where}: sampled id {max(ids)}, a padding column of the model; tokens end at "
                f"{self._vocab_size - 1}. Start the engine with the padding mask, see docs/engines.md."
            )
        stops = [place for place, token in enumerate(ids) if token in self._params.stop_ids]
        is_full = len(ids) == request.max_tokens
        if (stops and stops[0] != len(ids) - 1) or not (stops or is_full):
            raise RolloutError(
                f"{where}: {len(ids)} of {request.max_tokens} tokens with stop tokens at {stops}; wanted one "
                "at the end only, or a full turn. The engine stops by other rules; look at its default "
                "sampling parameters."
            )
        reason = StopReason.STOP_TOKEN if stops else StopReason.LENGTH
        return Generation(
            sampled_ids=ids, log_probs=values, stop_reason=reason, is_truncated=self._params.is_truncated
        )

    def answer(self, ended: Sequence[tuple[int, Generation]]) -> list[TurnRequest]:
        """Ask for what follows ended turns.

        Args:
            ended: Row and turn; answered in row order.

        Returns:
            The requests of the rows that go on.

        Raises:
            RolloutError: An observation leaves no room for a token.
        """
        ended = sorted(ended, key=lambda pair: pair[0])
        requests = []
        for (row, generation), ids in zip(ended, self._respond(ended), strict=True):
            if ids is None:
                continue
            self._ids[row] += generation.sampled_ids + tuple(ids)
            self._turns[row] += 1
            if len(self._ids[row]) >= self._limit:
                raise RolloutError(
                    f"{self._engine}.rollout: the observation of row {row} has {len(ids)} tokens and brings "
                    f"it to {len(self._ids[row])}; {self._limit} are allowed and one must stay for the "
                    "answer. End the trajectory instead (respond with None)."
                )
            requests.append(self._request(row))
        return requests

    def _request(self, row: int) -> TurnRequest:
        ids, turn = self._ids[row], self._turns[row]
        return TurnRequest(
            row=row,
            turn=turn,
            ids=ids,
            max_tokens=min(self._params.max_turn_tokens, self._limit - len(ids)),
            seed=mix_seed(mix_seed(self._seed, row), turn),
        )
