"""The two small kernels after the forward sweeps: one finishes a token, one sums the tokens of a step."""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    finite_base,
    join_parameter,
    load_student,
    load_target,
    log2_of_mass,
    row_start,
)


@triton.jit
def sampled_log_prob(logits_row, sampled, base, log2_sum, scale):
    """log-probability in nats of one column; NaN where the row has no mass or holds a NaN."""
    logit = tl.load(logits_row + sampled).to(tl.float64)
    return ((logit - base) * scale - log2_sum) * LN2


@triton.jit
def load_sum(partial_ptr, row, NUMBER: tl.constexpr, SPLITS: tl.constexpr):
    """One of the second sweep's sums, over all programs of a row, in float64."""
    offs = row.to(tl.int64) * (3 * SPLITS) + NUMBER * SPLITS + tl.arange(0, SPLITS)
    return tl.sum(tl.load(partial_ptr + offs).to(tl.float64), axis=0)


@triton.jit
def log_sum_exp(maximum, mass, log2_of_mass, inverse_temperature):
    """Log-sum-exp of a row; -inf without mass, which is what a shard of -inf only adds to its row."""
    value = finite_base(maximum) * inverse_temperature + log2_of_mass * LN2
    return tl.where(mass == 0.0, float("-inf"), value)


@triton.jit
def divergence_of_row(
    partial_ptr,
    row,
    sum_s,
    sum_t,
    sum_u,
    log2_s,
    log2_t,
    beta,
    DIVERGENCE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Unclamped divergence and AUX in nats, from the first sweep's state and the second's sums, if any."""
    aux = tl.full((), 1.0, tl.float64)
    if partial_ptr is not None:
        sum_u = load_sum(partial_ptr, row, 0, SPLITS)
        aux = load_sum(partial_ptr, row, 1, SPLITS)
    # Where a side has no mass its logarithm is NaN and carries the answer; 1 keeps the division quiet.
    mass_s = tl.where(sum_s == 0.0, 1.0, sum_s)
    mass_t = tl.where(sum_t == 0.0, 1.0, sum_t)
    if DIVERGENCE == "reverse_kl":
        value = (sum_u / mass_s + (log2_t - log2_s)) * LN2
        aux = value
    elif DIVERGENCE == "forward_kl":
        value = (sum_u / mass_t + (log2_s - log2_t)) * LN2
        # The share of the teacher's mass above the floor.
        if partial_ptr is not None:
            aux = aux / mass_t
    else:
        aux = (1.0 - beta) * (aux / mass_s)
        value = aux + beta * (sum_u / mass_t)
        # The second sweep cannot tell a row without mass; its logarithm is NaN.
        value = tl.where((log2_s == log2_s) & (log2_t == log2_t), value, float("nan"))
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
    token_reference_kl_ptr,
    student_log_probs_ptr,
    teacher_log_probs_ptr,
    student_entropy_ptr,
    row_state_ptr,
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
    """All per-token results of one row, and the row state (rows, 7) of `sod_kernels.types.RowState`.

    Computes: token_kl, with a reference token_reference_kl (both clamped at 0; not so in the row state),
    entropy, the log-sum-exps and, with sampled ids, both sampled log-probabilities, in float64, as each is a
    difference of larger numbers. Walks over no row: it reads the programs' states and sums and two single
    logits. Rows in no step get exact zeros.
    """
    row = tl.program_id(0)
    out = row.to(tl.int64)
    state_row = row_state_ptr + out * 7
    if tl.load(step_ids_ptr + row) < 0:
        offs = tl.arange(0, 8)
        tl.store(state_row + offs, tl.zeros((8,), tl.float64), mask=offs < 7)
        tl.store(token_kl_ptr + out, 0.0)
        tl.store(student_entropy_ptr + out, 0.0)
        if token_reference_kl_ptr is not None:
            tl.store(token_reference_kl_ptr + out, 0.0)
        if sampled_ids_ptr is not None:
            tl.store(student_log_probs_ptr + out, 0.0)
            tl.store(teacher_log_probs_ptr + out, 0.0)
        return
    inverse_temperature = join_parameter(inverse_temperature_high, inverse_temperature_low)
    scale = inverse_temperature * LOG2E
    SIDES: tl.constexpr = 2 if token_reference_kl_ptr is None else 3
    MEASURE: tl.constexpr = "none" if partial_ptr is not None else DIVERGENCE
    max_s, sum_s, sum_h = load_student(state_ptr, row, scale, SIDES, SPLITS)
    max_t, sum_t, sum_u = load_target(state_ptr, row, scale, 1, MEASURE, SIDES, SPLITS)
    log2_s = log2_of_mass(sum_s)
    log2_t = log2_of_mass(sum_t)
    beta = join_parameter(beta_high, beta_low)
    value, aux = divergence_of_row(
        partial_ptr, row, sum_s, sum_t, sum_u, log2_s, log2_t, beta, DIVERGENCE, SPLITS
    )
    mass_s = tl.where(sum_s == 0.0, 1.0, sum_s)
    entropy = (log2_s - sum_h / mass_s) * LN2
    tl.store(state_row, log_sum_exp(max_s, sum_s, log2_s, inverse_temperature))
    tl.store(state_row + 1, entropy)
    tl.store(state_row + 2, log_sum_exp(max_t, sum_t, log2_t, inverse_temperature))
    tl.store(state_row + 3, value)
    tl.store(state_row + 4, aux)
    # A comparison, not a maximum: NaN has to stay NaN.
    tl.store(token_kl_ptr + out, tl.where(value < 0.0, 0.0, value))
    tl.store(student_entropy_ptr + out, entropy)

    if token_reference_kl_ptr is not None:
        FROM_FIRST: tl.constexpr = "none" if HAS_FLOOR else "reverse_kl"
        max_r, sum_r, sum_v = load_target(state_ptr, row, scale, 2, FROM_FIRST, SIDES, SPLITS)
        log2_r = log2_of_mass(sum_r)
        if HAS_FLOOR:
            sum_v = load_sum(partial_ptr, row, 2, SPLITS)
        reference_value = (sum_v / mass_s + (log2_r - log2_s)) * LN2
        tl.store(state_row + 5, log_sum_exp(max_r, sum_r, log2_r, inverse_temperature))
        tl.store(state_row + 6, reference_value)
        clamped = tl.where(reference_value < 0.0, 0.0, reference_value)
        tl.store(token_reference_kl_ptr + out, clamped)
    else:
        tl.store(state_row + 5, 0.0)
        tl.store(state_row + 6, 0.0)

    if sampled_ids_ptr is not None:
        sampled = tl.load(sampled_ids_ptr + row)
        student_row = row_start(student_ptr, row, rows_per_batch, stride_student_b, stride_student_t)
        teacher_row = row_start(teacher_ptr, row, rows_per_batch, stride_teacher_b, stride_teacher_t)
        log_p = sampled_log_prob(student_row, sampled, finite_base(max_s), log2_s, scale)
        log_q = sampled_log_prob(teacher_row, sampled, finite_base(max_t), log2_t, scale)
        if HAS_FLOOR:
            floor = join_parameter(floor_high, floor_low)
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
