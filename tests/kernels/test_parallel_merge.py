"""Shards of the columns, merged in one process, against the truth of the whole rows."""

from types import SimpleNamespace

import pytest
import torch

import sod_kernels.reference.backend as reference
from sod_kernels.testing import (
    CASE_REASONS,
    check_backend_log_prob_shards,
    check_backend_shards,
    make_case,
)

# The full vocabulary is slow and no different.
NAMES = [name for name in CASE_REASONS if name != "full_vocab"]

CASES = [
    pytest.param(name, dtype, id=f"{name}-{dtype}")
    for name in NAMES
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    # The shards exchange log-sum-exps in float64, and one of 1e4 has only 1e-12 left.
    if not (dtype == torch.float64 and name.startswith("shifted"))
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_merged_shards_are_the_whole(name, divergence, dtype):
    case = make_case(name, divergence=divergence, dtype=dtype, with_reference=dtype != torch.bfloat16)
    for num_shards in (2, 3):
        check_backend_shards(reference, case, num_shards)


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize(
    "name", ["plain", "disjoint", "padded_vocab", "leading_block", "bad_rows", "one_column"]
)
def test_merged_shards_with_a_floor_are_the_whole(name, divergence, with_reference):
    case = make_case(
        name,
        divergence=divergence,
        min_log_prob=-3.0,
        with_reference=with_reference,
        dtype=torch.float64,
    )
    check_backend_shards(reference, case, 3)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_merged_log_probs_are_those_of_the_whole(name, dtype):
    for num_shards in (1, 3):
        check_backend_log_prob_shards(reference, make_case(name, dtype=dtype), num_shards)


@pytest.mark.parametrize("num_shards", [1, 5, 8])
def test_any_number_of_shards_and_no_sampled_ids(num_shards):
    for name in ("plain", "disjoint", "one_column", "bad_rows"):
        case = make_case(name, with_sampled=False, dtype=torch.float64)
        check_backend_shards(reference, case, num_shards)


def _without_the_whole_row(upstream, inputs, row_state, spec, *, out=None):
    own = reference.forward(inputs._replace(sampled_ids=None), 4, spec).row_state
    return reference.backward(upstream, inputs, own, spec, out=out)


def _without_shards_of_no_mass(inputs, num_steps, spec):
    stats = reference.forward(inputs, num_steps, spec)
    state = stats.row_state
    return stats._replace(row_state=torch.where(state == -torch.inf, torch.nan, state))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plain", {"backward": _without_the_whole_row}, "gradient: error"),
        ("disjoint", {"forward": _without_shards_of_no_mass}, "token_kl: nan at"),
    ],
)
def test_the_check_catches_a_backend_that_knows_its_shard_only(name, change, message):
    backend = SimpleNamespace(**{"forward": reference.forward, "backward": reference.backward, **change})
    with pytest.raises(AssertionError, match=message):
        check_backend_shards(backend, make_case(name, dtype=torch.float64), 2)
