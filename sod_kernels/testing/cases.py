"""Inputs that have broken kernels before, each with the reason why it is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels.types import DivergenceSpec, TokenGradients, TokenInputs

_BIG_SHIFT = 1.0e4


@dataclass(frozen=True, kw_only=True)
class StepKLCase:
    """Everything one forward and one backward sweep take.

    Attributes:
        name: Key in `CASE_REASONS`.
        student_logits: (B, T, student width).
        teacher_logits: (B, T, teacher width).
        reference_logits: (B, T, teacher width) or None.
        step_ids: (B, T) int64, -1 at rows in no step.
        sampled_ids: (B, T) int64 (-100 at rows in no step) or None.
        num_steps: Number of steps, of which some may have no token.
        spec: What to compute.
        grad_token_kl: (B, T) upstream gradient, in the backend's output dtype.
        grad_token_reference_kl: (B, T) upstream gradient; (0,) without a reference, like the output.
        grad_student_log_probs: (B, T) upstream gradient; (0,) without sampled ids, like the output.
        grad_student_entropy: (B, T) upstream gradient.
    """

    name: str
    student_logits: Tensor
    teacher_logits: Tensor
    reference_logits: Tensor | None
    step_ids: Tensor
    sampled_ids: Tensor | None
    num_steps: int
    spec: DivergenceSpec
    grad_token_kl: Tensor
    grad_token_reference_kl: Tensor
    grad_student_log_probs: Tensor
    grad_student_entropy: Tensor

    @property
    def inputs(self) -> TokenInputs:
        """What both sweeps read."""
        return TokenInputs(
            self.student_logits, self.teacher_logits, self.reference_logits, self.step_ids, self.sampled_ids
        )

    @property
    def upstream(self) -> TokenGradients:
        """What the backward sweep gets."""
        return TokenGradients(
            self.grad_token_kl,
            self.grad_token_reference_kl,
            self.grad_student_log_probs,
            self.grad_student_entropy,
        )

    def clone_tensors(self) -> tuple[Tensor, ...]:
        """Copy every tensor that a backend could spoil.

        Returns:
            The copies, in a fixed order.
        """
        return tuple(tensor.clone() for tensor in (*self.inputs, *self.upstream) if tensor is not None)


@dataclass(kw_only=True)
class _Draft:
    """A case under construction: float64 logits, then the recipe's changes, then the cast."""

    student: Tensor
    teacher: Tensor
    step_ids: Tensor
    sampled_ids: Tensor
    num_steps: int
    vocab_size: int
    temperature: float = 1.0
    min_log_prob: float | None = None
    strided: str | None = None


def _random_draft(shape: tuple[int, int, int], generator: torch.Generator) -> _Draft:
    num_rows, num_tokens, vocab_size = shape
    student = 4.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = student + 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    # Two steps to a row, cut in the middle, with the row's first token in no step when there is room.
    positions = torch.arange(num_tokens).expand(num_rows, num_tokens)
    step_ids = 2 * torch.arange(num_rows)[:, None] + (positions >= num_tokens // 2).long()
    if num_tokens > 2:
        step_ids[:, 0] = -1
    return _Draft(
        student=student,
        teacher=teacher,
        step_ids=step_ids.contiguous(),
        sampled_ids=torch.randint(vocab_size, (num_rows, num_tokens), generator=generator),
        num_steps=2 * num_rows,
        vocab_size=vocab_size,
    )


def make_near_equal_pair(
    num_rows: int, vocab_size: int, *, target_kl: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw logits pairs whose reverse KL is about `target_kl`: teacher = student + small noise.

    Args:
        num_rows: Number of pairs.
        vocab_size: Width V.
        target_kl: Wanted divergence per row, in nats.
        generator: CPU random generator.

    Returns:
        Student and teacher logits, (num_rows, V) float64, of the spread of a language model's (4 * randn).
    """
    student = 4.0 * torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)
    # KL grows with the square of the noise, so a few corrections by the square root land on the target.
    scale = torch.full((num_rows, 1), (2.0 * target_kl) ** 0.5, dtype=torch.float64)
    log_p = student.log_softmax(-1)
    for _ in range(3):
        value = (log_p.exp() * (log_p - (student + scale * noise).log_softmax(-1))).sum(-1, keepdim=True)
        scale = scale * (target_kl / value.clamp(min=1e-12)).sqrt()
    return student, student + scale * noise


def _one_hot_peak(draft: _Draft) -> None:
    draft.student[..., 0] = 80.0
    draft.teacher[..., -1] = 80.0


def _shift(draft: _Draft) -> None:
    draft.student += _BIG_SHIFT
    draft.teacher -= _BIG_SHIFT


def _shift_some_rows(draft: _Draft) -> None:
    draft.student[:, ::2] -= _BIG_SHIFT
    draft.teacher[:, 1::2] += _BIG_SHIFT


def _student_excludes(draft: _Draft) -> None:
    draft.student[..., ::3] = -torch.inf
    draft.teacher[..., ::3] = -torch.inf
    # Excluded by the student alone: finite reverse KL, infinite forward KL.
    draft.student[..., 1] = -torch.inf


def _teacher_excludes(draft: _Draft) -> None:
    draft.teacher[:, ::2, 1] = -torch.inf


def _leading_block(draft: _Draft) -> None:
    draft.student[..., :-5] = -torch.inf
    draft.teacher[..., :-5] = -torch.inf
    draft.sampled_ids.fill_(draft.vocab_size - 1)


def _disjoint_support(draft: _Draft) -> None:
    half = draft.vocab_size // 2
    draft.student[..., :half] = -torch.inf
    draft.teacher[..., half:] = -torch.inf
    draft.sampled_ids.fill_(draft.vocab_size - 1)


def _low_floor(draft: _Draft) -> None:
    draft.teacher[:, ::2, 1] = -torch.inf
    draft.student[:, 1::2, 2] = -torch.inf
    draft.min_log_prob = -9.0


def _bad_rows(draft: _Draft) -> None:
    draft.student[0, 1] = -torch.inf
    draft.teacher[0, 2] = -torch.inf
    draft.student[1, 1, 3] = torch.nan
    draft.teacher[1, 2, 0] = torch.nan


def _garbage_outside(draft: _Draft) -> None:
    draft.step_ids[:, 1] = -1
    draft.student[:, 0], draft.student[:, 1] = torch.nan, torch.inf
    draft.teacher[:, 0], draft.teacher[:, 1] = -torch.inf, torch.nan


def _padded(draft: _Draft) -> None:
    draft.vocab_size -= 7
    draft.teacher = torch.cat([draft.teacher, torch.full_like(draft.teacher[..., :5], torch.nan)], dim=-1)
    draft.student[..., -7:] = torch.inf
    draft.teacher[..., draft.vocab_size :] = torch.nan
    draft.sampled_ids.remainder_(draft.vocab_size)


def _no_tokens(draft: _Draft) -> None:
    draft.step_ids.fill_(-1)


def _scattered_steps(draft: _Draft) -> None:
    # Ids out of order and not in runs; ids 1 and 4 have no token.
    pattern = torch.tensor([3, 0, -1, 5, 0, 3, 2])
    draft.step_ids = pattern.repeat(draft.step_ids.numel())[: draft.step_ids.numel()].view_as(draft.step_ids)
    draft.num_steps = 7


def _near_equal(draft: _Draft) -> None:
    generator = torch.Generator().manual_seed(7)
    shape = draft.student.shape
    pair = make_near_equal_pair(shape[0] * shape[1], shape[2], target_kl=1e-3, generator=generator)
    draft.student, draft.teacher = pair[0].view(shape), pair[1].view(shape)


def _equal(draft: _Draft) -> None:
    draft.teacher = draft.student.clone()


def _cool(draft: _Draft) -> None:
    draft.temperature = 0.5


def _warm(draft: _Draft) -> None:
    draft.temperature = 2.5


def _shifted_labels(draft: _Draft) -> None:
    draft.strided = "shifted"


def _shared_teacher(draft: _Draft) -> None:
    draft.teacher = draft.teacher[:1].expand_as(draft.teacher).clone()
    draft.strided = "expanded"


def _leave(draft: _Draft) -> None:
    """Use the random draft as it is."""


_CASES: dict[str, tuple[str, tuple[int, int, int], Callable[[_Draft], None]]] = {
    "plain": ("the ordinary case", (2, 5, 37), _leave),
    "one_column": ("V = 1: KL, entropy and every gradient are exactly 0", (1, 4, 1), _leave),
    "one_row": ("a single token", (1, 1, 130), _leave),
    "odd_width": ("V is no multiple of any block and rows are not aligned", (2, 3, 1031), _leave),
    "block_edge": ("V is exactly a block", (1, 4, 1024), _leave),
    "block_edge_plus_one": ("V is one past a block", (1, 4, 1025), _leave),
    "several_blocks": ("the running maximum is rescaled across blocks", (1, 3, 9001), _leave),
    "no_tokens": ("every row is in no step; all steps are empty", (2, 3, 33), _no_tokens),
    "scattered_steps": (
        "step ids out of order, not in runs, some without tokens",
        (2, 8, 33),
        _scattered_steps,
    ),
    "peaked": ("both distributions are one-hot, on different columns", (1, 4, 65), _one_hot_peak),
    "shifted": ("logits far from 0, on opposite sides", (1, 4, 513), _shift),
    "shifted_some_rows": ("a row's shift must not leak into its neighbour", (2, 4, 129), _shift_some_rows),
    "student_excludes": ("-inf columns of both, and of the student alone", (2, 4, 70), _student_excludes),
    "teacher_excludes": (
        "-inf where the student has mass: infinite reverse KL",
        (2, 4, 70),
        _teacher_excludes,
    ),
    "leading_block": ("whole leading blocks at -inf must not give NaN", (1, 3, 4099), _leading_block),
    "disjoint": ("no common column: KL infinite, JSD at its maximum", (1, 3, 64), _disjoint_support),
    "floored": ("min_log_prob replaces infinities by a floor", (2, 4, 70), _low_floor),
    "bad_rows": ("NaN or all -inf rows give NaN there and nowhere else", (2, 4, 66), _bad_rows),
    "garbage_outside": ("rows in no step hold NaN and inf; sampled ids -100", (2, 5, 40), _garbage_outside),
    "padded_vocab": ("unequal widths, padding columns hold NaN and inf", (2, 4, 71), _padded),
    "near_equal": ("KL of 1e-3, where cancellation shows", (1, 4, 2048), _near_equal),
    "equal": ("teacher = student: KL is 0 and so is its gradient", (1, 4, 300), _equal),
    "cool": ("temperature below 1", (1, 4, 100), _cool),
    "warm": ("temperature above 1", (1, 4, 100), _warm),
    "label_shift": (
        "logits[:, :-1]: the batch stride is not T times the row stride",
        (2, 6, 50),
        _shifted_labels,
    ),
    "shared_teacher": ("one teacher row for all: batch stride 0", (3, 4, 50), _shared_teacher),
    "full_vocab": (
        "a real vocabulary at KL 1e-3; few rows, as interpreters are slow",
        (1, 2, 151936),
        _near_equal,
    ),
}

CASE_REASONS: dict[str, str] = {name: reason for name, (reason, _, _) in _CASES.items()}
"""Names for `make_case`, with the reason for each."""


def _strided(logits: Tensor, how: str | None, *, is_teacher: bool) -> Tensor:
    if how == "shifted":
        filler = torch.full_like(logits[:, :1], torch.nan)
        return torch.cat([filler, logits], 1)[:, 1:] if is_teacher else torch.cat([logits, filler], 1)[:, :-1]
    if how == "expanded" and is_teacher:
        return logits[:1].expand_as(logits)
    return logits


def make_case(
    name: str,
    *,
    divergence: str = "reverse_kl",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    with_sampled: bool = True,
    with_reference: bool = False,
    beta: float = 0.3,
    min_log_prob: float | None = None,
    seed: int = 0,
) -> StepKLCase:
    """Build one of the awkward cases.

    Args:
        name: A key of `CASE_REASONS`.
        divergence: "reverse_kl", "forward_kl" or "jsd".
        dtype: Dtype of the logits.
        device: Where the tensors go; they are drawn on the CPU, so every device sees the same numbers.
        with_sampled: Whether sampled ids are given.
        with_reference: Whether reference logits are given; 3/4 of the teacher's, with all their oddities.
        beta: Weight on the teacher, read for "jsd" only.
        min_log_prob: Floor in nats, ignored for "jsd", which has none; the case "floored" brings its own.
        seed: Of the random numbers.

    Returns:
        The case, ready for a backend, `truth` and `plain_torch`.
    """
    _, shape, change = _CASES[name]
    generator = torch.Generator().manual_seed(seed)
    draft = _random_draft(shape, generator)
    change(draft)
    floor = None if divergence == "jsd" else (draft.min_log_prob if min_log_prob is None else min_log_prob)
    out_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.randn((4, *shape[:2]), generator=generator, dtype=torch.float64).to(out_dtype)
    absent = upstream.new_zeros(0).to(device)

    def placed(logits: Tensor, is_teacher: bool) -> Tensor:
        return _strided(logits.to(dtype).to(device), draft.strided, is_teacher=is_teacher)

    return StepKLCase(
        name=name,
        student_logits=placed(draft.student, is_teacher=False),
        teacher_logits=placed(draft.teacher, is_teacher=True),
        reference_logits=placed(0.75 * draft.teacher, is_teacher=True) if with_reference else None,
        step_ids=draft.step_ids.to(device),
        sampled_ids=(
            torch.where(draft.step_ids >= 0, draft.sampled_ids, -100).to(device) if with_sampled else None
        ),
        num_steps=draft.num_steps,
        spec=DivergenceSpec(
            divergence=divergence,
            beta=beta,
            temperature=draft.temperature,
            vocab_size=draft.vocab_size,
            min_log_prob=floor,
        ),
        grad_token_kl=upstream[0].to(device),
        grad_student_log_probs=upstream[1].to(device) if with_sampled else absent,
        grad_student_entropy=upstream[2].to(device),
        grad_token_reference_kl=upstream[3].to(device) if with_reference else absent.clone(),
    )
