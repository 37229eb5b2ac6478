"""How good a policy is on held-out tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sod.estimators import bootstrap_error, majority_at_k, pass_at_k
from sod.types import Drift, Trajectory, Turn

_PASS_AT = re.compile(r"eval/pass@(\d+)")


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Result of one evaluation.

    Attributes:
        success_mean: Share of attempts that succeed.
        success_stderr: Its standard error over tasks: the spread of the tasks' own means.
        metrics: Flat numbers under the prefix `eval/`.
        trajectories: Every attempt.
    """

    success_mean: float
    success_stderr: float
    metrics: dict[str, float]
    trajectories: Sequence[Trajectory]

    def describe(self) -> str:
        """Say the result in a line."""
        text = (
            f"success {self.success_mean:.3f} ± {self.success_stderr:.3f} on "
            f"{self.metrics['eval/tasks']:.0f} tasks, "
            f"{self.metrics['eval/errors_per_trajectory']:.2f} errors per trajectory"
        )
        sizes = [int(found[1]) for key in self.metrics if (found := _PASS_AT.fullmatch(key))]
        if not sizes:
            return text
        k = max(sizes)
        error = self.metrics[f"eval/pass@{k}_stderr"]
        return f"{text}, pass@{k} {self.metrics[f'eval/pass@{k}']:.3f} ± {error:.3f}"


def summarise(trajectories: Sequence[Trajectory], answers: Sequence[str | None] | None = None) -> EvalResult:
    """Sum up the attempts of an evaluation.

    Args:
        trajectories: All attempts; those at one task share their `group_id`.
        answers: Final answer of each attempt, None for an attempt without one; needed for a majority.

    Returns:
        Means, and the standard error over tasks (attempts at one task are not independent).
    """
    by_task: dict[int, list[float]] = {}
    answers_by_task: dict[int, list[str | None]] = {}
    for index, trajectory in enumerate(trajectories):
        by_task.setdefault(trajectory.group_id, []).append(float(trajectory.is_success))
        answers_by_task.setdefault(trajectory.group_id, []).append(answers[index] if answers else None)
    means = [math.fsum(values) / len(values) for values in by_task.values()]
    mean = math.fsum(means) / max(1, len(means))
    spread = math.fsum((value - mean) ** 2 for value in means)
    stderr = math.sqrt(spread / (len(means) - 1) / len(means)) if len(means) > 1 else math.nan
    metrics = {
        key.replace("rollout/", "eval/")
        .replace("tool/", "eval/tool_")
        .replace("drift/", "eval/drift_"): value
        for key, value in rollout_metrics(trajectories).items()
    }
    metrics |= {"eval/success_mean": mean, "eval/success_stderr": stderr, "eval/tasks": float(len(means))}
    metrics |= _attempt_metrics(list(by_task.values()), list(answers_by_task.values()))
    return EvalResult(success_mean=mean, success_stderr=stderr, metrics=metrics, trajectories=trajectories)


def _attempt_metrics(
    by_task: Sequence[Sequence[float]], answers: Sequence[Sequence[str | None]]
) -> dict[str, float]:
    """pass@k and maj@k for k = 2, 4, 8 ... and n, the attempts of every task; average@n; with errors."""
    num_attempts = min((len(values) for values in by_task), default=0)
    sizes = {2**power for power in range(1, num_attempts.bit_length()) if 2**power <= num_attempts}
    metrics: dict[str, float] = {}
    for k in sorted(sizes | ({num_attempts} if num_attempts > 1 else set())):
        values = [pass_at_k(len(solved), round(sum(solved)), k) for solved in by_task]
        metrics[f"eval/pass@{k}"] = fmean(values)
        metrics[f"eval/pass@{k}_stderr"] = bootstrap_error(values)
        if any(answer is not None for task in answers for answer in task):
            pairs = zip(answers, by_task, strict=True)
            values = [majority_at_k(given, [one > 0 for one in solved], k) for given, solved in pairs]
            metrics[f"eval/maj@{k}"] = fmean(values)
            metrics[f"eval/maj@{k}_stderr"] = bootstrap_error(values)
    if num_attempts > 1:
        means = [fmean(solved) for solved in by_task]
        metrics[f"eval/average@{num_attempts}"] = fmean(means)
        metrics[f"eval/average@{num_attempts}_stderr"] = bootstrap_error(means)
    return metrics


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Sum up the trajectories of a round or an evaluation."""
    count = max(1, len(trajectories))
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    calls = [result for turn in turns for result in turn.results]
    metrics = {
        "rollout/success_mean": sum(t.is_success for t in trajectories) / count,
        "rollout/reward_mean": math.fsum(t.reward for t in trajectories) / count,
        "rollout/errors_per_trajectory": sum(t.num_errors for t in trajectories) / count,
        "rollout/turns_mean": len(turns) / count,
        "rollout/calls_per_trajectory": len(calls) / count,
        "rollout/tokens_mean": sum(t.num_sampled_tokens for t in trajectories) / count,
        "rollout/trajectories": float(len(trajectories)),
        "rollout/truncated_share": _truncated_share(turns),
    }
    for reason in sorted({str(trajectory.end_reason) for trajectory in trajectories}):
        metrics[f"rollout/end_{reason}"] = sum(str(t.end_reason) == reason for t in trajectories) / count
    looked_at = [turn.drift for turn in turns if turn.drift is not None]
    for drift in Drift if looked_at else ():
        metrics[f"drift/{drift}"] = looked_at.count(drift) / len(looked_at)
    for outcome in sorted({str(result.outcome) for result in calls}):
        metrics[f"tool/{outcome}"] = sum(str(r.outcome) == outcome for r in calls) / len(calls)
    return metrics


def _truncated_share(turns: Sequence[Turn]) -> float:
    """Share of the sampled tokens that were drawn from a vocabulary that top_p had cut."""
    num_cut = sum(len(turn.sampled_ids) for turn in turns if turn.is_truncated)
    return num_cut / max(1, sum(len(turn.sampled_ids) for turn in turns))
