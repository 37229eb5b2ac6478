"""What attempts and training steps say, summed up for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.states import GROUPS, count_retries, turn_groups, turn_states
from sod.envs.ledger_faults import LedgerFaults
from sod.metrics import read_rows
from sod.rollout.store import read_trajectories
from sod.types import Task, Trajectory


def read_attempts(
    attempts: Sequence[Trajectory], tasks: Mapping[str, Task], faults: LedgerFaults
) -> dict[str, Any]:
    """Sum up one greedy attempt per question.

    Args:
        attempts: In the order of the questions.
        tasks: By id.
        faults: Those that the tools had.

    Returns:
        `is_solved` per question, means, and how often a faulted call was repeated at once.
    """
    num_repeated = num_after = 0
    for attempt in attempts:
        repeated, after = count_retries(attempt, turn_states(attempt, tasks[attempt.task_id], faults))
        num_repeated, num_after = num_repeated + repeated, num_after + after
    count = len(attempts)
    return {
        "success": sum(one.is_success for one in attempts) / count,
        "is_solved": [int(one.is_success) for one in attempts],
        "errors": sum(one.num_errors for one in attempts) / count,
        "turns": sum(len(one.turns) for one in attempts) / count,
        "tokens": sum(one.num_sampled_tokens for one in attempts) / count,
        "retries": num_repeated,
        "faults": num_after,
    }


@dataclass(kw_only=True)
class _Sums:
    count: int = 0
    divergence: float = 0.0
    weight: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        if row["divergence"] is None:
            return
        self.count += 1
        self.divergence += row["divergence"]
        self.weight += row["weight"]

    def means(self) -> dict[str, float]:
        count = max(1, self.count)
        return {"count": self.count, "divergence": self.divergence / count, "weight": self.weight / count}


def split_steps(run: Path, tasks: Mapping[str, Task], faults: LedgerFaults) -> dict[str, Any]:
    """Split d_k and w_k of a run into clean steps, steps right after a fault, and later ones.

    Args:
        run: Run folder.
        tasks: Training tasks by id.
        faults: Those that the tools had.

    Returns:
        `by_round`, and `by_turn` of the first and the last round: clean, and with a fault behind.
    """
    rows = read_rows(run / "steps.jsonl")
    last = max(row["round"] for row in rows)
    by_round: list[dict[str, Any]] = []
    by_turn: dict[str, Any] = {}
    for number in range(last + 1):
        places = _groups_of_round(run, number, tasks, faults)
        groups = {group: _Sums() for group in GROUPS}
        turns: dict[tuple[str, int], _Sums] = {}
        for row in rows:
            if row["round"] != number:
                continue
            group = places[row["trajectory"]][row["step"]]
            groups[group].add(row)
            side = "clean" if group == GROUPS[0] else "fault"
            turns.setdefault((side, row["step"]), _Sums()).add(row)
        by_round.append({group: sums.means() for group, sums in groups.items()})
        if number in (0, last):
            by_turn["first" if number == 0 else "last"] = _nested(turns)
    return {"by_round": by_round, "by_turn": by_turn}


def _groups_of_round(
    run: Path, number: int, tasks: Mapping[str, Task], faults: LedgerFaults
) -> list[list[str]]:
    path = run / "trajectories" / f"round_{number:04d}.jsonl.gz"
    return [turn_groups(turn_states(one, tasks[one.task_id], faults)) for one in read_trajectories(path)]


def _nested(turns: Mapping[tuple[str, int], _Sums]) -> dict[str, dict[str, Any]]:
    return {side: dict(_of_side(turns, side)) for side in ("clean", "fault")}


def _of_side(turns: Mapping[tuple[str, int], _Sums], side: str) -> Iterator[tuple[str, Any]]:
    for place, turn in sorted(turns):
        if place == side:
            yield str(turn), turns[place, turn].means()
