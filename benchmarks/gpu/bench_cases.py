"""What the part "bench" measures, the most wanted first, since the time may not do for all of it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.shapes import QWEN, Case, Pair, planned_cases

EVERYBODY = ""
# Growth with N, other models and dtypes: ours and the peers without what has to be compiled.
QUICK_TO_START = r"(triton|native)$|TRL|LigerJSD|eager"
GROWTH = (4096, 16_384)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A case and who takes part.

    Attributes:
        case: Tensors.
        contestants: Regular expression of names.
        is_target: Whether docs/gpu.md sets a target for it; all of these have to fit into the part's time.
    """

    case: Case
    contestants: str
    is_target: bool


def planned(*, is_dry: bool) -> list[Planned]:
    """List the cases.

    Args:
        is_dry: Whether for a machine without a GPU: one tiny case per function.

    Returns:
        The shapes of the targets with everybody, then growth with N, then every other shape of the full
        profile on CUDA; each once.
    """
    if is_dry:
        tiny = Pair(name="tiny", vocab=515, student_width=16, teacher_width=24)
        names = {"step_kl": "eager|reference$", "linear_step_kl": "reference$|TRL", "topk_step_kl": "eager"}
        return [
            Planned(case=Case(op=op, pair=tiny, rows=24, dtype="float32"), contestants=who, is_target=True)
            for op, who in names.items()
        ]
    targets = planned_cases("cuda", "quick")
    growth = planned_cases("cuda", "quick", pairs=(QWEN,), rows=GROWTH)
    wanted = dict.fromkeys((*targets, *growth, *planned_cases("cuda", "full")))
    return [
        Planned(
            case=case,
            contestants=EVERYBODY if case in targets else QUICK_TO_START,
            is_target=case in targets or case in growth,
        )
        for case in wanted
    ]
