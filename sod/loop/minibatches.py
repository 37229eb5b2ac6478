"""The updates of a round, planned before the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sod.advantages import group_advantages, turn_advantages
from sod.config import RunConfig
from sod.config_algorithms import ATODSection, GKDSection
from sod.config_environments import penalty_of
from sod.errors import DataError
from sod.packing import Batch, num_trained_tokens, pack
from sod.seeding import derive_seed, permutation
from sod.teacher.base import AnyTeacher
from sod.teacher.routed import RoutedTeacher
from sod.tokenization import tokenize_for_teacher, tokenize_trajectory
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


def is_own_round(config: RunConfig, round_index: int) -> bool:
    """Say whether a round is rolled out by the student; else it reads expert trajectories.

    Args:
        config: The settings.
        round_index: The round.

    Returns:
        Always or never the same, but for "gkd": there it is drawn, the same after a resume.
    """
    section = config.algorithm
    if isinstance(section, GKDSection):
        return derive_seed(config.run.seed, "own round", round_index) < section.on_policy_share * 2**63
    return section.is_on_policy


def plan_round(
    trajectories: Sequence[Trajectory],
    config: RunConfig,
    *,
    round_index: int,
    pad_id: int,
    teacher: AnyTeacher | None = None,
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
        teacher: Who scores; of several, every microbatch gets one.
        translated: The trajectories in the teacher's tokens, where those are not the student's; what could
            not be translated is in no minibatch.

    Returns:
        One entry per update, in order.

    Raises:
        DataError: If a minibatch has no token to train on.
    """
    seed, size = config.run.seed, config.trainer.minibatch_trajectories
    sequences = [tokenize_trajectory(trajectory) for trajectory in trajectories]
    packed = partial(
        pack,
        sequences,
        max_tokens=config.trainer.max_microbatch_tokens,
        pad_id=pad_id,
        # Relative to the whole group, so before minibatches tear it apart.
        advantages=_advantages(trajectories, config) if config.algorithm.has_reward_term else None,
        told=tokenize_for_teacher(trajectories),
        routes=teacher.routes(trajectories) if isinstance(teacher, RoutedTeacher) else None,
        translated=translated,
    )
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
        batches = packed(chosen)
        num_tokens = num_trained_tokens([sequences[i] for i in chosen])
        if num_tokens == 0:
            raise DataError(
                f"plan_round: trajectories {sorted(chosen)} of round {round_index} have no token to train "
                "on; give longer rollouts, larger minibatches or expert data with assistant turns"
            )
        minibatches.append(Minibatch(batches=batches, num_tokens=num_tokens, first_key=num_batches))
        num_batches += len(batches)
    orders = [
        permutation(len(minibatches), derive_seed(seed, "epoch", round_index, epoch))
        for epoch in range(config.trainer.epochs)
    ]
    return [minibatches[i] for order in orders for i in order]


def _advantages(
    trajectories: Sequence[Trajectory], config: RunConfig
) -> Sequence[float] | Sequence[Sequence[float]]:
    section = config.algorithm
    if isinstance(section, ATODSection) and section.penalty_on == "turn":
        return turn_advantages(trajectories, penalty=penalty_of(config.environment))
    return group_advantages(trajectories)
