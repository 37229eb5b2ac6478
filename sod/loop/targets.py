"""What the updates of a round compare the student with, made ready before the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sod.config import RunConfig
from sod.loop.minibatches import Minibatch
from sod.teacher.base import AnyTeacher
from sod.teacher.cache import RoundTargets
from sod.teacher.local import LocalTeacher

MIB = 1 << 20


def round_targets(
    config: RunConfig,
    teacher: AnyTeacher | None,
    reference: LocalTeacher | None,
    plan: Sequence[Minibatch],
    report: Callable[[int, int], None] | None = None,
) -> RoundTargets:
    """Make the targets of a round; offloaded models score it here, and are gone afterwards.

    Args:
        config: The settings.
        teacher: Who teaches; None for an algorithm without.
        reference: The policy that the run started from; None for an algorithm without.
        plan: The updates that are left of the round.
        report: Called with scored microbatches and their number.

    Returns:
        The targets; heads of offloaded models stay on the device as long as they live.
    """
    kept_mib = config.trainer.teacher_cache_mib if config.trainer.epochs > 1 else 0
    targets = RoundTargets(teacher, reference, max_bytes=kept_mib * MIB)
    batches = {each.first_key + index: batch for each in plan for index, batch in enumerate(each.batches)}
    targets.score_ahead(batches, report)
    return targets
