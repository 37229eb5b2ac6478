"""`linear_unit_kl`: student and teacher with different tokenisers, from hidden states and output heads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sod_kernels import _reduction
from sod_kernels._checks import hidden as head_checks
from sod_kernels._checks import unit_kl as checks
from sod_kernels._checks import weightings
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.functional.unit_batch import Labels, UnitBatch, UnitChoice, resolve_units
from sod_kernels.functional.unit_output import count_tokens, finish_units, read_units, unit_weights
from sod_kernels.linear import unit_ops
from sod_kernels.linear.heads import Head
from sod_kernels.linear.modes import optional_float
from sod_kernels.linear.unit_ops import UnitLossOutputs, UnitObjective
from sod_kernels.linear.units import LinearUnitOptions, LinearUnitTensors
from sod_kernels.types import StepStatistics
from sod_kernels.unit_types import UnitKLOutput, UnitOpOutputs
from sod_kernels.units import Units, VocabMap
from sod_kernels.weighting import SodWeighting

_NAME = "linear_unit_kl"


def linear_unit_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    units: Units,
    vocab_map: VocabMap,
    *,
    student_ids: Tensor,
    teacher_ids: Tensor,
    step_ids: Tensor | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    single_sweep: bool = True,
    chunk_size: int | None = None,
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
    weighting: Weighting = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> UnitKLOutput:
    r"""Compute `unit_kl` from hidden states and output heads, without holding the logits of the batch.

    With :math:`z = \mathrm{cap}(\mathrm{scale} \cdot h W^T + b)` of either model as in `linear_step_kl`, and
    everything else as in `unit_kl`. What is multiplied:

    - the first row of each compared unit, on either side, with the C shared rows of the head, which are
      selected once;
    - the rows of spans of several tokens with the whole head, on the side that has several, and only with
      ``score="log_prob"``, whose normalisers they are; all rows of compared units with
      ``step_divergence="abs_log_ratio"`` and, the teacher's, with `min_teacher_mass`;
    - each row of a span with the one row of the head that is its own token's.

    Rows are walked in chunks as in `linear_step_kl`. In a *single sweep* the gradients of the units are made
    on the way, for step weights that are known by then: None, a tensor, or `SodWeighting` on divergences. Any
    other weighting, and `min_teacher_mass`, cost a second multiplication of the heads. Rows of spans are
    always multiplied again for their gradient.

    Args:
        student_hidden: (N, H) packed; float64, float32, bfloat16 or float16. Row i makes the logits that
            score `student_ids[i]`.
        student_weight: (V, H) as in `torch.nn.Linear`, of the same dtype. A gradient is computed for each of
            hidden states, weight and bias only if that one requires it.
        teacher_hidden: (M, H of the teacher), on the same device; hidden size and dtype are its own.
        teacher_weight: (V of the teacher, its H).
        units: As in `unit_kl`; where the hidden states are, like the map and all ids. The chunks are planned
            on the host, which waits for the device.
        vocab_map: As in `unit_kl`.
        student_ids: As in `unit_kl`.
        teacher_ids: As in `unit_kl`.
        step_ids: As in `unit_kl`.
        student_bias: (V,) or None.
        teacher_bias: (V of the teacher,) or None.
        student_logit_scale: Factor of the product, above 0.
        teacher_logit_scale: Factor of the product, above 0.
        student_softcap: Bound of the logits, above 0, or None.
        teacher_softcap: Bound of the logits, above 0, or None.
        single_sweep: Whether the loss alone is differentiable, in a single sweep where one is possible.
            False: `loss` and `unit_kl` are, with any upstream gradient; a second sweep multiplies again.
        chunk_size: Most rows that are multiplied together, as in `linear_step_kl`.
        score: As in `unit_kl`.
        divergence: As in `step_kl`.
        beta: As in `step_kl`.
        temperature: Divides all logits, above 0.
        unit_filter: As in `unit_kl`.
        topk: As in `unit_kl`. All shared rows of both heads are multiplied nonetheless.
        mask_first_token: As in `unit_kl`.
        min_teacher_mass: As in `unit_kl`.
        student_vocab_size: Valid rows of the student's head; those beyond get zero gradient. None: all.
        teacher_vocab_size: Valid rows of the teacher's.
        response_mask: As in `unit_kl`.
        step_trajectory: As in `unit_kl`.
        num_steps: As in `unit_kl`.
        step_divergence: As in `unit_kl`.
        weighting: As in `unit_kl`, see above.
        token_weights: As in `unit_kl`.
        reduction: As in `unit_kl`; "none" only without a single sweep.
        denominator: As in `unit_kl`.
        backend: As in `step_kl`: what runs on the chunks' logits.

    Returns:
        As of `unit_kl`; in a single sweep everything but `loss` is detached.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        SimCT, arXiv 2605.07711, equations (6) to (9); what is multiplied is derived in docs/math.md.
    """
    options = Options(
        function=_NAME,
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        min_log_prob=None,
        step_divergence=step_divergence,
        weighting=weighting,
        token_weights=token_weights,
        reduction=reduction,
        denominator=denominator,
        backend=backend,
    )
    choice = UnitChoice(
        score=score,
        unit_filter=unit_filter,
        topk=topk,
        mask_first_token=mask_first_token,
        min_teacher_mass=min_teacher_mass,
    )
    head_checks.check_mode(_NAME, single_sweep, reduction, chunk_size)
    student = Head(student_hidden, student_weight, student_bias, student_logit_scale, student_softcap)
    teacher = Head(teacher_hidden, teacher_weight, teacher_bias, teacher_logit_scale, teacher_softcap)
    labels = (
        Labels(
            student_ids, checks.check_head_side(_NAME, "student", student, student_ids, student_vocab_size)
        ),
        Labels(
            teacher_ids,
            checks.check_head_side(
                _NAME, "teacher", teacher, teacher_ids, teacher_vocab_size, like=student_hidden
            ),
        ),
    )
    checks.check_may_plan_units(_NAME, student_ids)
    batch = resolve_units(
        options,
        choice,
        units,
        vocab_map,
        labels,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
    )
    tensors = _tensors(student, teacher, batch)
    numbers = _numbers(options, choice, batch, tensors, (student, teacher), chunk_size)
    if single_sweep and min_teacher_mass is None and _is_known_in_time(weighting, step_divergence):
        return _run_single(options, batch, tensors, numbers)
    outputs = UnitOpOutputs(*unit_ops.linear_unit_kl_forward(*tensors, *numbers))
    out = finish_units(options, read_units(outputs, batch, min_teacher_mass), batch, numbers.backend)
    return replace(out, unit_kl=out.unit_kl.detach()) if single_sweep else out


def _is_known_in_time(weighting: Weighting, step_divergence: str) -> bool:
    """Whether a step's weight is known as soon as the walk has passed its units."""
    is_causal = type(weighting) is SodWeighting and step_divergence == "kl"
    return weighting is None or isinstance(weighting, Tensor) or is_causal


def _tensors(student: Head, teacher: Head, batch: UnitBatch) -> LinearUnitTensors:
    columns = batch.space.columns
    return LinearUnitTensors(
        student_hidden=student.hidden,
        student_weight=student.weight,
        student_bias=student.bias,
        teacher_hidden=teacher.hidden.detach(),
        teacher_weight=teacher.weight.detach(),
        teacher_bias=None if teacher.bias is None else teacher.bias.detach(),
        student_ids=batch.student.ids,
        teacher_ids=batch.teacher.ids,
        student_spans=batch.student.spans,
        teacher_spans=batch.teacher.spans,
        kinds=batch.space.kinds,
        steps=batch.space.steps,
        student_columns=columns.student[0].long(),
        teacher_columns=columns.teacher[0].long(),
        excluded=columns.excluded,
    )


def _numbers(
    options: Options,
    choice: UnitChoice,
    batch: UnitBatch,
    tensors: LinearUnitTensors,
    heads: tuple[Head, Head],
    chunk_size: int | None,
) -> LinearUnitOptions:
    spec = options.spec(1)
    student, teacher = heads
    return LinearUnitOptions(
        num_steps=batch.layout.num_steps,
        score=choice.score,
        measures_student=batch.measures_student,
        measures_teacher=batch.measures_teacher,
        student_vocab_size=batch.student.vocab_size,
        teacher_vocab_size=batch.teacher.vocab_size,
        student_scale=float(student.scale),
        teacher_scale=float(teacher.scale),
        student_softcap=optional_float(student.softcap),
        teacher_softcap=optional_float(teacher.softcap),
        divergence=spec.divergence,
        beta=float(spec.beta),
        temperature=batch.temperature,
        topk=choice.topk or 0,
        chunk_size=chunk_size or 0,
        backend=options.resolve_backend(tensors.student_hidden, tensors.dtype),
        function=_NAME,
    )


def _run_single(
    options: Options, batch: UnitBatch, tensors: LinearUnitTensors, numbers: LinearUnitOptions
) -> UnitKLOutput:
    """Make loss and gradients in one op; everything else of its outputs is detached."""
    weighting, layout = options.weighting, batch.layout
    nothing = torch.zeros(layout.num_steps, dtype=tensors.dtype, device=batch.student.ids.device)
    weights = weighting if isinstance(weighting, Tensor) else None
    if weights is not None:
        weightings.check_step_weights(_NAME, weights, nothing)
    sod = weighting if isinstance(weighting, SodWeighting) else None
    counted = StepStatistics(
        divergence=nothing,
        uncertainty=nothing,
        entropy=nothing,
        tokens=count_tokens(layout),
        trajectory=layout.trajectory,
    )
    inner, outer = _reduction.divisors(options.reduction, counted, options.denominator)
    per_unit = unit_weights(options.token_weights, batch.student)
    objective = UnitObjective(
        step_trajectory=layout.trajectory,
        step_weights=None if weights is None else weights.detach(),
        unit_factors=_reduction.token_factors(1.0 / inner, batch.space.steps, per_unit),
        denominator=outer.detach(),
        delta=None if sod is None else float(sod.delta),
        epsilon=None if sod is None else float(sod.epsilon),
    )
    wanted = (torch.is_grad_enabled() and each is not None and each.requires_grad for each in tensors[:3])
    outputs = UnitLossOutputs.named(unit_ops.linear_unit_kl_loss(*tensors, *numbers, *objective, *wanted))
    applied = replace(options, weighting=outputs.step_weights) if sod is not None else options
    out = finish_units(applied, read_units(outputs.units, batch, None), batch, numbers.backend)
    return replace(out, loss=outputs.loss)
