"""Cases, truth, tolerances and checks for anybody who writes or uses a backend.

Truth is `truth(case)`: the textbook formulas in float64 with autograd. The yardstick is `plain_torch(case)`:
the same few lines in the dtype under test. A backend passes when its error is at most twice the yardstick's
plus a few units of rounding, so that no tolerance has to be guessed::

    for name in CASE_REASONS:
        check_backend_forward_backward(backend, make_case(name, divergence="jsd", dtype=torch.bfloat16))
"""

from sod_kernels.testing.cases import CASE_REASONS, StepKLCase, make_case, make_near_equal_pair
from sod_kernels.testing.checks import (
    assert_error_relative,
    check_backend_forward_backward,
    check_backend_single_visit,
    check_issue_targets,
    nan_filled_empty,
)
from sod_kernels.testing.log_probs import check_backend_log_probs, make_log_prob_inputs
from sod_kernels.testing.shards import check_backend_log_prob_shards, check_backend_shards
from sod_kernels.testing.truth import Truth, plain_torch, truth

__all__ = [
    "CASE_REASONS",
    "StepKLCase",
    "Truth",
    "assert_error_relative",
    "check_backend_forward_backward",
    "check_backend_log_prob_shards",
    "check_backend_log_probs",
    "check_backend_shards",
    "check_backend_single_visit",
    "check_issue_targets",
    "make_case",
    "make_log_prob_inputs",
    "make_near_equal_pair",
    "nan_filled_empty",
    "plain_torch",
    "truth",
]
