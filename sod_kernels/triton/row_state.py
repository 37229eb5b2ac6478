"""What the kernels share: where a row lies, and the online softmax state with its merge.

The state of a set of columns is six numbers per row, for logits divided by the temperature and expressed in
bits (multiplied by log2 e, so that the exponential is the hardware's exp2):

- max_s, max_t: largest raw logit of student and teacher, -inf while nothing finite was seen;
- sum_s = sum 2^ls and sum_t = sum 2^lt, with ls = (logit - max_s) * scale and lt = (logit - max_t) * scale;
- sum_h = sum 2^ls * ls, for the entropy;
- sum_u = sum 2^ls * (ls - lt) for the reverse KL, sum 2^lt * (lt - ls) for the forward KL: differences
  re-based to both maxima, so that a shift of either row cancels before anything is rounded.

The merge of two states is associative. So the lanes of a program, the programs of a row, and later chunks
of a vocabulary or ranks of a tensor-parallel group are all joined by `merge_states`.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_offset(row, rows_per_batch, stride_b, stride_t):
    """Offset of a row in elements, 64-bit because rows times columns passes 2**31."""
    batch = row // rows_per_batch
    step = row - batch * rows_per_batch
    return batch.to(tl.int64) * stride_b + step.to(tl.int64) * stride_t


@triton.jit
def join_parameter(high, low):
    """A float64 scalar that came as two float32 arguments; Triton has no float64 scalar arguments."""
    return tl.cast(high, tl.float64) + tl.cast(low, tl.float64)


@triton.jit
def lane_max(values, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Maximum per lane; a lane owns whole 16-byte vectors, so no thread talks to another."""
    tiles = tl.reshape(values, (values.shape[0] // (LANES * VECTOR), LANES, VECTOR))
    return tl.max(tl.max(tiles, axis=2), axis=0)


@triton.jit
def lane_sum(values, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Sum per lane."""
    tiles = tl.reshape(values, (values.shape[0] // (LANES * VECTOR), LANES, VECTOR))
    return tl.sum(tl.sum(tiles, axis=2), axis=0)


@triton.jit
def lane_spread(per_lane, BLOCK: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Give every column of a block its lane's value; the inverse shape of `lane_max`."""
    tiles = tl.broadcast_to(per_lane[None, :, None], (BLOCK // (LANES * VECTOR), LANES, VECTOR))
    return tl.reshape(tiles, (BLOCK,))


@triton.jit
def finite_base(maximum):
    """The maximum, or 0 where it is -inf, so that -inf minus the base stays -inf and is never NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def rebase_shift(old_max, new_max, scale):
    """(old_max - new_max) in bits; 0 for a state that has seen nothing finite, whose sums are 0 anyway."""
    return tl.where(old_max == float("-inf"), 0.0, (finite_base(old_max) - finite_base(new_max)) * scale)


@triton.jit
def rebase_difference(sum_u, sum_p, weight, shift):
    """Move sum_u to new maxima; +inf (mass on a column that the other side excludes) stays +inf."""
    infinite = sum_u == float("inf")
    return tl.where(infinite, float("inf"), weight * (tl.where(infinite, 0.0, sum_u) + sum_p * shift))


@triton.jit
def difference_terms(weights, own, other, excluded):
    """Terms weights * (own - other) per column, own and other in bits, 0 where excluded.

    `own` is finite outside `excluded`; `other` may be -inf, which gives +inf even where the weight
    underflowed to 0: the smallest weight keeps 0 * inf from turning into NaN and is far below rounding
    everywhere else.
    """
    difference = tl.where(excluded, 0.0, own) - tl.where(excluded, 0.0, other)
    return tl.maximum(weights, 1e-37) * difference


@triton.jit
def absorb_block(
    max_s,
    sum_s,
    max_t,
    sum_t,
    sum_h,
    sum_u,
    student,
    teacher,
    scale,
    MEASURE: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Add one block of logits to the states of the lanes.

    MEASURE names what sum_u collects: "reverse_kl", "forward_kl" or "none". Columns that do not exist come
    in as -inf on both sides and change nothing.
    """
    BLOCK: tl.constexpr = student.shape[0]
    new_max_s = tl.maximum(max_s, lane_max(student, LANES, VECTOR))
    new_max_t = tl.maximum(max_t, lane_max(teacher, LANES, VECTOR))
    shift_s = rebase_shift(max_s, new_max_s, scale)
    shift_t = rebase_shift(max_t, new_max_t, scale)
    weight_s = tl.exp2(shift_s)
    weight_t = tl.exp2(shift_t)

    bits_s = (student - lane_spread(finite_base(new_max_s), BLOCK, LANES, VECTOR)) * scale
    bits_t = (teacher - lane_spread(finite_base(new_max_t), BLOCK, LANES, VECTOR)) * scale
    exp_s = tl.exp2(bits_s)
    exp_t = tl.exp2(bits_t)
    none_s = bits_s == float("-inf")

    if MEASURE == "reverse_kl":
        terms = difference_terms(exp_s, bits_s, bits_t, none_s)
        sum_u = rebase_difference(sum_u, sum_s, weight_s, shift_s - shift_t)
        sum_u += lane_sum(terms, LANES, VECTOR)
    elif MEASURE == "forward_kl":
        terms = difference_terms(exp_t, bits_t, bits_s, bits_t == float("-inf"))
        sum_u = rebase_difference(sum_u, sum_t, weight_t, shift_t - shift_s)
        sum_u += lane_sum(terms, LANES, VECTOR)
    sum_h = weight_s * (sum_h + sum_s * shift_s)
    sum_h += lane_sum(exp_s * tl.where(none_s, 0.0, bits_s), LANES, VECTOR)
    sum_s = sum_s * weight_s + lane_sum(exp_s, LANES, VECTOR)
    sum_t = sum_t * weight_t + lane_sum(exp_t, LANES, VECTOR)
    return new_max_s, sum_s, new_max_t, sum_t, sum_h, sum_u


@triton.jit
def merge_states(max_s, sum_s, max_t, sum_t, sum_h, sum_u, scale, MEASURE: tl.constexpr):
    """Join a vector of states into one; in any order, as the merge is associative."""
    top_s = tl.max(max_s, axis=0)
    top_t = tl.max(max_t, axis=0)
    shift_s = rebase_shift(max_s, top_s, scale)
    shift_t = rebase_shift(max_t, top_t, scale)
    weight_s = tl.exp2(shift_s)
    weight_t = tl.exp2(shift_t)
    if MEASURE == "reverse_kl":
        sum_u = rebase_difference(sum_u, sum_s, weight_s, shift_s - shift_t)
    elif MEASURE == "forward_kl":
        sum_u = rebase_difference(sum_u, sum_t, weight_t, shift_t - shift_s)
    merged_u = tl.sum(sum_u, axis=0)
    merged_h = tl.sum(weight_s * (sum_h + sum_s * shift_s), axis=0)
    merged_s = tl.sum(sum_s * weight_s, axis=0)
    merged_t = tl.sum(sum_t * weight_t, axis=0)
    return top_s, merged_s, top_t, merged_t, merged_h, merged_u


@triton.jit
def load_row_state(state_ptr, row, scale, MEASURE: tl.constexpr, SPLITS: tl.constexpr):
    """Read the states that the programs of a row left and join them, in float64: a handful of numbers."""
    offs = row.to(tl.int64) * (6 * SPLITS) + tl.arange(0, SPLITS)
    max_s = tl.load(state_ptr + offs).to(tl.float64)
    sum_s = tl.load(state_ptr + offs + SPLITS).to(tl.float64)
    max_t = tl.load(state_ptr + offs + 2 * SPLITS).to(tl.float64)
    sum_t = tl.load(state_ptr + offs + 3 * SPLITS).to(tl.float64)
    sum_h = tl.load(state_ptr + offs + 4 * SPLITS).to(tl.float64)
    sum_u = tl.load(state_ptr + offs + 5 * SPLITS).to(tl.float64)
    return merge_states(max_s, sum_s, max_t, sum_t, sum_h, sum_u, scale, MEASURE)


@triton.jit
def saved_base(lse, inverse_temperature):
    """The raw logit from which the backward sweep measures a row: its rounded log-sum-exp times temperature.

    log p = (logit - base) / temperature - residual, where the residual is what the rounding took. The
    forward knows it; the backward takes it as 0, and kl_aux is stored so that its part in f - E_p f and in
    a p - q cancels.
    """
    return (lse.to(tl.float64) / inverse_temperature).to(lse.dtype)


@triton.jit
def needs_remeasure(lse_s, lse_t):
    """Whether a row lies so far from 0 that the residual matters in p itself and the backward measures it."""
    return (tl.abs(lse_s) >= 128.0) | (tl.abs(lse_t) >= 128.0)


@triton.jit
def mixture_log_ratios(log_ratio, none_s, none_t, beta):
    """log(p/m) and log(q/m) for m = (1 - beta) p + beta q, from log_ratio = log q - log p in nats.

    Only exp(-|log_ratio|) is taken, so nothing overflows. A column without student (teacher) mass has
    log(q/m) = -log beta (log(p/m) = -log(1 - beta)); the other ratio is then a finite number that meets a
    zero weight.
    """
    rest = 1.0 - beta
    ratio = tl.where(none_s | none_t, 0.0, log_ratio)
    teacher_below = ratio <= 0.0
    small = tl.exp(tl.where(teacher_below, ratio, -ratio))
    mixture = tl.log(tl.where(teacher_below, rest + beta * small, rest * small + beta))
    log_pm = tl.where(teacher_below, -mixture, -mixture - ratio)
    log_qm = log_pm + ratio
    log_pm = tl.where(none_t, -tl.log(rest), log_pm)
    log_qm = tl.where(none_s, -tl.log(beta), log_qm)
    return log_pm, log_qm
