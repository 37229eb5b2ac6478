"""`unit_kl`: student and teacher with different tokenisers. Check, score, dispatch, weigh, reduce."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _dispatch, _unit_ops
from sod_kernels._checks import arguments, values, weightings
from sod_kernels._checks import unit_kl as checks
from sod_kernels._layout import resolve_layout, with_unit_stride
from sod_kernels._unit_ops import UnitOpOutputs
from sod_kernels._unit_scores import UnitOptions, UnitTensors, path_log_probs, sides
from sod_kernels._unit_space import Space, make_space, top_columns
from sod_kernels.functional.unit_output import StepResult, UnitValues, reduce_units, teacher_mass
from sod_kernels.types import RowState, StepStatistics
from sod_kernels.unit_types import UnitKLOutput
from sod_kernels.units import Units, VocabMap

_NAME = "unit_kl"
_FORWARD = _unit_ops.unit_kl_forward


def unit_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    units: Units,
    vocab_map: VocabMap,
    *,
    student_ids: Tensor,
    teacher_ids: Tensor,
    step_ids: Tensor | None = None,
    score: str = "log_prob",
    divergence: str = "reverse_kl",
    beta: float | None = None,
    temperature: float = 1.0,
    unit_filter: str | None = None,
    topk: int | None = None,
    mask_first_token: bool = False,
    min_teacher_mass: float | None = None,
    student_vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    response_mask: Tensor | None = None,
    step_trajectory: Tensor | None = None,
    num_steps: int | None = None,
    step_divergence: str = "kl",
    weighting: Tensor | Callable[[StepStatistics], Tensor] | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> UnitKLOutput:
    r"""Compute a divergence per unit of two tokenisers, weighted by step, and its statistics per step.

    A unit u is read at its first row on each side, over the shared columns c and, unless it is one token on
    each side that the map pairs, a span column \*:

    .. math:: a_c = z_s[S_c] / \tau, \qquad a_* = \frac{1}{k} \sum_j \log p(v_j) + \mathrm{lse}(z_s / \tau)

    for the student and likewise b for the teacher; with :math:`p_u = \mathrm{softmax}(a)` and
    :math:`q_u = \mathrm{softmax}(b)`

    .. math:: L = \frac{1}{Z} \sum_u w_{k(u)} \, v_u \, D(p_u, q_u)

    where :math:`D` is the chosen divergence, :math:`w` the step weights, :math:`v` the token weights and
    :math:`Z` the divisor of `reduction`, which counts student tokens. Weights and statistics are detached,
    and the teacher gets no gradient. With the identity map and one token per unit this is `step_kl`.

    Args:
        student_logits: (N, V) packed; float64, float32, bfloat16 or float16. Row i scores `student_ids[i]`.
        teacher_logits: (M, V of the teacher), same dtype and device. Row j scores `teacher_ids[j]`.
        units: Spans of rows on both sides. Rows in no unit get no gradient.
        vocab_map: Columns of the two vocabularies that mean the same token.
        student_ids: (N,) integer, the token that each row predicts; may be anything in no unit.
        teacher_ids: (M,) integer, likewise.
        step_ids: (N,) integer step of each student token, -1 in no step. A unit is in the step of its first
            student token; one with a token in no step (such as the end of a response that was cut) is not
            compared. Without ids and mask all tokens are one step.
        score: Of a span: "log_prob", the mean log-probability of its tokens (SimCT's paper), or "logit", the
            mean raw logit (its code).
        divergence: "reverse_kl", "forward_kl" or "jsd", as in `step_kl`.
        beta: As in `step_kl`.
        temperature: Divides all logits, above 0.
        unit_filter: None, or "one_to_one" to compare only units without a span column.
        topk: Compare only this many shared columns, the student's likeliest at the unit's first row.
        mask_first_token: Whether the first tokens of a span, the student's and the teacher's, do not compete
            with it.
        min_teacher_mass: Leave out units whose columns hold less of the teacher's probability, in (0, 1]; the
            span counts with the exponential of its mean log-probability.
        student_vocab_size: Valid columns of the student; those beyond count nowhere. None: all.
        teacher_vocab_size: Valid columns of the teacher.
        response_mask: (N,) of 0 and 1, as in `step_kl`.
        step_trajectory: (S,), as in `step_kl`.
        num_steps: S, as in `step_kl`.
        step_divergence: What is averaged over a step's units: "kl", the divergence, or "abs_log_ratio",
            abs(log p - log q) of all the tokens of the unit, which reads every row in a unit.
        weighting: Step weights, as in `step_kl`. The uncertainty of a step is the mean entropy of the student
            over its units; a step without compared units counts as one without tokens.
        token_weights: (N,) floating, detached; a unit gets the mean of its student tokens.
        reduction: As in `step_kl`, over units; tokens, in units or not, are counted. "none" gives (U,).
        denominator: As in `step_kl`.
        backend: "auto", "reference", "native" (on the CPU) or "triton".

    Returns:
        Loss, unit and step statistics; float32 (float64 for float64 logits), nats.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        SimCT, arXiv 2605.07711, equations (6) to (9); working form and gradient in docs/math.md.
    """
    widths = _check_inputs(
        (student_logits, teacher_logits),
        (student_ids, teacher_ids),
        (student_vocab_size, teacher_vocab_size),
        units,
        vocab_map,
    )
    kind, mixture = arguments.check_divergence(_NAME, divergence, beta, temperature, None)
    arguments.check_options(_NAME, step_divergence, reduction, backend)
    checks.check_unit_options(
        _NAME,
        score=score,
        unit_filter=unit_filter,
        topk=topk,
        num_shared=vocab_map.num_shared,
        mask_first_token=mask_first_token,
        min_teacher_mass=min_teacher_mass,
    )
    weightings.check_weighting(_NAME, weighting, may_be_tensor=True)
    layout = resolve_layout(
        _NAME,
        student_logits,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
        weighting=weighting,
    )
    arguments.check_loss_arguments(
        _NAME, token_weights, denominator, reduction=reduction, like=layout.step_ids
    )
    options = UnitOptions(
        score=score,
        measures_student=step_divergence == "abs_log_ratio",
        measures_teacher=step_divergence == "abs_log_ratio" or min_teacher_mass is not None,
        student_vocab_size=widths[0],
        teacher_vocab_size=widths[1],
        divergence=kind,
        beta=float(mixture),
        temperature=float(temperature),
        backend=_resolve(backend, student_logits),
    )
    ids = (student_ids.detach().to(torch.int64), teacher_ids.detach().to(torch.int64))
    space = make_space(
        units,
        vocab_map,
        ids,
        layout.step_ids,
        unit_filter=unit_filter,
        masks_first_token=mask_first_token,
    )
    tensors = _tensors((student_logits, teacher_logits), ids, units, space, topk)
    _check_labels(tensors, options)
    measured = _measure(tensors, options, space.steps, min_teacher_mass)
    result = reduce_units(
        _NAME,
        measured.values,
        layout,
        sides(tensors, options)[0],
        weighting=weighting,
        token_weights=token_weights,
        reduction=reduction,
        denominator=denominator,
    )
    return _output(result, measured, options)


def _check_inputs(
    logits: tuple[Tensor, Tensor],
    ids: tuple[Tensor, Tensor],
    vocab_sizes: tuple[int | None, int | None],
    units: Units,
    vocab_map: VocabMap,
) -> tuple[int, int]:
    """Check everything of both sides but the values of the labels; the numbers of valid columns."""
    student = checks.check_side(_NAME, "student", logits[0], ids[0], vocab_sizes[0], None)
    teacher = checks.check_side(_NAME, "teacher", logits[1], ids[1], vocab_sizes[1], logits[0])
    device = logits[0].device
    checks.check_map(_NAME, vocab_map, VocabMap, (student, teacher), device)
    checks.check_units(_NAME, units, Units, (logits[0].shape[0], logits[1].shape[0]), device)
    return student, teacher


def _resolve(backend: str, student_logits: Tensor) -> str:
    device_type = student_logits.device.type
    name = _dispatch.resolve(backend, device_type, student_logits.dtype, function=_NAME)
    if name == "native" and device_type != "cpu":
        raise _dispatch.BackendUnavailableError(
            f"{_NAME}: backend 'native' has no unit kernels for {device_type}, only for the CPU. Use "
            "backend='triton' or 'auto'."
        )
    return name


def _tensors(
    logits: tuple[Tensor, Tensor],
    ids: tuple[Tensor, Tensor],
    units: Units,
    space: Space,
    topk: int | None,
) -> UnitTensors:
    """What the ops take; with `topk` a list of columns per unit."""
    columns = space.columns
    if topk is not None:
        rows = torch.where(space.kinds >= 0, units.student_spans[:, 0], -1)
        columns = top_columns(logits[0].detach(), columns, rows, topk)
    return UnitTensors(
        student_logits=with_unit_stride(logits[0]),
        teacher_logits=with_unit_stride(logits[1].detach()),
        student_ids=ids[0],
        teacher_ids=ids[1],
        student_spans=units.student_spans,
        teacher_spans=units.teacher_spans,
        kinds=space.kinds,
        student_columns=columns.student,
        teacher_columns=columns.teacher,
        excluded=columns.excluded,
    )


def _check_labels(tensors: UnitTensors, options: UnitOptions) -> None:
    """Refuse labels out of range in compared units; elsewhere they may be anything."""
    for name, side in zip(("student_ids", "teacher_ids"), sides(tensors, options), strict=True):
        if tensors.kinds.shape[0]:
            units = side.units
            is_used = (units >= 0) & (tensors.kinds >= 0)[units.clamp(min=0)]
            values.check_ids(_NAME, name, side.ids, low=0, high=side.vocab_size, counted=is_used)


class _Measured(NamedTuple):
    """Values of the units, and what else was asked for: (U,) float64 each, or None."""

    values: UnitValues
    teacher_mass: Tensor | None
    student_log_probs: Tensor | None
    teacher_log_probs: Tensor | None


def _measure(
    tensors: UnitTensors, options: UnitOptions, steps: Tensor, min_teacher_mass: float | None
) -> _Measured:
    """Run the forward op, and leave out units of too little teacher mass."""
    outputs = UnitOpOutputs(*_FORWARD(*tensors, *options))
    student, teacher = sides(tensors, options)
    unit_kl, mass, log_p, log_q = outputs.unit_kl, None, None, None
    if options.measures_teacher:
        log_q = path_log_probs(teacher, tensors.kinds, outputs.teacher_lse, options.temperature)
    if min_teacher_mass is not None and log_q is not None:
        mass = teacher_mass(
            outputs.unit_state[:, RowState.TEACHER_LSE],
            outputs.span_scores[:, 1],
            log_q,
            teacher,
            outputs.teacher_lse,
            options.temperature,
        )
        mass = torch.where(steps >= 0, mass, 0.0)
        steps = torch.where(mass >= min_teacher_mass, steps, -1)
        unit_kl = torch.where(steps >= 0, unit_kl, 0.0)
    distance = unit_kl
    if options.measures_student and log_q is not None:
        log_p = path_log_probs(student, tensors.kinds, outputs.student_lse, options.temperature)
        distance = (log_p - log_q).abs()
    else:
        log_q = None
    return _Measured(UnitValues(unit_kl, outputs.unit_entropy, distance, steps), mass, log_p, log_q)


def _output(result: StepResult, measured: _Measured, options: UnitOptions) -> UnitKLOutput:
    unit_kl = measured.values.unit_kl

    def reported(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(unit_kl.dtype)

    return UnitKLOutput(
        loss=result.loss,
        unit_kl=unit_kl,
        unit_entropy=measured.values.entropy,
        unit_steps=measured.values.steps,
        step_divergence=result.divergence,
        step_weights=result.weights,
        step_tokens=result.tokens,
        step_units=result.units,
        unit_teacher_mass=reported(measured.teacher_mass),
        unit_student_log_probs=reported(measured.student_log_probs),
        unit_teacher_log_probs=reported(measured.teacher_log_probs),
        backend=options.backend,
    )
