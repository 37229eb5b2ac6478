"""Which model pairs, rows and dtypes are measured, on which kind of machine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPS = ("step_kl", "linear_step_kl", "topk_step_kl")
# Peers of the hidden-state op make their gradients in the forward, so its forward alone compares nothing.
PASSES = {
    "step_kl": ("forward", "forward+backward"),
    "linear_step_kl": ("forward+backward",),
    "topk_step_kl": ("forward", "forward+backward"),
}
NUM_STEPS = 8
TOP_K = 64


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Student and teacher, as their heads see them.

    Attributes:
        name: What the command line and the table call the pair.
        vocab: Vocabulary size V.
        student_width: Hidden size of the student.
        teacher_width: Hidden size of the teacher.
    """

    name: str
    vocab: int
    student_width: int
    teacher_width: int


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(name="qwen3-0.6b-from-4b", vocab=151_936, student_width=1024, teacher_width=2560),
        Pair(name="qwen3-1.7b-from-4b", vocab=151_936, student_width=2048, teacher_width=2560),
        Pair(name="qwen3-4b-from-30b-a3b", vocab=151_936, student_width=2560, teacher_width=2048),
        Pair(name="llama3.2-1b-from-8b", vocab=128_256, student_width=2048, teacher_width=4096),
        Pair(name="small", vocab=4096, student_width=256, teacher_width=512),
    )
}
QWEN, QWEN_2B, QWEN_4B, LLAMA, SMALL = PAIRS


@dataclass(frozen=True, kw_only=True)
class Case:
    """One set of tensors, on which all contestants of one op run.

    Attributes:
        op: "step_kl", "linear_step_kl" or "topk_step_kl".
        pair: The models.
        rows: Tokens N.
        dtype: Of logits, hidden states and heads.
        top_k: Entries K of the teacher's list, read by "topk_step_kl" alone.
        num_steps: Steps S that the tokens are divided into.
    """

    op: str
    pair: Pair
    rows: int
    dtype: str
    top_k: int = TOP_K
    num_steps: int = NUM_STEPS

    @property
    def itemsize(self) -> int:
        """Bytes per logit."""
        return DTYPES[self.dtype].itemsize

    @property
    def logits_bytes(self) -> int:
        """Size of one (N, V) tensor in the case's dtype."""
        return self.rows * self.pair.vocab * self.itemsize

    def __str__(self) -> str:
        return f"{self.op}, {self.pair.name}, N={self.rows}, V={self.pair.vocab}, {self.dtype}"


# (op, pair, rows, dtypes). Two CPU cores get what fits their patience and 24 GB.
_Plan = tuple[tuple[str, str, tuple[int, ...], tuple[str, ...]], ...]
_GROWTH = (512, 2048, 8192, 32_768)
_PLANS: dict[tuple[str, str], _Plan] = {
    ("cpu", "full"): (
        ("step_kl", QWEN, (256,), ("float32", "bfloat16")),
        ("step_kl", LLAMA, (256,), ("float32",)),
        ("step_kl", SMALL, _GROWTH, ("float32",)),
        ("linear_step_kl", QWEN, (128,), ("float32",)),
        ("linear_step_kl", QWEN_2B, (64,), ("float32",)),
        ("linear_step_kl", QWEN_4B, (64,), ("float32",)),
        ("linear_step_kl", SMALL, (512, 2048, 8192), ("float32",)),
        ("topk_step_kl", QWEN, (256,), ("float32",)),
        ("topk_step_kl", SMALL, (512, 8192), ("float32",)),
    ),
    ("cpu", "quick"): (
        ("step_kl", QWEN, (32,), ("float32",)),
        ("step_kl", SMALL, (512, 2048), ("float32",)),
        ("linear_step_kl", SMALL, (512, 2048), ("float32",)),
        ("topk_step_kl", SMALL, (512,), ("float32",)),
    ),
    ("cuda", "full"): (
        ("step_kl", QWEN, _GROWTH, ("bfloat16",)),
        ("step_kl", QWEN, (8192,), ("float32",)),
        ("step_kl", LLAMA, (8192,), ("bfloat16",)),
        ("step_kl", SMALL, _GROWTH, ("bfloat16",)),
        ("linear_step_kl", QWEN, _GROWTH, ("bfloat16",)),
        ("linear_step_kl", QWEN_2B, (8192,), ("bfloat16",)),
        ("linear_step_kl", QWEN_4B, (8192,), ("bfloat16",)),
        ("linear_step_kl", LLAMA, (8192,), ("bfloat16",)),
        ("linear_step_kl", SMALL, _GROWTH, ("bfloat16",)),
        ("topk_step_kl", QWEN, _GROWTH, ("bfloat16",)),
    ),
    ("cuda", "quick"): (
        ("step_kl", QWEN, (8192,), ("bfloat16",)),
        ("linear_step_kl", QWEN, (8192,), ("bfloat16",)),
        ("topk_step_kl", QWEN, (8192,), ("bfloat16",)),
    ),
}


def planned_cases(
    device: str,
    profile: str,
    *,
    ops: tuple[str, ...] = (),
    pairs: tuple[str, ...] = (),
    rows: tuple[int, ...] = (),
    dtypes: tuple[str, ...] = (),
) -> list[Case]:
    """List the cases of a profile, narrowed or replaced by what the caller names.

    Args:
        device: "cpu" or "cuda".
        profile: "full" or "quick".
        ops: Only these ops; empty for all of the profile's.
        pairs: Only these pairs. One that the profile leaves out is measured at the rows named.
        rows: These N in place of the profile's.
        dtypes: These dtypes in place of the profile's.

    Returns:
        Cases, each once, in the order of the profile.

    Raises:
        ValueError: If nothing is left to measure.
    """
    cases: dict[Case, None] = {}
    for op, pair, plan_rows, plan_dtypes in _PLANS[device, profile]:
        if (ops and op not in ops) or (pairs and pair not in pairs):
            continue
        for count, dtype in product(rows or plan_rows, dtypes or plan_dtypes):
            cases[Case(op=op, pair=PAIRS[pair], rows=count, dtype=dtype)] = None
    planned = {(case.op, case.pair.name) for case in cases}
    for op, pair in product(ops or OPS, pairs if rows else ()):
        if (op, pair) not in planned:
            for count, dtype in product(rows, dtypes or ("float32",)):
                cases[Case(op=op, pair=PAIRS[pair], rows=count, dtype=dtype)] = None
    if not cases:
        raise ValueError(
            f"The {profile} profile for {device} has none of ops {ops or 'all'} with pairs {pairs or 'all'}; "
            "name --rows as well to measure a pair that it leaves out."
        )
    return list(cases)
