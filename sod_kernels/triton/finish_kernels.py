"""The two small kernels after the forward sweeps: one finishes a token, one sums the tokens of a step."""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    finite_base,
    join_parameter,
    load_row_state,
    needs_remeasure,
    row_offset,
    saved_base,
)


@triton.jit
def sampled_log_prob(logits_row, sampled, base, log2_sum, scale):
    """log-probability in bits of one column; NaN where the row has no mass or holds a NaN."""
    logit = tl.load(logits_row + sampled).to(tl.float64)
    return (logit - base) * scale - log2_sum


@triton.jit
def divergence_of_row(
    partial_ptr, row, sum_s, sum_t, sum_u, log2_s, log2_t, DIVERGENCE: tl.constexpr, SPLITS: tl.constexpr
):
    """Unclamped divergence and kl_aux in nats, from the first sweep's state and the second's sums, if any."""
    # Where a side has no mass the logarithm is NaN and carries the answer; 1 keeps the division quiet.
    mass_s = tl.where(sum_s == 0.0, 1.0, sum_s)
    mass_t = tl.where(sum_t == 0.0, 1.0, sum_t)
    aux = tl.zeros_like(sum_s)
    if partial_ptr is not None:
        offs = row.to(tl.int64) * (2 * SPLITS) + tl.arange(0, SPLITS)
        sum_u = tl.sum(tl.load(partial_ptr + offs).to(tl.float64), axis=0)
        aux = tl.sum(tl.load(partial_ptr + offs + SPLITS).to(tl.float64), axis=0)
    if DIVERGENCE == "reverse_kl":
        value = (sum_u / mass_s + (log2_t - log2_s)) * LN2
        aux = value
    elif DIVERGENCE == "forward_kl":
        value = (sum_u / mass_t + (log2_s - log2_t)) * LN2
        # The share of teacher mass above the floor; infinity tells the backward sweep to leave the KL out.
        aux = aux / mass_t if partial_ptr is not None else tl.where(value == float("inf"), value, 1.0)
    else:
        # The second sweep cannot tell a row without mass; its logarithm is NaN.
        value = tl.where((log2_s == log2_s) & (log2_t == log2_t), sum_u, float("nan"))
    return value, aux


@triton.jit(do_not_specialize=["rows_per_batch"])
def finish_rows_kernel(
    student_ptr,
    teacher_ptr,
    step_ids_ptr,
    sampled_ids_ptr,
    state_ptr,
    partial_ptr,
    token_kl_ptr,
    student_log_probs_ptr,
    teacher_log_probs_ptr,
    student_entropy_ptr,
    student_lse_ptr,
    teacher_lse_ptr,
    kl_aux_ptr,
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
    HAS_FLOOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """All per-token results of one row.

    Computes: token_kl (clamped at 0), kl_aux (not clamped), entropy, both log-sum-exps and, with sampled
    ids, both sampled log-probabilities, in float64, as each is a difference of larger numbers. Walks over
    no row: it reads the programs' states and sums and two single logits. Rows in no step get exact zeros.

    kl_aux is the expectation of the quantity that the backward sweep makes from rounded log-sum-exps, see
    `saved_base`, so that what it subtracts has the same constant.
    """
    row = tl.program_id(0)
    out = row.to(tl.int64)
    if tl.load(step_ids_ptr + row) < 0:
        tl.store(token_kl_ptr + out, 0.0)
        tl.store(student_entropy_ptr + out, 0.0)
        tl.store(student_lse_ptr + out, 0.0)
        tl.store(teacher_lse_ptr + out, 0.0)
        tl.store(kl_aux_ptr + out, 0.0)
        if sampled_ids_ptr is not None:
            tl.store(student_log_probs_ptr + out, 0.0)
            tl.store(teacher_log_probs_ptr + out, 0.0)
        return
    dtype: tl.constexpr = token_kl_ptr.dtype.element_ty
    inverse_temperature = join_parameter(inverse_temperature_high, inverse_temperature_low)
    scale = inverse_temperature * LOG2E
    MEASURE: tl.constexpr = "none" if partial_ptr is not None else DIVERGENCE
    max_s, sum_s, max_t, sum_t, sum_h, sum_u = load_row_state(state_ptr, row, scale, MEASURE, SPLITS)
    base_s = finite_base(max_s)
    base_t = finite_base(max_t)
    log2_s = tl.where(sum_s == 0.0, float("nan"), tl.log2(tl.where(sum_s == 0.0, 1.0, sum_s)))
    log2_t = tl.where(sum_t == 0.0, float("nan"), tl.log2(tl.where(sum_t == 0.0, 1.0, sum_t)))

    lse_s = base_s * inverse_temperature + log2_s * LN2
    lse_t = base_t * inverse_temperature + log2_t * LN2
    saved_s = lse_s.to(dtype)
    saved_t = lse_t.to(dtype)
    residual_s = lse_s - saved_base(saved_s, inverse_temperature).to(tl.float64) * inverse_temperature
    residual_t = lse_t - saved_base(saved_t, inverse_temperature).to(tl.float64) * inverse_temperature
    rounding = tl.where(needs_remeasure(saved_s, saved_t), 0.0, residual_s - residual_t)
    value, aux = divergence_of_row(partial_ptr, row, sum_s, sum_t, sum_u, log2_s, log2_t, DIVERGENCE, SPLITS)
    if DIVERGENCE == "reverse_kl":
        aux += rounding
    elif DIVERGENCE == "forward_kl":
        aux *= tl.exp(-rounding)
    else:
        # To first order around p = q, the only place where so small a number can be seen.
        beta = join_parameter(beta_high, beta_low)
        aux += beta * (1.0 - beta) * rounding
    tl.store(token_kl_ptr + out, tl.where(value < 0.0, 0.0, value))
    tl.store(kl_aux_ptr + out, aux)
    mass_s = tl.where(sum_s == 0.0, 1.0, sum_s)
    tl.store(student_entropy_ptr + out, (log2_s - sum_h / mass_s) * LN2)
    tl.store(student_lse_ptr + out, saved_s)
    tl.store(teacher_lse_ptr + out, saved_t)

    if sampled_ids_ptr is not None:
        sampled = tl.load(sampled_ids_ptr + row)
        student_row = student_ptr + row_offset(row, rows_per_batch, stride_student_b, stride_student_t)
        teacher_row = teacher_ptr + row_offset(row, rows_per_batch, stride_teacher_b, stride_teacher_t)
        log_p = sampled_log_prob(student_row, sampled, base_s, log2_s, scale) * LN2
        log_q = sampled_log_prob(teacher_row, sampled, base_t, log2_t, scale) * LN2
        if HAS_FLOOR:
            floor = join_parameter(floor_high, floor_low)
            # A comparison, not a maximum: NaN has to stay NaN.
            log_q = tl.where(log_q < floor, floor, log_q)
        tl.store(student_log_probs_ptr + out, log_p)
        tl.store(teacher_log_probs_ptr + out, log_q)


@triton.jit
def step_sums_kernel(
    order_ptr,
    edges_ptr,
    token_kl_ptr,
    student_log_probs_ptr,
    teacher_log_probs_ptr,
    student_entropy_ptr,
    step_sums_ptr,
    BLOCK: tl.constexpr,
):
    """Sums over the tokens of one step, by one program, always in the same order.

    Computes: tokens, sum of token_kl, of |sampled log-ratio|, of -student_log_probs and of student_entropy,
    in float64. `order` lists the rows sorted by step id, `edges` where each step's rows start. Walks once
    over the token tensors; uses no atomics, so that results repeat bit by bit.
    """
    step = tl.program_id(0)
    start = tl.load(edges_ptr + step)
    end = tl.load(edges_ptr + step + 1)
    offs_block = tl.arange(0, BLOCK)
    kl = tl.zeros((BLOCK,), tl.float64)
    entropy = tl.zeros((BLOCK,), tl.float64)
    ratio = tl.zeros((BLOCK,), tl.float64)
    surprise = tl.zeros((BLOCK,), tl.float64)
    # A while loop: a range over loaded bounds is more than the oldest supported interpreter manages.
    first = start
    while first < end:
        offs = first + offs_block
        mask = offs < end
        row = tl.load(order_ptr + offs, mask=mask, other=0)
        kl += tl.load(token_kl_ptr + row, mask=mask, other=0.0).to(tl.float64)
        entropy += tl.load(student_entropy_ptr + row, mask=mask, other=0.0).to(tl.float64)
        if student_log_probs_ptr is not None:
            log_p = tl.load(student_log_probs_ptr + row, mask=mask, other=0.0).to(tl.float64)
            log_q = tl.load(teacher_log_probs_ptr + row, mask=mask, other=0.0).to(tl.float64)
            # An id that both exclude has no ratio; said outright, as numpy warns of -inf - -inf.
            excluded = (log_p == float("-inf")) & (log_q == float("-inf"))
            ratio += tl.abs(tl.where(excluded, float("nan"), log_p) - log_q)
            surprise -= log_p
        first += BLOCK
    sums = step_sums_ptr + step.to(tl.int64) * 5
    tl.store(sums, (end - start).to(tl.float64))
    tl.store(sums + 1, tl.sum(kl, axis=0))
    tl.store(sums + 2, tl.sum(ratio, axis=0))
    tl.store(sums + 3, tl.sum(surprise, axis=0))
    tl.store(sums + 4, tl.sum(entropy, axis=0))
