"""The backward sweep: one gradient row from one read of both logit rows.

Memory walks: reads student and teacher once and writes the gradient once, for any mix of upstream
gradients. Only a row whose log-sum-exp reaches 128 in size is read once more per program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.row_state import (
    join_parameter,
    mixture_log_ratios,
    needs_remeasure,
    row_offset,
    saved_base,
)


@triton.jit
def gradient_terms(
    student,
    teacher,
    base_s,
    base_t,
    residual_s,
    residual_t,
    aux,
    entropy,
    grad_kl,
    grad_log_prob,
    grad_entropy,
    inverse_temperature,
    beta,
    floor,
    DIVERGENCE: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
):
    """Gradient per column without the sampled token's own term and without the factor 1/temperature."""
    none_s = student == float("-inf")
    none_t = teacher == float("-inf")
    raw_p = (student - base_s) * inverse_temperature - residual_s
    raw_q = (teacher - base_t) * inverse_temperature - residual_t
    prob_s = tl.exp(raw_p)
    # At -inf the probability is 0; a finite log-probability beside it keeps the product 0 instead of NaN.
    log_p = tl.where(none_s, 0.0, raw_p)
    factor = -grad_entropy * (log_p + entropy) - grad_log_prob
    if DIVERGENCE == "reverse_kl":
        # Without a floor, mass where the teacher has none makes the row infinite, and then grad_kl is 0.
        log_q = tl.maximum(raw_q, floor) if HAS_FLOOR else tl.where(none_t, 0.0, raw_q)
        gradient = prob_s * (factor + grad_kl * (log_p - log_q - aux))
    elif DIVERGENCE == "forward_kl":
        prob_t = tl.exp(raw_q)
        if HAS_FLOOR:
            prob_t = tl.where(raw_p > floor, prob_t, 0.0)
        gradient = prob_s * (factor + grad_kl * aux) - grad_kl * prob_t
    else:
        log_q = tl.where(none_t, 0.0, raw_q)
        log_pm, _ = mixture_log_ratios(log_q - log_p, none_s, none_t, beta)
        gradient = prob_s * (factor + grad_kl * ((1.0 - beta) * log_pm - aux))
    return gradient


@triton.jit
def log_mass(logits_row, base, inverse_temperature, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Log of sum exp((logit - base) / temperature): the residual of a base that nearly is the log-sum-exp."""
    offs_block = tl.arange(0, BLOCK)
    mass = tl.zeros((BLOCK,), base.dtype)
    for i in range((VOCAB + BLOCK - 1) // BLOCK):
        offs_v = i * BLOCK + offs_block
        logits = tl.load(logits_row + offs_v, mask=offs_v < VOCAB, other=float("-inf")).to(base.dtype)
        mass += tl.exp((logits - base) * inverse_temperature)
    return tl.log(tl.sum(mass, axis=0))


@triton.jit(do_not_specialize=["rows_per_batch"])
def backward_kernel(
    grad_logits_ptr,
    student_ptr,
    teacher_ptr,
    step_ids_ptr,
    sampled_ids_ptr,
    student_lse_ptr,
    teacher_lse_ptr,
    kl_aux_ptr,
    student_entropy_ptr,
    grad_token_kl_ptr,
    grad_student_log_probs_ptr,
    grad_student_entropy_ptr,
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
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Gradient of one row with respect to the raw student logits, over this program's share of the columns.

    Computes: (p * (g_kl (f - E_p f) - g_entropy (log p + H) - g_log_prob) + g_log_prob * onehot) /
    temperature, where f is the divergence's, in one walk that reads both rows and writes the gradient.
    Saves nothing else and needs only seven numbers per row. Never builds: probabilities or one-hot rows.
    Columns at and beyond VOCAB and rows in no step are written as zeros without a read.
    """
    program = tl.program_id(0)
    row = program // SPLITS
    split = program % SPLITS
    offs_block = tl.arange(0, BLOCK)
    grad_row = grad_logits_ptr + row.to(tl.int64) * WIDTH
    grad_dtype: tl.constexpr = grad_logits_ptr.dtype.element_ty
    FULL_ROUNDS: tl.constexpr = VOCAB // (BLOCK * SPLITS)
    ROUNDS: tl.constexpr = (WIDTH + BLOCK * SPLITS - 1) // (BLOCK * SPLITS)
    if tl.load(step_ids_ptr + row) < 0:
        for i in range(ROUNDS):
            offs_v = (i * SPLITS + split) * BLOCK + offs_block
            tl.store(grad_row + offs_v, tl.zeros((BLOCK,), grad_dtype), mask=offs_v < WIDTH)
        return

    dtype: tl.constexpr = student_lse_ptr.dtype.element_ty
    exact_inverse = join_parameter(inverse_temperature_high, inverse_temperature_low)
    inverse_temperature = exact_inverse.to(dtype)
    beta = join_parameter(beta_high, beta_low).to(dtype)
    floor = join_parameter(floor_high, floor_low).to(dtype)
    lse_s = tl.load(student_lse_ptr + row)
    lse_t = tl.load(teacher_lse_ptr + row)
    entropy = tl.load(student_entropy_ptr + row)
    grad_kl = tl.load(grad_token_kl_ptr + row)
    grad_entropy = tl.load(grad_student_entropy_ptr + row)
    aux = tl.load(kl_aux_ptr + row)
    # The gradient of an infinite divergence is defined as 0; the other two gradients stay.
    infinite = aux == float("inf")
    grad_kl = tl.where(infinite, 0.0, grad_kl)
    aux = tl.where(infinite, 0.0, aux)
    grad_log_prob = tl.zeros_like(lse_s)
    sampled = tl.full((), -1, tl.int32)
    if sampled_ids_ptr is not None:
        grad_log_prob = tl.load(grad_student_log_probs_ptr + row)
        sampled = tl.load(sampled_ids_ptr + row).to(tl.int32)
    student_row = student_ptr + row_offset(row, rows_per_batch, stride_student_b, stride_student_t)
    teacher_row = teacher_ptr + row_offset(row, rows_per_batch, stride_teacher_b, stride_teacher_t)

    base_s = saved_base(lse_s, exact_inverse)
    base_t = saved_base(lse_t, exact_inverse)
    residual_s = tl.zeros_like(lse_s)
    residual_t = tl.zeros_like(lse_t)
    if needs_remeasure(lse_s, lse_t):
        residual_s = log_mass(student_row, base_s, inverse_temperature, VOCAB, BLOCK)
        residual_t = log_mass(teacher_row, base_t, inverse_temperature, VOCAB, BLOCK)

    # As in the forward sweep: unmasked rounds first, so that loads and stores stay 128 bits wide.
    for i in range(FULL_ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        student = tl.load(student_row + offs_v).to(dtype)
        teacher = tl.load(teacher_row + offs_v).to(dtype)
        gradient = gradient_terms(
            student, teacher, base_s, base_t, residual_s, residual_t, aux, entropy,
            grad_kl, grad_log_prob, grad_entropy, inverse_temperature, beta, floor, DIVERGENCE, HAS_FLOOR,
        )  # fmt: skip
        gradient += tl.where(offs_v == sampled, grad_log_prob, 0.0)
        tl.store(grad_row + offs_v, (gradient * inverse_temperature).to(grad_dtype))
    for i in range(FULL_ROUNDS, ROUNDS):
        offs_v = (i * SPLITS + split) * BLOCK + offs_block
        mask_v = offs_v < VOCAB
        student = tl.load(student_row + offs_v, mask=mask_v, other=float("-inf")).to(dtype)
        teacher = tl.load(teacher_row + offs_v, mask=mask_v, other=float("-inf")).to(dtype)
        gradient = gradient_terms(
            student, teacher, base_s, base_t, residual_s, residual_t, aux, entropy,
            grad_kl, grad_log_prob, grad_entropy, inverse_temperature, beta, floor, DIVERGENCE, HAS_FLOOR,
        )  # fmt: skip
        gradient += tl.where(offs_v == sampled, grad_log_prob, 0.0)
        gradient = tl.where(mask_v, gradient * inverse_temperature, 0.0)
        tl.store(grad_row + offs_v, gradient.to(grad_dtype), mask=offs_v < WIDTH)
