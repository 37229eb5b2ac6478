"""The kernels of `unit_kl`: the softmax states of `row_state` over gathered columns.

Memory walks: the forward sweep reads the shared columns of a unit's first row on either side once, and once
more for the Jensen-Shannon divergence; the lists of columns, four bytes each, stay in the second-level cache.
The gradient of whole rows is `backward_kernel` without a teacher, or zeros; `unit_columns_kernel` then reads
the shared columns once more and adds theirs. Nothing of size units times columns is built.

A unit's span column comes last: its score is known beforehand, and it joins the states where they are read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.backward_kernels import (
    AUX,
    DIVERGENCE_VALUE,
    STATE_COLUMNS,
    STUDENT_LSE,
    TEACHER_LSE,
    divergence_gradient,
    load_target_scalars,
    split_lse,
)
from sod_kernels.triton.finish_kernels import divergence_of_row, log_sum_exp
from sod_kernels.triton.forward_kernels import second_sweep_terms
from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    absorb_student,
    absorb_target,
    finite_base,
    join_parameter,
    lane_sum,
    load_student,
    load_target,
    log2_of_mass,
    measure_block,
    merge_student,
    merge_target,
    store_side,
)


@triton.jit
def gather_columns(logits_row, columns, offs_v, is_there, dtype: tl.constexpr):
    """Read listed columns of one row; those that do not take part come in as -inf and change no sum."""
    column = tl.load(columns + offs_v, mask=is_there, other=0)
    return tl.load(logits_row + column, mask=is_there, other=float("-inf")).to(dtype)


@triton.jit
def takes_part(offs_v, excluded_ptr, unit, COLUMNS: tl.constexpr):
    """Which positions of the list a unit compares."""
    first = tl.load(excluded_ptr + 2 * unit)
    second = tl.load(excluded_ptr + 2 * unit + 1)
    return (offs_v < COLUMNS) & (offs_v != first) & (offs_v != second)


@triton.jit
def join_span(max_s, sum_s, sum_h, max_t, sum_t, sum_u, span_scores_ptr, unit, scale, MEASURE: tl.constexpr):
    """Add the span column, -inf on both sides where there is none, to the joined states of a unit."""
    one = tl.zeros((1,), tl.float64)
    max_s, sum_s, sum_h = max_s + one, sum_s + one, sum_h + one
    max_t, sum_t, sum_u = max_t + one, sum_t + one, sum_u + one
    student = tl.load(span_scores_ptr + 2 * unit) + one
    teacher = tl.load(span_scores_ptr + 2 * unit + 1) + one
    max_s, shift_s, bits_s, exp_s = measure_block(max_s, student, scale, 1, 1)
    max_t, sum_t, sum_u = absorb_target(
        max_t, sum_t, sum_u, teacher, sum_s, shift_s, bits_s, exp_s, scale, MEASURE, 1, 1
    )
    sum_s, sum_h = absorb_student(sum_s, sum_h, shift_s, bits_s, exp_s, 1, 1)
    return (
        tl.max(max_s, axis=0), tl.sum(sum_s, axis=0), tl.sum(sum_h, axis=0),
        tl.max(max_t, axis=0), tl.sum(sum_t, axis=0), tl.sum(sum_u, axis=0),
    )  # fmt: skip


@triton.jit
def load_unit(state_ptr, span_scores_ptr, unit, scale, MEASURE: tl.constexpr, SPLITS: tl.constexpr):
    """Joined states of both sides over all programs of a unit and its span column."""
    max_s, sum_s, sum_h = load_student(state_ptr, unit, scale, 2, SPLITS)
    max_t, sum_t, sum_u = load_target(state_ptr, unit, scale, 1, MEASURE, 2, SPLITS)
    return join_span(
        max_s, sum_s, sum_h, max_t, sum_t, sum_u, span_scores_ptr, unit.to(tl.int64), scale, MEASURE
    )


@triton.jit(do_not_specialize=["list_stride"])
def unit_sweep_kernel(
    student_ptr,
    teacher_ptr,
    student_columns_ptr,
    teacher_columns_ptr,
    student_rows_ptr,
    teacher_rows_ptr,
    excluded_ptr,
    state_ptr,
    stride_student,
    stride_teacher,
    list_stride,
    inverse_temperature_high,
    inverse_temperature_low,
    MEASURE: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Online softmax states of both sides over this program's share of one unit's shared columns.

    Computes what `first_sweep_kernel` computes, of gathered columns. Saves: three numbers per side and
    program in state (units, 2, 3, SPLITS). Units that are not compared are left unread and unwritten.
    """
    program = tl.program_id(0)
    unit = (program // SPLITS).to(tl.int64)
    split = program % SPLITS
    row = tl.load(student_rows_ptr + unit)
    if row < 0:
        return
    dtype: tl.constexpr = state_ptr.dtype.element_ty
    scale = (join_parameter(inverse_temperature_high, inverse_temperature_low) * LOG2E).to(dtype)
    student_row = student_ptr + row * stride_student
    teacher_row = teacher_ptr + tl.load(teacher_rows_ptr + unit) * stride_teacher
    student_columns = student_columns_ptr + unit * list_stride
    teacher_columns = teacher_columns_ptr + unit * list_stride
    offs_block = tl.arange(0, BLOCK)
    nothing = tl.full((LANES,), float("-inf"), dtype)
    zeros = tl.zeros((LANES,), dtype)
    max_s, sum_s, sum_h = nothing, zeros, zeros
    max_t, sum_t, sum_u = nothing, zeros, zeros
    ROUNDS: tl.constexpr = (VOCAB + BLOCK * SPLITS - 1) // (BLOCK * SPLITS)
    for i in range(ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        is_there = takes_part(offs_v, excluded_ptr, unit, VOCAB)
        student = gather_columns(student_row, student_columns, offs_v, is_there, dtype)
        teacher = gather_columns(teacher_row, teacher_columns, offs_v, is_there, dtype)
        max_s, shift_s, bits_s, exp_s = measure_block(max_s, student, scale, LANES, VECTOR)
        max_t, sum_t, sum_u = absorb_target(
            max_t, sum_t, sum_u, teacher, sum_s, shift_s, bits_s, exp_s, scale, MEASURE, LANES, VECTOR
        )
        sum_s, sum_h = absorb_student(sum_s, sum_h, shift_s, bits_s, exp_s, LANES, VECTOR)
    top_s, total_s, total_h = merge_student(max_s, sum_s, sum_h, scale)
    store_side(state_ptr, unit, split, top_s, total_s, total_h, 0, 2, SPLITS)
    top_t, total_t, total_u = merge_target(max_t, sum_t, sum_u, max_s, sum_s, scale, MEASURE)
    store_side(state_ptr, unit, split, top_t, total_t, total_u, 1, 2, SPLITS)


@triton.jit(do_not_specialize=["list_stride"])
def unit_mixture_kernel(
    student_ptr,
    teacher_ptr,
    student_columns_ptr,
    teacher_columns_ptr,
    student_rows_ptr,
    teacher_rows_ptr,
    excluded_ptr,
    span_scores_ptr,
    state_ptr,
    partial_ptr,
    stride_student,
    stride_teacher,
    list_stride,
    inverse_temperature_high,
    inverse_temperature_low,
    beta_high,
    beta_low,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Sums of the Jensen-Shannon divergence, which needs the log-sum-exps of a unit first.

    Computes what `second_sweep_kernel` computes, of gathered columns; the first program of a unit adds the
    span column. Saves: two numbers per program in partial (units, 3, SPLITS).
    """
    program = tl.program_id(0)
    unit = (program // SPLITS).to(tl.int64)
    split = program % SPLITS
    row = tl.load(student_rows_ptr + unit)
    if row < 0:
        return
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    exact_scale = join_parameter(inverse_temperature_high, inverse_temperature_low) * LOG2E
    scale = exact_scale.to(dtype)
    beta = join_parameter(beta_high, beta_low).to(dtype)
    max_s, sum_s, _, max_t, sum_t, _ = load_unit(
        state_ptr, span_scores_ptr, unit, exact_scale, "none", SPLITS
    )
    base_s, base_t = finite_base(max_s), finite_base(max_t)
    log2_gap = (log2_of_mass(sum_t) - log2_of_mass(sum_s)).to(dtype)
    student_row = student_ptr + row * stride_student
    teacher_row = teacher_ptr + tl.load(teacher_rows_ptr + unit) * stride_teacher
    student_columns = student_columns_ptr + unit * list_stride
    teacher_columns = teacher_columns_ptr + unit * list_stride

    one = tl.zeros((1,), tl.float64)
    span_s = ((tl.load(span_scores_ptr + 2 * unit) + one - base_s) * exact_scale).to(dtype)
    span_t = ((tl.load(span_scores_ptr + 2 * unit + 1) + one - base_t) * exact_scale).to(dtype)
    zero = tl.zeros((), dtype)
    span_value, span_aux = second_sweep_terms(
        span_s, span_t, tl.exp2(span_s), zero, zero, log2_gap, beta, "jsd"
    )
    base_s, base_t = base_s.to(dtype), base_t.to(dtype)
    offs_block = tl.arange(0, BLOCK)
    value = tl.zeros((LANES,), dtype)
    aux = tl.zeros((LANES,), dtype)
    ROUNDS: tl.constexpr = (VOCAB + BLOCK * SPLITS - 1) // (BLOCK * SPLITS)
    for i in range(ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        is_there = takes_part(offs_v, excluded_ptr, unit, VOCAB)
        student = gather_columns(student_row, student_columns, offs_v, is_there, dtype)
        teacher = gather_columns(teacher_row, teacher_columns, offs_v, is_there, dtype)
        bits_s = (student - base_s) * scale
        bits_t = (teacher - base_t) * scale
        terms, aux_terms = second_sweep_terms(
            bits_s, bits_t, tl.exp2(bits_s), zero, zero, log2_gap, beta, "jsd"
        )
        value += lane_sum(terms, LANES, VECTOR)
        aux += lane_sum(aux_terms, LANES, VECTOR)
    is_first = split == 0
    partial = partial_ptr + unit * (3 * SPLITS) + split
    tl.store(partial, tl.sum(value, axis=0) + tl.where(is_first, tl.sum(span_value, axis=0), 0.0))
    tl.store(partial + SPLITS, tl.sum(aux, axis=0) + tl.where(is_first, tl.sum(span_aux, axis=0), 0.0))


@triton.jit
def finish_units_kernel(
    student_rows_ptr,
    span_scores_ptr,
    state_ptr,
    partial_ptr,
    unit_kl_ptr,
    student_entropy_ptr,
    row_state_ptr,
    inverse_temperature_high,
    inverse_temperature_low,
    beta_high,
    beta_low,
    DIVERGENCE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Divergence, entropy and state (units, 7) of one unit, in float64.

    Walks over no row: it reads the programs' states and sums and the span column's scores. Units that are not
    compared get exact zeros.
    """
    unit = tl.program_id(0).to(tl.int64)
    state_row = row_state_ptr + unit * STATE_COLUMNS
    if tl.load(student_rows_ptr + unit) < 0:
        offs = tl.arange(0, 8)
        tl.store(state_row + offs, tl.zeros((8,), tl.float64), mask=offs < STATE_COLUMNS)
        tl.store(unit_kl_ptr + unit, 0.0)
        tl.store(student_entropy_ptr + unit, 0.0)
        return
    inverse_temperature = join_parameter(inverse_temperature_high, inverse_temperature_low)
    scale = inverse_temperature * LOG2E
    MEASURE: tl.constexpr = "none" if partial_ptr is not None else DIVERGENCE
    max_s, sum_s, sum_h, max_t, sum_t, sum_u = load_unit(
        state_ptr, span_scores_ptr, unit, scale, MEASURE, SPLITS
    )
    log2_s, log2_t = log2_of_mass(sum_s), log2_of_mass(sum_t)
    beta = join_parameter(beta_high, beta_low)
    value, aux = divergence_of_row(
        partial_ptr, unit, sum_s, sum_t, sum_u, log2_s, log2_t, beta, DIVERGENCE, SPLITS
    )
    entropy = (log2_s - sum_h / tl.where(sum_s == 0.0, 1.0, sum_s)) * LN2
    tl.store(state_row, log_sum_exp(max_s, sum_s, log2_s, inverse_temperature))
    tl.store(state_row + 1, entropy)
    tl.store(state_row + 2, log_sum_exp(max_t, sum_t, log2_t, inverse_temperature))
    tl.store(state_row + 3, value)
    tl.store(state_row + 4, aux)
    # No reference.
    tl.store(state_row + 5, 0.0)
    tl.store(state_row + 6, 0.0)
    # A comparison, not a maximum: NaN has to stay NaN.
    tl.store(unit_kl_ptr + unit, tl.where(value < 0.0, 0.0, value))
    tl.store(student_entropy_ptr + unit, entropy)


@triton.jit(do_not_specialize=["list_stride"])
def unit_columns_kernel(
    grad_logits_ptr,
    student_ptr,
    teacher_ptr,
    student_columns_ptr,
    teacher_columns_ptr,
    student_rows_ptr,
    teacher_rows_ptr,
    excluded_ptr,
    row_state_ptr,
    grad_unit_kl_ptr,
    dense_ptr,
    stride_student,
    stride_teacher,
    list_stride,
    inverse_temperature_high,
    inverse_temperature_low,
    beta_high,
    beta_low,
    DIVERGENCE: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Add the gradient of one unit's shared columns to that of its first student row.

    Reads the columns of both sides once and writes them once; reads the gradient back only where the row has
    a dense term. Rows of different units and columns of one list are distinct, so no two programs or threads
    ever touch the same entry.
    """
    program = tl.program_id(0)
    unit = (program // SPLITS).to(tl.int64)
    split = program % SPLITS
    row = tl.load(student_rows_ptr + unit)
    if row < 0:
        return
    dtype: tl.constexpr = grad_unit_kl_ptr.dtype.element_ty
    grad_dtype: tl.constexpr = grad_logits_ptr.dtype.element_ty
    exact_inverse = join_parameter(inverse_temperature_high, inverse_temperature_low)
    scale = (exact_inverse * LOG2E).to(dtype)
    beta = join_parameter(beta_high, beta_low).to(dtype)
    state_row = row_state_ptr + unit * STATE_COLUMNS
    grad_kl, exact_aux, base_t, rest_t = load_target_scalars(
        state_row, TEACHER_LSE, DIVERGENCE_VALUE, AUX, grad_unit_kl_ptr, unit, exact_inverse, dtype
    )
    if grad_kl == 0.0:
        return
    base_s, rest_s = split_lse(tl.load(state_row + STUDENT_LSE), exact_inverse, dtype)
    mass_s, mass_t = tl.exp(-rest_s).to(dtype), tl.exp(-rest_t).to(dtype)
    mean_t = exact_aux if DIVERGENCE == "reverse_kl" else tl.zeros_like(exact_aux)
    centre, aux = (mean_t + rest_s - rest_t).to(dtype), exact_aux.to(dtype)
    rest_s, no_floor = rest_s.to(dtype), tl.zeros_like(aux)
    factor = grad_kl * exact_inverse.to(dtype)
    # Without a dense term there is nothing to read back.
    num_written = tl.where(tl.load(dense_ptr + row) != 0.0, VOCAB, 0)
    student_row = student_ptr + row * stride_student
    teacher_row = teacher_ptr + tl.load(teacher_rows_ptr + unit) * stride_teacher
    grad_row = grad_logits_ptr + row * WIDTH
    student_columns = student_columns_ptr + unit * list_stride
    teacher_columns = teacher_columns_ptr + unit * list_stride
    offs_block = tl.arange(0, BLOCK)
    ROUNDS: tl.constexpr = (VOCAB + BLOCK * SPLITS - 1) // (BLOCK * SPLITS)
    for i in range(ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        is_there = takes_part(offs_v, excluded_ptr, unit, VOCAB)
        column = tl.load(student_columns + offs_v, mask=is_there, other=0)
        student = tl.load(student_row + column, mask=is_there, other=float("-inf")).to(dtype)
        teacher = gather_columns(teacher_row, teacher_columns, offs_v, is_there, dtype)
        bits_s = (student - base_s) * scale
        bits_t = (teacher - base_t) * scale
        prob_s = tl.exp2(bits_s) * mass_s
        log_p = tl.where(bits_s == float("-inf"), 0.0, bits_s) * LN2 - rest_s
        gradient = factor * divergence_gradient(
            prob_s,
            bits_s,
            bits_t,
            log_p,
            rest_s,
            centre,
            no_floor,
            mass_t,
            aux,
            beta,
            no_floor,
            DIVERGENCE,
            False,
        )
        before = tl.load(grad_row + column, mask=is_there & (offs_v < num_written), other=0.0).to(dtype)
        tl.store(grad_row + column, (before + gradient).to(grad_dtype), mask=is_there)
