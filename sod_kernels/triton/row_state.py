"""What the kernels share: where a row lies, and the online softmax state with its merge.

The state of a set of columns is three numbers per side and row, for logits divided by the temperature and
expressed in bits (multiplied by log2 e, so that the exponential is the hardware's exp2). Of the student s:

- max_s, the largest raw logit, -inf while nothing finite was seen;
- sum_s = sum 2^ls with ls = (logit - max_s) * scale;
- sum_h = sum 2^ls * ls, for the entropy.

Of a target t, the teacher or the reference: max_t, sum_t = sum 2^lt, and

- sum_u = sum 2^ls * (ls - lt) for KL(student || target), sum 2^lt * (lt - ls) for KL(target || student):
  differences re-based to both maxima, so that a shift of either row cancels before anything is rounded.

The merge of two states is associative. So the lanes of a program, the programs of a row, and later chunks
of a vocabulary or ranks of a tensor-parallel group are all joined by `merge_student` and `merge_target`.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_start(logits_ptr, row, rows_per_batch, stride_b, stride_t):
    """Where a row begins, by a 64-bit offset, as rows times columns passes 2**31; None without a side."""
    if logits_ptr is None:
        start = None
    else:
        batch = row // rows_per_batch
        step = row - batch * rows_per_batch
        start = logits_ptr + batch.to(tl.int64) * stride_b + step.to(tl.int64) * stride_t
    return start


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
    unseen = old_max == float("-inf")
    return (tl.where(unseen, 0.0, old_max) - tl.where(unseen, 0.0, new_max)) * scale


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
def load_columns(logits_row, offs_v, dtype: tl.constexpr, VOCAB: tl.constexpr, MASKED: tl.constexpr):
    """Read a block of one row; columns that do not exist come in as -inf and change no sum."""
    if MASKED:
        logits = tl.load(logits_row + offs_v, mask=offs_v < VOCAB, other=float("-inf"))
    else:
        logits = tl.load(logits_row + offs_v)
    return logits.to(dtype)


@triton.jit
def measure_block(maximum, logits, scale, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """New maximum per lane, by how many bits it moved, and the block in bits below it with its 2^bits."""
    new_maximum = tl.maximum(maximum, lane_max(logits, LANES, VECTOR))
    base = lane_spread(finite_base(new_maximum), logits.shape[0], LANES, VECTOR)
    bits = (logits - base) * scale
    return new_maximum, rebase_shift(maximum, new_maximum, scale), bits, tl.exp2(bits)


@triton.jit
def absorb_target(
    max_t,
    sum_t,
    sum_u,
    target,
    sum_s,
    shift_s,
    bits_s,
    exp_s,
    scale,
    MEASURE: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Add one block of a target's logits to the states of the lanes; sum_s is the student's before the block.

    MEASURE names what sum_u collects: "reverse_kl", "forward_kl" or "none".
    """
    max_t, shift_t, bits_t, exp_t = measure_block(max_t, target, scale, LANES, VECTOR)
    weight_t = tl.exp2(shift_t)
    if MEASURE == "reverse_kl":
        terms = difference_terms(exp_s, bits_s, bits_t, bits_s == float("-inf"))
        sum_u = rebase_difference(sum_u, sum_s, tl.exp2(shift_s), shift_s - shift_t)
        sum_u += lane_sum(terms, LANES, VECTOR)
    elif MEASURE == "forward_kl":
        terms = difference_terms(exp_t, bits_t, bits_s, bits_t == float("-inf"))
        sum_u = rebase_difference(sum_u, sum_t, weight_t, shift_t - shift_s)
        sum_u += lane_sum(terms, LANES, VECTOR)
    sum_t = sum_t * weight_t + lane_sum(exp_t, LANES, VECTOR)
    return max_t, sum_t, sum_u


@triton.jit
def absorb_student(sum_s, sum_h, shift_s, bits_s, exp_s, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Add one measured block of the student to the sums of the lanes, after the targets."""
    weight_s = tl.exp2(shift_s)
    sum_h = weight_s * (sum_h + sum_s * shift_s)
    sum_h += lane_sum(exp_s * tl.where(bits_s == float("-inf"), 0.0, bits_s), LANES, VECTOR)
    return sum_s * weight_s + lane_sum(exp_s, LANES, VECTOR), sum_h


@triton.jit
def merge_student(max_s, sum_s, sum_h, scale):
    """Join a vector of the student's states into one; in any order, as the merge is associative."""
    top_s = tl.max(max_s, axis=0)
    shift_s = rebase_shift(max_s, top_s, scale)
    weight_s = tl.exp2(shift_s)
    merged_h = tl.sum(weight_s * (sum_h + sum_s * shift_s), axis=0)
    return top_s, tl.sum(sum_s * weight_s, axis=0), merged_h


@triton.jit
def merge_target(max_t, sum_t, sum_u, max_s, sum_s, scale, MEASURE: tl.constexpr):
    """Join a vector of a target's states into one, beside the student's of the same columns."""
    top_t = tl.max(max_t, axis=0)
    shift_t = rebase_shift(max_t, top_t, scale)
    weight_t = tl.exp2(shift_t)
    shift_s = rebase_shift(max_s, tl.max(max_s, axis=0), scale)
    if MEASURE == "reverse_kl":
        sum_u = rebase_difference(sum_u, sum_s, tl.exp2(shift_s), shift_s - shift_t)
    elif MEASURE == "forward_kl":
        sum_u = rebase_difference(sum_u, sum_t, weight_t, shift_t - shift_s)
    return top_t, tl.sum(sum_t * weight_t, axis=0), tl.sum(sum_u, axis=0)


@triton.jit
def load_side(state_ptr, row, SIDE: tl.constexpr, SIDES: tl.constexpr, SPLITS: tl.constexpr):
    """Read one side's states, one per program of the row, in float64: a handful of numbers."""
    offs = row.to(tl.int64) * (3 * SIDES * SPLITS) + 3 * SIDE * SPLITS + tl.arange(0, SPLITS)
    maximum = tl.load(state_ptr + offs).to(tl.float64)
    total = tl.load(state_ptr + offs + SPLITS).to(tl.float64)
    measured = tl.load(state_ptr + offs + 2 * SPLITS).to(tl.float64)
    return maximum, total, measured


@triton.jit
def store_side(state_ptr, row, split, maximum, total, measured, SIDE, SIDES, SPLITS: tl.constexpr):
    """Leave one side's state of one program."""
    state = state_ptr + row.to(tl.int64) * (3 * SIDES * SPLITS) + 3 * SIDE * SPLITS + split
    tl.store(state, maximum)
    tl.store(state + SPLITS, total)
    tl.store(state + 2 * SPLITS, measured)


@triton.jit
def load_student(state_ptr, row, scale, SIDES: tl.constexpr, SPLITS: tl.constexpr):
    """Joined state of the student over all programs of a row."""
    max_s, sum_s, sum_h = load_side(state_ptr, row, 0, SIDES, SPLITS)
    return merge_student(max_s, sum_s, sum_h, scale)


@triton.jit
def load_target(
    state_ptr,
    row,
    scale,
    SIDE: tl.constexpr,
    MEASURE: tl.constexpr,
    SIDES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Joined state of a target over all programs of a row; SIDE is 1 for the teacher, 2 for the reference."""
    max_s, sum_s, _ = load_side(state_ptr, row, 0, SIDES, SPLITS)
    max_t, sum_t, sum_u = load_side(state_ptr, row, SIDE, SIDES, SPLITS)
    return merge_target(max_t, sum_t, sum_u, max_s, sum_s, scale, MEASURE)


@triton.jit
def log2_of_mass(total):
    """log2 of a sum of exponentials in float64; NaN for a row without any mass."""
    return tl.where(total == 0.0, float("nan"), tl.log2(tl.where(total == 0.0, 1.0, total)))


@triton.jit
def mixture_log_ratios(log_ratio, none_s, none_t, beta):
    """log(p/m) and log(q/m) for m = (1 - beta) p + beta q, from log_ratio = log q - log p in nats.

    Only exp(-|log_ratio|) is taken, so nothing overflows. A column without student (teacher) mass has
    log(q/m) = -log beta (log(p/m) = -log(1 - beta)), as a ratio has whose exponential is 0; the other of the
    two is then a finite number that meets a zero weight.
    """
    ratio = tl.where(none_t, -1e4, tl.where(none_s, 1e4, log_ratio))
    teacher_below = ratio <= 0.0
    small = tl.exp(tl.where(teacher_below, ratio, -ratio))
    rest = 1.0 - beta
    mixture = tl.log(tl.where(teacher_below, rest + beta * small, rest * small + beta))
    log_pm = tl.where(teacher_below, -mixture, -mixture - ratio)
    log_qm = tl.where(teacher_below, ratio - mixture, -mixture)
    return log_pm, log_qm
