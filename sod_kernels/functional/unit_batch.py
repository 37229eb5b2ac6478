"""What the functions over units share before anything is scored: checked units, steps, what is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels._checks import arguments, values
from sod_kernels._checks import unit_kl as checks
from sod_kernels._layout import StepLayout, resolve_layout
from sod_kernels._unit_scores import Side
from sod_kernels._unit_space import Space, make_space
from sod_kernels.functional.options import Options
from sod_kernels.units import Units, VocabMap


@dataclass(frozen=True, kw_only=True)
class UnitChoice:
    """What the functions over units let their caller choose besides `Options`, as in `unit_kl`.

    Attributes:
        score: "log_prob" or "logit".
        unit_filter: "one_to_one" or None.
        topk: Columns, or None for all.
        mask_first_token: Whether a span's first tokens do not compete with it.
        min_teacher_mass: Or None.
    """

    score: str = "log_prob"
    unit_filter: str | None = None
    topk: int | None = None
    mask_first_token: bool = False
    min_teacher_mass: float | None = None


class Labels(NamedTuple):
    """What the rows of one side predict.

    Attributes:
        ids: (rows,) integer.
        vocab_size: Valid columns.
    """

    ids: Tensor
    vocab_size: int


class UnitBatch(NamedTuple):
    """Checked units of one call.

    Attributes:
        student: Its rows and labels.
        teacher: The teacher's.
        space: What each unit compares.
        layout: Steps of the student's tokens.
        temperature: Divides all logits.
        measures_student: Whether the log-sum-exps of all rows of compared units are needed.
        measures_teacher: The same on the teacher's side.
    """

    student: Side
    teacher: Side
    space: Space
    layout: StepLayout
    temperature: float
    measures_student: bool
    measures_teacher: bool


def resolve_units(
    options: Options,
    choice: UnitChoice,
    units: Units,
    vocab_map: VocabMap,
    labels: tuple[Labels, Labels],
    *,
    step_ids: Tensor | None,
    response_mask: Tensor | None,
    step_trajectory: Tensor | None,
    num_steps: int | None,
) -> UnitBatch:
    """Check units, map, labels and steps, and work out what each unit compares.

    Args:
        options: Checked.
        choice: As given.
        units: As given.
        vocab_map: As given.
        labels: Of student and teacher, checked but for their values.
        step_ids: As given, like those below.
        response_mask: In place of step ids.
        step_trajectory: (S,) trajectory of each step.
        num_steps: S.

    Returns:
        The batch.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device, value or combination.
    """
    name, student_ids = options.function, labels[0].ids
    device = student_ids.device
    checks.check_map(name, vocab_map, VocabMap, (labels[0].vocab_size, labels[1].vocab_size), device)
    checks.check_units(name, units, Units, (student_ids.shape[0], labels[1].ids.shape[0]), device)
    checks.check_unit_options(
        name,
        score=choice.score,
        unit_filter=choice.unit_filter,
        topk=choice.topk,
        num_shared=vocab_map.num_shared,
        mask_first_token=choice.mask_first_token,
        min_teacher_mass=choice.min_teacher_mass,
    )
    layout = resolve_layout(
        name,
        student_ids[:, None],
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
        weighting=options.weighting,
    )
    arguments.check_loss_arguments(
        name, options.token_weights, options.denominator, reduction=options.reduction, like=layout.step_ids
    )
    student, teacher = (
        Side(each.ids.detach().to(torch.int64), spans, each.vocab_size)
        for each, spans in zip(labels, (units.student_spans, units.teacher_spans), strict=True)
    )
    space = make_space(
        units,
        vocab_map,
        (student.ids, teacher.ids),
        layout.step_ids,
        unit_filter=choice.unit_filter,
        masks_first_token=choice.mask_first_token,
    )
    _check_labels(name, student, teacher, space.kinds)
    reads_paths = options.step_divergence == "abs_log_ratio"
    return UnitBatch(
        student=student,
        teacher=teacher,
        space=space,
        layout=layout,
        temperature=float(options.temperature),
        measures_student=reads_paths,
        measures_teacher=reads_paths or choice.min_teacher_mass is not None,
    )


def _check_labels(name: str, student: Side, teacher: Side, kinds: Tensor) -> None:
    """Refuse labels out of range in compared units; elsewhere they may be anything."""
    for argument, side in (("student_ids", student), ("teacher_ids", teacher)):
        if kinds.shape[0]:
            is_used = side.rows_of(kinds >= 0)
            values.check_ids(name, argument, side.ids, low=0, high=side.vocab_size, counted=is_used)
