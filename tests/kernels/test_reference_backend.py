"""The reference against textbook formulas in float64 with autograd, on every awkward case."""

import pytest
import torch

import sod_kernels.reference.backend as reference
from sod_kernels.reference.rows import blocks
from sod_kernels.testing import (
    CASE_REASONS,
    check_backend_forward_backward,
    check_backend_log_probs,
    check_backend_single_visit,
    check_issue_targets,
    make_case,
)

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SMALL = [name for name in CASE_REASONS if name != "full_vocab"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", SMALL)
def test_matches_autograd_in_float64(name, divergence, dtype):
    check_backend_forward_backward(reference, make_case(name, divergence=divergence, dtype=dtype))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", ["plain", "scattered_steps", "no_tokens"])
def test_works_without_sampled_ids(name, divergence):
    check_backend_forward_backward(reference, make_case(name, divergence=divergence, with_sampled=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", SMALL)
def test_second_target(name, divergence, dtype):
    case = make_case(name, divergence=divergence, dtype=dtype, with_reference=True)
    check_backend_forward_backward(reference, case)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_both_sweeps_in_one_call(divergence):
    check_backend_single_visit(reference, make_case("plain", divergence=divergence, with_reference=True))


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("name", SMALL)
def test_floor_under_the_log_probs(name, divergence):
    check_backend_forward_backward(reference, make_case(name, divergence=divergence, min_log_prob=-6.0))
    case = make_case(name, divergence=divergence, min_log_prob=-6.0, with_reference=True)
    check_backend_forward_backward(reference, case)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_promised_accuracy_at_a_real_vocabulary(divergence):
    case = make_case("full_vocab", divergence=divergence)
    check_backend_forward_backward(reference, case)
    check_issue_targets(reference, case)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1000), (1000, 2), (1, 0), (0, 4)])
@pytest.mark.parametrize("vocab_size", [1, 4096, 1 << 22])
def test_blocks_cover_every_row_once(shape, vocab_size):
    seen = torch.zeros(shape, dtype=torch.int64)
    for block in blocks(shape, vocab_size):
        seen[block] += 1
        assert seen[block].numel() * vocab_size <= max(1 << 20, vocab_size)
    assert bool((seen == 1).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASE_REASONS)
def test_log_probs_match_autograd_in_float64(name, dtype):
    check_backend_log_probs(reference, make_case(name, dtype=dtype))


def test_says_where_it_cannot_run():
    assert reference.availability("cpu") is None
    assert reference.availability("cuda") is None
    assert "float64" in reference.availability("mps")
