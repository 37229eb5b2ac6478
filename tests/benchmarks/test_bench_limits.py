"""The least work, against the floors that the project's brief derives by hand."""

import pytest

from benchmarks.limits import (
    Bandwidth,
    Work,
    limit_s,
    linear_step_kl_work,
    memory_limit_s,
    step_kl_work,
    topk_step_kl_work,
    work,
)
from benchmarks.shapes import PAIRS, Case

VOCAB = 151_936


def qwen(op, rows=1, dtype="bfloat16"):
    return Case(op=op, pair=PAIRS["qwen3-0.6b-from-4b"], rows=rows, dtype=dtype)


@pytest.mark.parametrize(("has_backward", "per_token"), [(False, 4 * VOCAB), (True, 10 * VOCAB)])
def test_step_kl_reads_both_logits_and_writes_the_gradient(has_backward, per_token):
    assert step_kl_work(qwen("step_kl", rows=7), has_backward=has_backward).bytes == 7 * per_token


@pytest.mark.parametrize(("has_backward", "per_token"), [(False, 2 * VOCAB), (True, 6 * VOCAB)])
def test_topk_reads_the_student_alone(has_backward, per_token):
    case = qwen("topk_step_kl", rows=7)
    listed = 7 * case.top_k * 12
    assert topk_step_kl_work(case, has_backward=has_backward).bytes == 7 * per_token + listed


@pytest.mark.parametrize(("has_backward", "gigaflops"), [(False, 1.089), (True, 1.711)])
def test_linear_step_kl_multiplies_each_head_once(has_backward, gigaflops):
    needed = linear_step_kl_work(qwen("linear_step_kl"), has_backward=has_backward)
    assert needed.matmul_flops / 1e9 == pytest.approx(gigaflops, abs=1e-3)
    # The divergence itself is next to nothing beside the products.
    assert needed.matmul_flops < needed.flops < 1.01 * needed.matmul_flops


def test_linear_step_kl_reads_the_heads_once_however_many_rows():
    few, many = (linear_step_kl_work(qwen("linear_step_kl", rows=n), has_backward=True) for n in (1, 101))
    # A row more: its hidden states on both sides read, the student's gradient written.
    assert many.bytes - few.bytes == 100 * (2 * 1024 + 2560) * 2


def test_a_wider_dtype_costs_twice_the_bytes():
    narrow, wide = (
        work(qwen("step_kl", rows=3, dtype=dtype), has_backward=True) for dtype in ("bfloat16", "float32")
    )
    assert wide.bytes == 2 * narrow.bytes
    assert wide.flops == narrow.flops


def test_limit_is_reads_at_the_read_rate_and_the_rest_at_the_copy_rate():
    needed = Work(read_bytes=100, mixed_bytes=30, flops=1, matmul_flops=0)
    bandwidth = Bandwidth(read=10.0, copy=5.0)
    assert memory_limit_s(needed, bandwidth) == 100 / 10 + 30 / 5
    assert limit_s(needed, bandwidth, 0.0) == 16.0


@pytest.mark.parametrize(("matmul_s", "limit"), [(20.0, 20.0), (3.0, 16.0)])
def test_limit_is_the_larger_of_traffic_and_products(matmul_s, limit):
    needed = Work(read_bytes=100, mixed_bytes=30, flops=1, matmul_flops=1)
    assert limit_s(needed, Bandwidth(read=10.0, copy=5.0), matmul_s) == limit
