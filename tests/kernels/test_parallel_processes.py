"""`step_kl` over vocabulary-parallel logits in real processes, against one process with all columns."""

import pytest
import torch
from parallel_ranks import (
    COLUMNS,
    GRADIENT,
    LINEAR_SCENARIOS,
    OUTPUTS,
    SCENARIOS,
    TOPK_OUTPUTS,
    TOPK_SCENARIOS,
    run,
    run_linear,
    run_topk,
    work,
)


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def assert_parts_of(whole, ranks, key, outputs, dtype):
    rounding = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    width = COLUMNS // len(ranks)
    for rank, results in enumerate(ranks):
        for name in outputs:
            torch.testing.assert_close(results[key][name], whole[name], **rounding)
        columns = slice(rank * width, (rank + 1) * width)
        torch.testing.assert_close(results[key][GRADIENT], whole[GRADIENT][..., columns], **rounding)
    assert float(whole[GRADIENT].nan_to_num().abs().max()) > 1e-3


@pytest.mark.parametrize("key", SCENARIOS)
def test_equals_one_process(ranks, key):
    scenario = SCENARIOS[key]
    whole = run(*scenario, lambda logits: logits, None)
    assert_parts_of(whole, ranks, key, OUTPUTS, scenario[2])
    if scenario[0] == "infinite" and scenario[1] in ("reverse_kl", "forward_kl"):
        assert bool(whole["token_kl"].isinf().any())
    else:
        assert float(whole["token_kl"].min()) >= 0.0 < float(whole["token_kl"].max()) < torch.inf


@pytest.mark.parametrize("key", TOPK_SCENARIOS)
def test_lists_equal_one_process(ranks, key):
    scenario = TOPK_SCENARIOS[key]
    whole = run_topk(*scenario, lambda logits: logits, None)
    assert_parts_of(whole, ranks, key, TOPK_OUTPUTS, scenario[3])


@pytest.mark.parametrize("key", LINEAR_SCENARIOS)
def test_heads_equal_one_process(ranks, key):
    whole = run_linear(*LINEAR_SCENARIOS[key], lambda rows: rows, None)
    rounding = {"rtol": 1e-9, "atol": 1e-11}
    width = COLUMNS // len(ranks)
    for rank, results in enumerate(ranks):
        for name in TOPK_OUTPUTS:
            torch.testing.assert_close(results[key][name], whole[name], **rounding)
        hidden, *of_rows = results[key][GRADIENT]
        torch.testing.assert_close(hidden, whole[GRADIENT][0], **rounding)
        assert torch.equal(hidden, ranks[0][key][GRADIENT][0])
        for ours, wanted in zip(of_rows, whole[GRADIENT][1:], strict=True):
            torch.testing.assert_close(ours, wanted[rank * width : (rank + 1) * width], **rounding)


@pytest.mark.parametrize("key", [*SCENARIOS, *TOPK_SCENARIOS, *LINEAR_SCENARIOS])
def test_every_rank_has_the_same_bits(ranks, key):
    for results in ranks[1:]:
        for name in TOPK_OUTPUTS:
            assert torch.equal(results[key][name], ranks[0][key][name]), name


def test_ranks_that_disagree_all_say_so(ranks):
    for results in ranks:
        assert results["unequal widths"] == (
            "ValueError: step_kl: student_logits has shape (2, 3, 4) on rank 0 of process_group and "
            "(2, 3, 5) on rank 1; wanted the same rows and equal shards of the vocabulary. Pad "
            "the vocabulary to a multiple of the number of ranks and give vocab_size=."
        )
        assert results["unequal heads"] == (
            "ValueError: linear_topk_step_kl: student_hidden and student_weight make logits of (4, 3) on "
            "rank 0 of process_group and (4, 4) on rank 1; wanted the same rows and equal shards of the "
            "vocabulary. Pad the vocabulary to a multiple of the number of ranks and give vocab_size=."
        )
        assert "has shape (2, 4) on rank 0 of process_group and (3, 4) on rank 1" in results["unequal rows"]


def test_a_group_without_this_process_is_refused(ranks):
    assert ranks[0]["not a member"] == "no error"
    for results in ranks[1:]:
        assert results["not a member"] == (
            "ValueError: step_kl: process_group is a group that this process is not in; wanted one "
            "that it is in. Call step_kl on the group's members only."
        )
