"""The small kernels of the log-prob sweeps, which read single logits of the student at K ids per row.

The sweeps themselves are `first_sweep_kernel` and `backward_kernel` without a teacher. The gradient at the
looked-up columns is computed before the backward sweep, whose output may overwrite the logits, and stored
after it: three launches, so that no two programs ever touch the same entry at the same time and the sweep's
cost does not grow with K.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.finish_kernels import log_sum_exp
from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    finite_base,
    join_parameter,
    load_student,
    log2_of_mass,
    row_start,
)


@triton.jit(do_not_specialize=["rows_per_batch", "num_ids"])
def finish_log_probs_kernel(
    student_ptr,
    step_ids_ptr,
    ids_ptr,
    state_ptr,
    log_probs_ptr,
    student_entropy_ptr,
    row_state_ptr,
    rows_per_batch,
    num_ids,
    stride_student_b,
    stride_student_t,
    inverse_temperature_high,
    inverse_temperature_low,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Log-probabilities of a row's ids, its entropy and its row state (rows, 2), in float64.

    Walks over no row: it reads the programs' states and K single logits. Absent ids and rows in no step get
    exact zeros.
    """
    row = tl.program_id(0)
    out = row.to(tl.int64)
    active = tl.load(step_ids_ptr + row) >= 0
    inverse_temperature = join_parameter(inverse_temperature_high, inverse_temperature_low)
    scale = inverse_temperature * LOG2E
    entropy = tl.zeros((), tl.float64)
    lse = tl.zeros((), tl.float64)
    if active:
        max_s, sum_s, sum_h = load_student(state_ptr, row, scale, 1, SPLITS)
        log2_s = log2_of_mass(sum_s)
        lse = finite_base(max_s) * inverse_temperature + log2_s * LN2
        # Stored here, as one more number alive at the end makes sm_100 spill.
        tl.store(row_state_ptr + out * 2, log_sum_exp(max_s, sum_s, log2_s, inverse_temperature))
        entropy = (log2_s - sum_h / tl.where(sum_s == 0.0, 1.0, sum_s)) * LN2
    else:
        tl.store(row_state_ptr + out * 2, lse)
    tl.store(student_entropy_ptr + out, entropy)
    tl.store(row_state_ptr + out * 2 + 1, entropy)

    student_row = row_start(student_ptr, row, rows_per_batch, stride_student_b, stride_student_t)
    first = 0
    while first < num_ids:
        offs = first + tl.arange(0, BLOCK)
        is_there = offs < num_ids
        column = tl.load(ids_ptr + out * num_ids + offs, mask=is_there & active, other=-1)
        logit = tl.load(student_row + column, mask=column >= 0, other=0.0).to(tl.float64)
        log_p = tl.where(column >= 0, logit * inverse_temperature - lse, 0.0)
        tl.store(log_probs_ptr + out * num_ids + offs, log_p, mask=is_there)
        first += BLOCK


@triton.jit(do_not_specialize=["rows_per_batch", "num_ids"])
def gradient_at_ids_kernel(
    student_ptr,
    step_ids_ptr,
    ids_ptr,
    row_state_ptr,
    grad_log_probs_ptr,
    grad_student_entropy_ptr,
    grad_at_ids_ptr,
    grad_sum_ptr,
    rows_per_batch,
    num_ids,
    stride_student_b,
    stride_student_t,
    inverse_temperature_high,
    inverse_temperature_low,
    BLOCK: tl.constexpr,
):
    """Whole gradient at the columns of a row's ids, and the sum of the row's upstream gradients.

    Computes: (sum of g over equal ids - p * (sum of g + g_entropy (log p + H))) / temperature in float64; an
    id that occurs twice gets the same number at both places. Reads K single logits, compares all id pairs.
    """
    row = tl.program_id(0)
    out = row.to(tl.int64)
    if tl.load(step_ids_ptr + row) < 0:
        return
    inverse_temperature = join_parameter(inverse_temperature_high, inverse_temperature_low)
    offs_block = tl.arange(0, BLOCK)
    ids_row = ids_ptr + out * num_ids
    grad_row = grad_log_probs_ptr + out * num_ids
    sums = tl.zeros((BLOCK,), tl.float64)
    first = 0
    while first < num_ids:
        offs = first + offs_block
        column = tl.load(ids_row + offs, mask=offs < num_ids, other=-1)
        sums += tl.load(grad_row + offs, mask=column >= 0, other=0.0).to(tl.float64)
        first += BLOCK
    total = tl.sum(sums, axis=0)
    tl.store(grad_sum_ptr + out, total)

    lse = tl.load(row_state_ptr + out * 2)
    entropy = tl.load(row_state_ptr + out * 2 + 1)
    grad_entropy = tl.load(grad_student_entropy_ptr + row).to(tl.float64)
    student_row = row_start(student_ptr, row, rows_per_batch, stride_student_b, stride_student_t)
    first = 0
    while first < num_ids:
        offs = first + offs_block
        column = tl.load(ids_row + offs, mask=offs < num_ids, other=-1)
        own = tl.zeros((BLOCK,), tl.float64)
        second = 0
        while second < num_ids:
            offs_other = second + offs_block
            other = tl.load(ids_row + offs_other, mask=offs_other < num_ids, other=-1)
            upstream = tl.load(grad_row + offs_other, mask=other >= 0, other=0.0).to(tl.float64)
            own += tl.sum(tl.where(column[:, None] == other[None, :], upstream[None, :], 0.0), axis=1)
            second += BLOCK
        logit = tl.load(student_row + column, mask=column >= 0, other=float("-inf")).to(tl.float64)
        excluded = logit == float("-inf")
        # A row without mass has a log-sum-exp of -inf, and -inf minus -inf is no number.
        log_p = tl.where(excluded, 0.0, tl.where(excluded, 0.0, logit) * inverse_temperature - lse)
        prob = tl.where(excluded, 0.0, tl.exp(log_p))
        gradient = own - prob * (total + grad_entropy * (log_p + entropy))
        tl.store(grad_at_ids_ptr + out * num_ids + offs, gradient * inverse_temperature, mask=column >= 0)
        first += BLOCK


@triton.jit(do_not_specialize=["num_ids"])
def store_at_ids_kernel(
    grad_logits_ptr,
    step_ids_ptr,
    ids_ptr,
    grad_at_ids_ptr,
    num_ids,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put a row's gradients at its ids over what the sweep wrote there; equal ids carry equal numbers."""
    row = tl.program_id(0)
    out = row.to(tl.int64)
    if tl.load(step_ids_ptr + row) < 0:
        return
    grad_row = grad_logits_ptr + out * WIDTH
    grad_dtype: tl.constexpr = grad_logits_ptr.dtype.element_ty
    first = 0
    while first < num_ids:
        offs = first + tl.arange(0, BLOCK)
        column = tl.load(ids_ptr + out * num_ids + offs, mask=offs < num_ids, other=-1)
        gradient = tl.load(grad_at_ids_ptr + out * num_ids + offs, mask=column >= 0, other=0.0)
        tl.store(grad_row + column, gradient.to(grad_dtype), mask=column >= 0)
        first += BLOCK
