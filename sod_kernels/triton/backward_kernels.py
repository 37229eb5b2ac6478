"""The backward sweep: one gradient row from one read of the rows of logits.

Memory walks: reads student, teacher and reference once and writes the gradient once, for any mix of upstream
gradients. The gradient may be written over the student's logits: a program reads a block before it writes
the same columns, and no other program reads them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sod_kernels.triton.row_state import (
    LN2,
    LOG2E,
    join_parameter,
    load_columns,
    mixture_log_ratios,
    row_start,
)

# Columns of the row state, as `sod_kernels.types.RowState` numbers them.
STUDENT_LSE = tl.constexpr(0)
STUDENT_ENTROPY = tl.constexpr(1)
TEACHER_LSE = tl.constexpr(2)
DIVERGENCE_VALUE = tl.constexpr(3)
AUX = tl.constexpr(4)
REFERENCE_LSE = tl.constexpr(5)
REFERENCE_KL = tl.constexpr(6)
STATE_COLUMNS = tl.constexpr(7)
# The log-prob sweeps save the first two only.
LOG_PROB_COLUMNS = tl.constexpr(2)


@triton.jit
def split_lse(lse, inverse_temperature, dtype: tl.constexpr):
    """A raw logit near the log-sum-exp times temperature, and what it lacks in nats, exactly.

    log p = (logit - base) / temperature - rest. Subtracting the rounded base first is exact where it matters;
    subtracting a rounded log-sum-exp is off by its last place, which at 10,000 is 1e-3 nats in float32.
    A row without mass has no distribution: NaN, said outright, as numpy warns of -inf - -inf.
    """
    lse = tl.where(lse == float("-inf"), float("nan"), lse)
    base = (lse / inverse_temperature).to(dtype)
    return base, lse - base.to(tl.float64) * inverse_temperature


@triton.jit
def load_target_scalars(
    state_row, LSE: tl.constexpr, VALUE: tl.constexpr, MEAN: tl.constexpr, grad_ptr, row, inverse_temperature,
    dtype: tl.constexpr,
):  # fmt: skip
    """Upstream gradient, mean, base and rest of one target's divergence.

    The gradient of an infinite divergence is defined as 0; those of the other outputs stay.
    """
    infinite = tl.load(state_row + VALUE) == float("inf")
    grad = tl.where(infinite, 0.0, tl.load(grad_ptr + row))
    mean = tl.where(infinite, 0.0, tl.load(state_row + MEAN))
    base, rest = split_lse(tl.load(state_row + LSE), inverse_temperature, dtype)
    return grad, mean, base, rest


@triton.jit
def centred_ratio(bits_s, bits_t, log_p, centre, ceiling, HAS_FLOOR: tl.constexpr):
    """Log p - log q less its mean, where `centre` holds the mean and what both bases lack.

    With a floor, log p - max(log q, floor) is the smaller of log p - log q and log p - floor; `ceiling` is
    the floor plus the mean. Without one, mass where the target has none makes the row infinite, and then its
    upstream gradient is taken as 0; any finite number will do there, as where the student has no mass.
    """
    none_s = bits_s == float("-inf")
    kept_s = tl.where(none_s, 0.0, bits_s)
    if HAS_FLOOR:
        ratio = tl.minimum((kept_s - bits_t) * LN2 - centre, log_p - ceiling)
    else:
        ratio = (kept_s - tl.where(bits_t == float("-inf"), 0.0, bits_t)) * LN2 - centre
    return ratio


@triton.jit
def divergence_gradient(
    prob_s, bits_s, bits_t, log_p, rest_s, centre, ceiling, mass_t, aux, beta, floor,
    DIVERGENCE: tl.constexpr, HAS_FLOOR: tl.constexpr,
):  # fmt: skip
    """Gradient of the divergence per column, times the temperature."""
    if DIVERGENCE == "reverse_kl":
        gradient = prob_s * centred_ratio(bits_s, bits_t, log_p, centre, ceiling, HAS_FLOOR)
    elif DIVERGENCE == "forward_kl":
        prob_t = tl.exp2(bits_t) * mass_t
        if HAS_FLOOR:
            prob_t = tl.where(bits_s * LN2 - rest_s > floor, prob_t, 0.0)
        gradient = prob_s * aux - prob_t
    else:
        log_ratio = -centred_ratio(bits_s, bits_t, log_p, centre, ceiling, False)
        none_s = bits_s == float("-inf")
        log_pm, _ = mixture_log_ratios(log_ratio, none_s, bits_t == float("-inf"), beta)
        gradient = prob_s * ((1.0 - beta) * log_pm - aux)
    return gradient


@triton.jit(do_not_specialize=["rows_per_batch"])
def backward_kernel(
    grad_logits_ptr,
    student_ptr,
    teacher_ptr,
    reference_ptr,
    step_ids_ptr,
    sampled_ids_ptr,
    row_state_ptr,
    grad_token_kl_ptr,
    grad_token_reference_kl_ptr,
    grad_student_log_probs_ptr,
    grad_student_entropy_ptr,
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
    HAS_FLOOR: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Gradient of one row with respect to the raw student logits, over this program's share of the columns.

    Computes: (p * (g_kl (f - E_p f) + g_reference (log p - log r - KL) - g_entropy (log p + H) - g_log_prob)
    + g_log_prob * onehot) / temperature, f the divergence's, in one walk that reads each row once and writes
    the gradient. Without a teacher only the last terms are left. Never builds: probabilities or one-hot rows.
    Columns at and beyond VOCAB and rows in no step are written as zeros without a read.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
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

    # Scalars: exact in float64 first, so that the differences below start from nothing rounded.
    dtype: tl.constexpr = grad_student_entropy_ptr.dtype.element_ty
    exact_inverse = join_parameter(inverse_temperature_high, inverse_temperature_low)
    inverse_temperature = exact_inverse.to(dtype)
    scale = (exact_inverse * LOG2E).to(dtype)
    exact_floor = join_parameter(floor_high, floor_low)
    STATE: tl.constexpr = LOG_PROB_COLUMNS if teacher_ptr is None else STATE_COLUMNS
    state_row = row_state_ptr + row.to(tl.int64) * STATE
    base_s, rest_s = split_lse(tl.load(state_row + STUDENT_LSE), exact_inverse, dtype)
    mass_s = tl.exp(-rest_s).to(dtype)
    entropy = tl.load(state_row + STUDENT_ENTROPY).to(dtype)
    grad_entropy = tl.load(grad_student_entropy_ptr + row)
    grad_log_prob = tl.zeros_like(grad_entropy)
    sampled = tl.full((), -1, tl.int32)
    if grad_student_log_probs_ptr is not None:
        grad_log_prob = tl.load(grad_student_log_probs_ptr + row)
    if sampled_ids_ptr is not None:
        sampled = tl.load(sampled_ids_ptr + row).to(tl.int32)
    student_row = row_start(student_ptr, row, rows_per_batch, stride_student_b, stride_student_t)
    if teacher_ptr is not None:
        teacher_row = row_start(teacher_ptr, row, rows_per_batch, stride_teacher_b, stride_teacher_t)
        grad_kl, exact_aux, base_t, rest_t = load_target_scalars(
            state_row, TEACHER_LSE, DIVERGENCE_VALUE, AUX, grad_token_kl_ptr, row, exact_inverse, dtype
        )
        mean_t = exact_aux if DIVERGENCE == "reverse_kl" else tl.zeros_like(exact_aux)
        centre_t = (mean_t + rest_s - rest_t).to(dtype)
        ceiling_t = (mean_t + exact_floor).to(dtype)
        mass_t = tl.exp(-rest_t).to(dtype)
        aux = exact_aux.to(dtype)
    if reference_ptr is not None:
        reference_row = row_start(reference_ptr, row, rows_per_batch, stride_reference_b, stride_reference_t)
        grad_reference, mean_r, base_r, rest_r = load_target_scalars(
            state_row, REFERENCE_LSE, REFERENCE_KL, REFERENCE_KL, grad_token_reference_kl_ptr, row,
            exact_inverse, dtype,
        )  # fmt: skip
        centre_r = (mean_r + rest_s - rest_r).to(dtype)
        ceiling_r = (mean_r + exact_floor).to(dtype)
    beta = join_parameter(beta_high, beta_low).to(dtype)
    floor = exact_floor.to(dtype)
    rest_s = rest_s.to(dtype)

    # As in the forward sweep: unmasked rounds first, so that loads and stores stay 128 bits wide.
    for masked in tl.static_range(2):
        for i in range(FULL_ROUNDS if masked else 0, ROUNDS if masked else FULL_ROUNDS):
            offs_v = (i * SPLITS + split) * BLOCK + offs_block
            bits_s = (load_columns(student_row, offs_v, dtype, VOCAB, masked) - base_s) * scale
            prob_s = tl.exp2(bits_s) * mass_s
            # At -inf the probability is 0; a finite log-probability beside it keeps the product 0, not NaN.
            log_p = tl.where(bits_s == float("-inf"), 0.0, bits_s) * LN2 - rest_s
            gradient = -prob_s * (grad_entropy * (log_p + entropy) + grad_log_prob)
            if teacher_ptr is not None:
                bits_t = (load_columns(teacher_row, offs_v, dtype, VOCAB, masked) - base_t) * scale
                gradient += grad_kl * divergence_gradient(
                    prob_s, bits_s, bits_t, log_p, rest_s, centre_t, ceiling_t, mass_t, aux, beta, floor,
                    DIVERGENCE, HAS_FLOOR,
                )  # fmt: skip
            if reference_ptr is not None:
                bits_r = (load_columns(reference_row, offs_v, dtype, VOCAB, masked) - base_r) * scale
                ratio = centred_ratio(bits_s, bits_r, log_p, centre_r, ceiling_r, HAS_FLOOR)
                gradient += grad_reference * (prob_s * ratio)
            gradient += tl.where(offs_v == sampled, grad_log_prob, 0.0)
            gradient *= inverse_temperature
            if masked:
                gradient = tl.where(offs_v < VOCAB, gradient, 0.0)
                tl.store(grad_row + offs_v, gradient.to(grad_dtype), mask=offs_v < WIDTH)
            else:
                tl.store(grad_row + offs_v, gradient.to(grad_dtype))
