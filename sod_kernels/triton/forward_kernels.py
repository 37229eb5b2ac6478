"""The forward sweeps over the logits of student, teacher and reference.

Memory walks: reverse KL and forward KL without a floor read every logit once (first sweep). A floor and the
Jensen-Shannon divergence need the log-sum-exps before the first term, so they read their logits twice.
Between the kernels go three numbers per side and program, and nothing of size rows times vocabulary is built.

Programs of one row have adjacent ids, and the second sweep takes the rows in the opposite order of the first:
what the first read last is still in the second-level cache when the second starts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    absorb_student,
    absorb_target,
    difference_terms,
    finite_base,
    join_parameter,
    lane_sum,
    load_columns,
    load_student,
    load_target,
    log2_of_mass,
    measure_block,
    merge_student,
    merge_target,
    mixture_log_ratios,
    row_start,
    store_side,
)


@triton.jit
def absorb_round(
    max_s, sum_s, sum_h, max_t, sum_t, sum_u, max_r, sum_r, sum_v,
    student_row, teacher_row, reference_row, offs_v, scale,
    MEASURE: tl.constexpr, REFERENCE_MEASURE: tl.constexpr,
    VOCAB: tl.constexpr, MASKED: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Read one block of each side and add it to the states of the lanes."""
    dtype: tl.constexpr = scale.dtype
    student = load_columns(student_row, offs_v, dtype, VOCAB, MASKED)
    if teacher_row is not None:
        teacher = load_columns(teacher_row, offs_v, dtype, VOCAB, MASKED)
    if reference_row is not None:
        reference = load_columns(reference_row, offs_v, dtype, VOCAB, MASKED)
    max_s, shift_s, bits_s, exp_s = measure_block(max_s, student, scale, LANES, VECTOR)
    if teacher_row is not None:
        max_t, sum_t, sum_u = absorb_target(
            max_t, sum_t, sum_u, teacher, sum_s, shift_s, bits_s, exp_s, scale, MEASURE, LANES, VECTOR
        )
    if reference_row is not None:
        max_r, sum_r, sum_v = absorb_target(
            max_r, sum_r, sum_v, reference, sum_s, shift_s, bits_s, exp_s, scale, REFERENCE_MEASURE, LANES,
            VECTOR,
        )  # fmt: skip
    sum_s, sum_h = absorb_student(sum_s, sum_h, shift_s, bits_s, exp_s, LANES, VECTOR)
    return max_s, sum_s, sum_h, max_t, sum_t, sum_u, max_r, sum_r, sum_v


@triton.jit(do_not_specialize=["rows_per_batch"])
def first_sweep_kernel(
    student_ptr,
    teacher_ptr,
    reference_ptr,
    step_ids_ptr,
    state_ptr,
    rows_per_batch,
    stride_student_b,
    stride_student_t,
    stride_teacher_b,
    stride_teacher_t,
    stride_reference_b,
    stride_reference_t,
    inverse_temperature_high,
    inverse_temperature_low,
    MEASURE: tl.constexpr,
    REFERENCE_MEASURE: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Online softmax states over this program's share of one row: of the student, and of targets if given.

    Computes: maxima, exponential sums, the entropy sum and (MEASURE, REFERENCE_MEASURE) the re-based
    difference sums, in one walk over the valid columns. Saves: three numbers per side and program in state
    (rows, sides, 3, SPLITS). Never builds: probabilities, log-probabilities, or anything as long as the
    vocabulary. Each lane keeps a state of its own, so the loop has no reduction across threads and no
    barrier; the lanes are merged once, at the end. Rows in no step are left at the first line, unread and
    unwritten.
    """
    program = tl.program_id(0)
    row = program // SPLITS
    split = program % SPLITS
    if tl.load(step_ids_ptr + row) < 0:
        return
    SIDES: tl.constexpr = 1 + (teacher_ptr is not None) + (reference_ptr is not None)
    dtype: tl.constexpr = state_ptr.dtype.element_ty
    scale = (join_parameter(inverse_temperature_high, inverse_temperature_low) * LOG2E).to(dtype)
    student_row = row_start(student_ptr, row, rows_per_batch, stride_student_b, stride_student_t)
    teacher_row = row_start(teacher_ptr, row, rows_per_batch, stride_teacher_b, stride_teacher_t)
    reference_row = row_start(reference_ptr, row, rows_per_batch, stride_reference_b, stride_reference_t)

    offs_block = tl.arange(0, BLOCK)
    nothing = tl.full((LANES,), float("-inf"), dtype)
    zeros = tl.zeros((LANES,), dtype)
    max_s, sum_s, sum_h = nothing, zeros, zeros
    max_t, sum_t, sum_u = nothing, zeros, zeros
    max_r, sum_r, sum_v = nothing, zeros, zeros
    # The programs of a row take blocks in turn. The rounds in which every program has a full block need no
    # mask, which keeps the loads 128 bits wide whatever the vocabulary; one masked round takes the rest.
    FULL_ROUNDS: tl.constexpr = VOCAB // (BLOCK * SPLITS)
    ROUNDS: tl.constexpr = (VOCAB + BLOCK * SPLITS - 1) // (BLOCK * SPLITS)
    for masked in tl.static_range(2):
        for i in range(FULL_ROUNDS if masked else 0, ROUNDS if masked else FULL_ROUNDS):
            offs_v = (i * SPLITS + split) * BLOCK + offs_block
            max_s, sum_s, sum_h, max_t, sum_t, sum_u, max_r, sum_r, sum_v = absorb_round(
                max_s, sum_s, sum_h, max_t, sum_t, sum_u, max_r, sum_r, sum_v, student_row, teacher_row,
                reference_row, offs_v, scale, MEASURE, REFERENCE_MEASURE, VOCAB, masked, LANES, VECTOR,
            )  # fmt: skip

    top_s, total_s, total_h = merge_student(max_s, sum_s, sum_h, scale)
    store_side(state_ptr, row, split, top_s, total_s, total_h, 0, SIDES, SPLITS)
    if teacher_ptr is not None:
        top_t, total_t, total_u = merge_target(max_t, sum_t, sum_u, max_s, sum_s, scale, MEASURE)
        store_side(state_ptr, row, split, top_t, total_t, total_u, 1, SIDES, SPLITS)
    if reference_ptr is not None:
        top_r, total_r, total_v = merge_target(max_r, sum_r, sum_v, max_s, sum_s, scale, REFERENCE_MEASURE)
        store_side(state_ptr, row, split, top_r, total_r, total_v, 2, SIDES, SPLITS)


@triton.jit
def floored_terms(exp_s, bits_s, bits_t, least_t):
    """Terms of KL(student || target) under a floor of the target's log-probabilities, in bits."""
    return difference_terms(exp_s, bits_s, tl.maximum(bits_t, least_t), bits_s == float("-inf"))


@triton.jit
def second_sweep_terms(bits_s, bits_t, exp_s, least_s, least_t, log2_gap, beta, DIVERGENCE: tl.constexpr):
    """Per column: the term of the divergence, and the term of AUX where it is a sum of its own.

    Weighted with 2^bits, relative to the row's maximum. Of Jensen-Shannon they are the teacher's part of the
    divergence and the student's.
    """
    exp_t = tl.exp2(bits_t)
    none_s = bits_s == float("-inf")
    none_t = bits_t == float("-inf")
    if DIVERGENCE == "reverse_kl":
        terms = floored_terms(exp_s, bits_s, bits_t, least_t)
        aux_terms = tl.zeros_like(terms)
    elif DIVERGENCE == "forward_kl":
        terms = difference_terms(exp_t, bits_t, tl.maximum(bits_s, least_s), none_t)
        aux_terms = tl.where(bits_s > least_s, exp_t, 0.0)
    else:
        neither = none_s | none_t
        difference = tl.where(neither, 0.0, bits_t) - tl.where(neither, 0.0, bits_s)
        log_ratio = (difference - log2_gap) * LN2
        log_pm, log_qm = mixture_log_ratios(log_ratio, none_s, none_t, beta)
        aux_terms = exp_s * log_pm
        terms = exp_t * log_qm
    return terms, aux_terms


@triton.jit(do_not_specialize=["rows_per_batch"])
def second_sweep_kernel(
    student_ptr,
    teacher_ptr,
    reference_ptr,
    step_ids_ptr,
    state_ptr,
    partial_ptr,
    rows_per_batch,
    stride_student_b,
    stride_student_t,
    stride_teacher_b,
    stride_teacher_t,
    stride_reference_b,
    stride_reference_t,
    inverse_temperature_high,
    inverse_temperature_low,
    beta_high,
    beta_low,
    floor_high,
    floor_low,
    DIVERGENCE: tl.constexpr,
    SIDES: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Sums of what needs the log-sum-exps first: floored KLs, of the reference too, and Jensen-Shannon.

    Computes: the divergence sum, the AUX sum and, with a reference, its KL sum over this program's share of
    one row, in one walk over the valid columns, after joining the row's states of the first sweep. Saves:
    three numbers per program in partial (rows, 3, SPLITS). Never builds: probabilities or the mixture beyond
    one block. Rows in no step are left unread and unwritten. Without a floor a reference is not read again.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    row = program // SPLITS
    split = program % SPLITS
    if tl.load(step_ids_ptr + row) < 0:
        return
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    exact_scale = join_parameter(inverse_temperature_high, inverse_temperature_low) * LOG2E
    scale = exact_scale.to(dtype)
    beta = join_parameter(beta_high, beta_low).to(dtype)
    floor = join_parameter(floor_high, floor_low) * LOG2E
    max_s, sum_s, _ = load_student(state_ptr, row, exact_scale, SIDES, SPLITS)
    max_t, sum_t, _ = load_target(state_ptr, row, exact_scale, 1, "none", SIDES, SPLITS)
    base_s = finite_base(max_s).to(dtype)
    base_t = finite_base(max_t).to(dtype)
    log2_s = log2_of_mass(sum_s)
    log2_t = log2_of_mass(sum_t)
    log2_gap = (log2_t - log2_s).to(dtype)
    least_s = (floor + log2_s).to(dtype)
    least_t = (floor + log2_t).to(dtype)
    student_row = row_start(student_ptr, row, rows_per_batch, stride_student_b, stride_student_t)
    teacher_row = row_start(teacher_ptr, row, rows_per_batch, stride_teacher_b, stride_teacher_t)
    reference_row = row_start(reference_ptr, row, rows_per_batch, stride_reference_b, stride_reference_t)
    if reference_ptr is not None:
        max_r, sum_r, _ = load_target(state_ptr, row, exact_scale, 2, "none", SIDES, SPLITS)
        base_r = finite_base(max_r).to(dtype)
        least_r = (floor + log2_of_mass(sum_r)).to(dtype)

    offs_block = tl.arange(0, BLOCK)
    value = tl.zeros((LANES,), dtype)
    aux = tl.zeros((LANES,), dtype)
    reference_value = tl.zeros((LANES,), dtype)
    FULL_ROUNDS: tl.constexpr = VOCAB // (BLOCK * SPLITS)
    ROUNDS: tl.constexpr = (VOCAB + BLOCK * SPLITS - 1) // (BLOCK * SPLITS)
    for masked in tl.static_range(2):
        for i in range(FULL_ROUNDS if masked else 0, ROUNDS if masked else FULL_ROUNDS):
            offs_v = (i * SPLITS + split) * BLOCK + offs_block
            student = load_columns(student_row, offs_v, dtype, VOCAB, masked)
            teacher = load_columns(teacher_row, offs_v, dtype, VOCAB, masked)
            bits_s = (student - base_s) * scale
            bits_t = (teacher - base_t) * scale
            exp_s = tl.exp2(bits_s)
            terms, aux_terms = second_sweep_terms(
                bits_s, bits_t, exp_s, least_s, least_t, log2_gap, beta, DIVERGENCE
            )
            value += lane_sum(terms, LANES, VECTOR)
            aux += lane_sum(aux_terms, LANES, VECTOR)
            if reference_ptr is not None:
                reference = load_columns(reference_row, offs_v, dtype, VOCAB, masked)
                bits_r = (reference - base_r) * scale
                reference_value += lane_sum(floored_terms(exp_s, bits_s, bits_r, least_r), LANES, VECTOR)

    partial = partial_ptr + row.to(tl.int64) * (3 * SPLITS) + split
    tl.store(partial, tl.sum(value, axis=0))
    tl.store(partial + SPLITS, tl.sum(aux, axis=0))
    tl.store(partial + 2 * SPLITS, tl.sum(reference_value, axis=0))
