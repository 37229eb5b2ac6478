"""`unit_kl`: student and teacher with different tokenisers. Check, score, dispatch, weigh, reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels import _dispatch, _unit_ops
from sod_kernels._checks import unit_kl as checks
from sod_kernels._layout import with_unit_stride
from sod_kernels._unit_scores import UnitOptions, UnitTensors
from sod_kernels._unit_space import Columns, top_columns
from sod_kernels.functional.options import Options, Weighting
from sod_kernels.functional.unit_batch import Labels, UnitBatch, UnitChoice, resolve_units
from sod_kernels.functional.unit_output import finish_units, read_units
from sod_kernels.unit_types import UnitKLOutput, UnitOpOutputs
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
    weighting: Weighting = None,
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
    student_size = checks.check_side(_NAME, "student", student_logits, student_ids, student_vocab_size, None)
    teacher_size = checks.check_side(
        _NAME, "teacher", teacher_logits, teacher_ids, teacher_vocab_size, student_logits
    )
    batch = resolve_units(
        options,
        choice,
        units,
        vocab_map,
        (Labels(student_ids, student_size), Labels(teacher_ids, teacher_size)),
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
    )
    name = _resolve(backend, student_logits)
    outputs = _run((student_logits, teacher_logits), batch, options, choice, name)
    return finish_units(options, read_units(outputs, batch, min_teacher_mass), batch, name)


def _resolve(backend: str, student_logits: Tensor) -> str:
    device_type = student_logits.device.type
    name = _dispatch.resolve(backend, device_type, student_logits.dtype, function=_NAME)
    if name == "native" and device_type != "cpu":
        raise _dispatch.BackendUnavailableError(
            f"{_NAME}: backend 'native' has no unit kernels for {device_type}, only for the CPU. Use "
            "backend='triton' or 'auto'."
        )
    return name


def _run(
    logits: tuple[Tensor, Tensor], batch: UnitBatch, options: Options, choice: UnitChoice, backend: str
) -> UnitOpOutputs:
    """Run the forward op."""
    spec = options.spec(1)
    student, teacher = batch.student, batch.teacher
    columns = _columns(logits[0], batch, choice.topk)
    tensors = UnitTensors(
        student_logits=with_unit_stride(logits[0]),
        teacher_logits=with_unit_stride(logits[1].detach()),
        student_ids=student.ids,
        teacher_ids=teacher.ids,
        student_spans=student.spans,
        teacher_spans=teacher.spans,
        kinds=batch.space.kinds,
        student_columns=columns.student,
        teacher_columns=columns.teacher,
        excluded=columns.excluded,
    )
    numbers = UnitOptions(
        score=choice.score,
        measures_student=batch.measures_student,
        measures_teacher=batch.measures_teacher,
        student_vocab_size=student.vocab_size,
        teacher_vocab_size=teacher.vocab_size,
        divergence=spec.divergence,
        beta=float(spec.beta),
        temperature=batch.temperature,
        backend=backend,
    )
    return UnitOpOutputs(*_FORWARD(*tensors, *numbers))


def _columns(student_logits: Tensor, batch: UnitBatch, topk: int | None) -> Columns:
    """One list of columns for all units; with `topk` one per unit."""
    space = batch.space
    if topk is None:
        return space.columns
    rows = torch.where(space.kinds >= 0, batch.student.spans[:, 0], -1)
    return top_columns(student_logits.detach(), space.columns, rows, topk)
