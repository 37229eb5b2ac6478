"""Tool faults for the ledger world: calls that were right and are answered wrongly all the same.

A fault is a pure function of seed, task and the number of the call among the right ones, so that all
attempts at a task meet the same faults, a run repeats exactly, and an analysis can tell which observations
were faulty although nothing in them says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sod.envs.ledger import ITEMS
from sod.envs.ledger_expert import ExpertTurn
from sod.types import ToolOutcome, ToolResult

FaultKind = Literal["none", "timeout", "garbled"]

_CALL = "<tool_call>"


@dataclass(frozen=True, kw_only=True)
class LedgerFaults:
    """How often right calls fail, and how.

    Attributes:
        rate: Chance in [0, 1) that a right call is answered with a fault.
        garbled_share: Share of the faults whose text is of the wrong kind (an item for a number) and has no
            error word; the others say "timeout".
        seed: Any integer.
    """

    rate: float
    garbled_share: float
    seed: int

    def kind(self, task_id: str, number: int) -> FaultKind:
        """Tell what happens to a call.

        Args:
            task_id: The task.
            number: How many right calls came before it in the attempt.

        Returns:
            Whether and how it fails.
        """
        generator = self._generator(task_id, number)
        if generator.random() >= self.rate:
            return "none"
        return "garbled" if generator.random() < self.garbled_share else "timeout"

    def applied(self, result: ToolResult, task_id: str, number: int) -> ToolResult:
        """Put the fault of a call, if it has one, in the place of its result.

        Args:
            result: Of a right call.
            task_id: The task.
            number: See `kind`.

        Returns:
            The result, or what the student reads in its place.
        """
        kind = self.kind(task_id, number)
        if kind == "none":
            return result
        if kind == "timeout":
            return replace(result, outcome=ToolOutcome.TIMEOUT, text="timeout")
        generator = self._generator(f"text:{task_id}", number)
        is_number = result.text.strip().lstrip("-").isdigit()
        return replace(result, text=generator.choice(ITEMS) if is_number else str(generator.randint(2, 9)))

    def _generator(self, task_id: str, number: int) -> random.Random:
        return random.Random(f"fault:{self.seed}:{task_id}:{number}")  # noqa: S311 - not for secrets


def with_retries(turns: Sequence[ExpertTurn], faults: LedgerFaults, task_id: str) -> tuple[ExpertTurn, ...]:
    """Let an expert repeat each right call until it is answered without a fault.

    Args:
        turns: Of `expert_turns`.
        faults: The faults.
        task_id: The task that is attempted.

    Returns:
        The turns with the repetitions; all right ones are trained.
    """
    written: list[ExpertTurn] = []
    number = 0
    for turn in turns:
        written.append(turn)
        if turn.mistake or _CALL not in turn.text:
            continue
        while faults.kind(task_id, number) != "none":
            number += 1
            written.append(turn)
        number += 1
    return tuple(written)
