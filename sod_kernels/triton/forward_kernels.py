"""The forward sweeps over student and teacher logits, and the small kernel that finishes a row.

Memory walks: reverse KL and forward KL without a floor read both logits once (first sweep). A floor and the
Jensen-Shannon divergence need both log-sum-exps before the first term, so they read both logits twice.
Between the kernels go six or two numbers per program; nothing of size rows times vocabulary is ever built.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    absorb_block,
    difference_terms,
    finite_base,
    join_parameter,
    lane_sum,
    load_row_state,
    merge_states,
    mixture_log_ratios,
    row_offset,
)


@triton.jit(do_not_specialize=["rows_per_batch"])
def first_sweep_kernel(
    student_ptr,
    teacher_ptr,
    step_ids_ptr,
    state_ptr,
    rows_per_batch,
    stride_student_b,
    stride_student_t,
    stride_teacher_b,
    stride_teacher_t,
    inverse_temperature_high,
    inverse_temperature_low,
    MEASURE: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Online softmax state of both logits over this program's share of one row.

    Computes: maxima, exponential sums, the entropy sum and (MEASURE) the re-based difference sum, in one
    walk over the valid columns of both rows. Saves: six numbers per program in state (rows, 6, SPLITS).
    Never builds: probabilities, log-probabilities, or anything as long as the vocabulary. Each lane keeps a
    state of its own, so the loop has no reduction across threads and no barrier; the lanes are merged once,
    at the end. Rows in no step are left at the first line, unread and unwritten.
    """
    program = tl.program_id(0)
    row = program // SPLITS
    split = program % SPLITS
    if tl.load(step_ids_ptr + row) < 0:
        return
    dtype: tl.constexpr = state_ptr.dtype.element_ty
    scale = (join_parameter(inverse_temperature_high, inverse_temperature_low) * LOG2E).to(dtype)
    student_row = student_ptr + row_offset(row, rows_per_batch, stride_student_b, stride_student_t)
    teacher_row = teacher_ptr + row_offset(row, rows_per_batch, stride_teacher_b, stride_teacher_t)

    offs_block = tl.arange(0, BLOCK)
    max_s = tl.full((LANES,), float("-inf"), dtype)
    max_t = tl.full((LANES,), float("-inf"), dtype)
    sum_s = tl.zeros((LANES,), dtype)
    sum_t = tl.zeros((LANES,), dtype)
    sum_h = tl.zeros((LANES,), dtype)
    sum_u = tl.zeros((LANES,), dtype)
    # The programs of a row take blocks in turn. The rounds in which every program has a full block need no
    # mask, which keeps the loads 128 bits wide whatever the vocabulary; one masked round takes the rest.
    FULL_ROUNDS: tl.constexpr = VOCAB // (BLOCK * SPLITS)
    for i in range(FULL_ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        student = tl.load(student_row + offs_v).to(dtype)
        teacher = tl.load(teacher_row + offs_v).to(dtype)
        max_s, sum_s, max_t, sum_t, sum_h, sum_u = absorb_block(
            max_s, sum_s, max_t, sum_t, sum_h, sum_u, student, teacher, scale, MEASURE, LANES, VECTOR
        )
    if FULL_ROUNDS * BLOCK * SPLITS < VOCAB:
        offs_v = (FULL_ROUNDS * SPLITS + split) * BLOCK + offs_block
        mask_v = offs_v < VOCAB
        student = tl.load(student_row + offs_v, mask=mask_v, other=float("-inf")).to(dtype)
        teacher = tl.load(teacher_row + offs_v, mask=mask_v, other=float("-inf")).to(dtype)
        max_s, sum_s, max_t, sum_t, sum_h, sum_u = absorb_block(
            max_s, sum_s, max_t, sum_t, sum_h, sum_u, student, teacher, scale, MEASURE, LANES, VECTOR
        )

    max_s, sum_s, max_t, sum_t, sum_h, sum_u = merge_states(
        max_s, sum_s, max_t, sum_t, sum_h, sum_u, scale, MEASURE
    )
    state = state_ptr + row.to(tl.int64) * (6 * SPLITS) + split
    tl.store(state, max_s)
    tl.store(state + SPLITS, sum_s)
    tl.store(state + 2 * SPLITS, max_t)
    tl.store(state + 3 * SPLITS, sum_t)
    tl.store(state + 4 * SPLITS, sum_h)
    tl.store(state + 5 * SPLITS, sum_u)


@triton.jit
def second_sweep_terms(
    student, teacher, base_s, base_t, log2_s, log2_t, scale, beta, floor, DIVERGENCE: tl.constexpr
):
    """Per column: the term of the divergence, and the term of kl_aux where it is a sum of its own.

    The KL terms are weighted with 2^bits, relative to the row's maximum; the mixture's with probabilities.
    """
    bits_s = (student - base_s) * scale
    bits_t = (teacher - base_t) * scale
    exp_s = tl.exp2(bits_s)
    exp_t = tl.exp2(bits_t)
    none_s = bits_s == float("-inf")
    none_t = bits_t == float("-inf")
    if DIVERGENCE == "reverse_kl":
        terms = difference_terms(exp_s, bits_s, tl.maximum(bits_t, floor + log2_t), none_s)
        aux_terms = tl.zeros_like(terms)
    elif DIVERGENCE == "forward_kl":
        least = floor + log2_s
        terms = difference_terms(exp_t, bits_t, tl.maximum(bits_s, least), none_t)
        aux_terms = tl.where(bits_s > least, exp_t, 0.0)
    else:
        neither = none_s | none_t
        difference = tl.where(neither, 0.0, bits_t) - tl.where(neither, 0.0, bits_s)
        log_ratio = (difference - (log2_t - log2_s)) * LN2
        log_pm, log_qm = mixture_log_ratios(log_ratio, none_s, none_t, beta)
        aux_terms = (1.0 - beta) * (exp_s * tl.exp2(-log2_s)) * log_pm
        terms = aux_terms + beta * (exp_t * tl.exp2(-log2_t)) * log_qm
    return terms, aux_terms


@triton.jit(do_not_specialize=["rows_per_batch"])
def second_sweep_kernel(
    student_ptr,
    teacher_ptr,
    step_ids_ptr,
    state_ptr,
    partial_ptr,
    rows_per_batch,
    stride_student_b,
    stride_student_t,
    stride_teacher_b,
    stride_teacher_t,
    inverse_temperature_high,
    inverse_temperature_low,
    beta_high,
    beta_low,
    floor_high,
    floor_low,
    DIVERGENCE: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Sums of the divergences that need both log-sum-exps first: floored KLs and Jensen-Shannon.

    Computes: the divergence sum and the kl_aux sum over this program's share of one row, in one walk over
    the valid columns of both rows, after joining the row's states of the first sweep. Saves: two numbers
    per program in partial (rows, 2, SPLITS). Never builds: probabilities or the mixture beyond one block.
    Rows in no step are left unread and unwritten.
    """
    program = tl.program_id(0)
    row = program // SPLITS
    split = program % SPLITS
    if tl.load(step_ids_ptr + row) < 0:
        return
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    exact_scale = join_parameter(inverse_temperature_high, inverse_temperature_low) * LOG2E
    scale = exact_scale.to(dtype)
    beta = join_parameter(beta_high, beta_low).to(dtype)
    floor = (join_parameter(floor_high, floor_low) * LOG2E).to(dtype)
    max_s, sum_s, max_t, sum_t, _, _ = load_row_state(state_ptr, row, exact_scale, "none", SPLITS)
    base_s = finite_base(max_s).to(dtype)
    base_t = finite_base(max_t).to(dtype)
    # A row without any mass is answered with NaN when it is finished; 1 only keeps the logarithm quiet.
    log2_s = tl.log2(tl.where(sum_s == 0.0, 1.0, sum_s)).to(dtype)
    log2_t = tl.log2(tl.where(sum_t == 0.0, 1.0, sum_t)).to(dtype)
    student_row = student_ptr + row_offset(row, rows_per_batch, stride_student_b, stride_student_t)
    teacher_row = teacher_ptr + row_offset(row, rows_per_batch, stride_teacher_b, stride_teacher_t)

    offs_block = tl.arange(0, BLOCK)
    value = tl.zeros((LANES,), dtype)
    aux = tl.zeros((LANES,), dtype)
    FULL_ROUNDS: tl.constexpr = VOCAB // (BLOCK * SPLITS)
    for i in range(FULL_ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        student = tl.load(student_row + offs_v).to(dtype)
        teacher = tl.load(teacher_row + offs_v).to(dtype)
        terms, aux_terms = second_sweep_terms(
            student, teacher, base_s, base_t, log2_s, log2_t, scale, beta, floor, DIVERGENCE
        )
        value += lane_sum(terms, LANES, VECTOR)
        aux += lane_sum(aux_terms, LANES, VECTOR)
    if FULL_ROUNDS * BLOCK * SPLITS < VOCAB:
        offs_v = (FULL_ROUNDS * SPLITS + split) * BLOCK + offs_block
        mask_v = offs_v < VOCAB
        student = tl.load(student_row + offs_v, mask=mask_v, other=float("-inf")).to(dtype)
        teacher = tl.load(teacher_row + offs_v, mask=mask_v, other=float("-inf")).to(dtype)
        terms, aux_terms = second_sweep_terms(
            student, teacher, base_s, base_t, log2_s, log2_t, scale, beta, floor, DIVERGENCE
        )
        value += lane_sum(terms, LANES, VECTOR)
        aux += lane_sum(aux_terms, LANES, VECTOR)

    partial = partial_ptr + row.to(tl.int64) * (2 * SPLITS) + split
    tl.store(partial, tl.sum(value, axis=0))
    tl.store(partial + SPLITS, tl.sum(aux, axis=0))
