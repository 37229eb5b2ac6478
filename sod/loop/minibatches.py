"""The updates of a round, planned before the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sod.advantages import group_advantages
from sod.config import RunConfig
from sod.errors import DataError
from sod.packing import Batch, num_trained_tokens, pack
from sod.seeding import derive_seed, permutation
from sod.tokenization import tokenize_trajectory
from sod.translation import TranslatedRound
from sod.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """What one update is made from.

    Attributes:
        batches: Microbatches.
        num_tokens: Trained tokens over all of them.
        first_key: Number of its first microbatch within the round, the same in every epoch.
    """

    batches: Sequence[Batch]
    num_tokens: int
    first_key: int


def plan_round(
    trajectories: Sequence[Trajectory],
    config: RunConfig,
    *,
    round_index: int,
    pad_id: int,
    translated: TranslatedRound | None = None,
) -> list[Minibatch]:
    """Divide a round's trajectories into minibatches, and order them for every epoch.

    Minibatches are drawn once per round; epochs differ in their order. So microbatches repeat, and a
    teacher's scores of them can be kept.

    Args:
        trajectories: The round's trajectories.
        config: Sizes and the root seed.
        round_index: The round, seeds the draws.
        pad_id: Token id of padding.
        translated: The trajectories in the teacher's tokens, where those are not the student's; what could
            not be translated is in no minibatch.

    Returns:
        One entry per update, in order.

    Raises:
        DataError: If a minibatch has no token to train on.
    """
    seed, size = config.run.seed, config.trainer.minibatch_trajectories
    sequences = [tokenize_trajectory(trajectory) for trajectory in trajectories]
    # Relative to the whole group, so before minibatches tear it apart.
    advantages = group_advantages(trajectories) if config.algorithm.has_reward_term else None
    order = permutation(len(trajectories), derive_seed(seed, "minibatch", round_index))
    if translated is not None:
        order = [i for i in order if translated.entries[i] is not None]
        if not order:
            raise DataError(
                f"plan_round: no trajectory of round {round_index} could be aligned; {translated.problem}"
            )
    minibatches: list[Minibatch] = []
    num_batches = 0
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batches = pack(
            sequences,
            chosen,
            max_tokens=config.trainer.max_microbatch_tokens,
            pad_id=pad_id,
            advantages=advantages,
            translated=translated,
        )
        num_tokens = num_trained_tokens([sequences[i] for i in chosen])
        if num_tokens == 0:
            raise DataError(
                f"plan_round: trajectories {sorted(chosen)} of round {round_index} have no token to train "
                "on; give longer rollouts, larger minibatches or expert data with assistant turns"
            )
        minibatches.append(Minibatch(batches=batches, num_tokens=num_tokens, first_key=num_batches))
        num_batches += len(batches)
    plan: list[Minibatch] = []
    for epoch in range(config.trainer.epochs):
        epoch_order = permutation(len(minibatches), derive_seed(seed, "epoch", round_index, epoch))
        plan += [minibatches[i] for i in epoch_order]
    return plan
