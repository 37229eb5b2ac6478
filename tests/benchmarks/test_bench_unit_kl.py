"""The benchmark of `unit_kl`: both formulations agree, and a disagreement stops it."""

import pytest
import torch

from benchmarks import bench_unit_kl as bench


@pytest.fixture
def batch():
    return bench.make_batch(34, (300, 350), 200)


def test_both_formulations_agree(batch):
    gap = bench.check(batch)
    assert gap["loss"] <= 1e-5
    assert gap["gradient"] <= 1e-4
    # Two spans in 34 units, so that the comparison is not of single tokens only.
    lengths = batch.units.student_spans.diff(dim=-1) * batch.units.teacher_spans.diff(dim=-1)
    assert int((lengths > 1).sum()) == 2


def test_both_ways_from_hidden_states_agree_and_are_measured(batch):
    hidden = bench.make_hidden(batch, (12, 20))
    gap = bench.check(hidden)
    assert gap["loss"] <= 1e-5
    assert gap["gradient"] <= 1e-4
    ours, through_logits = bench.measure(hidden, 0.01)
    assert (ours["name"], through_logits["name"]) == ("linear_unit_kl", "through_logits")


def test_a_disagreement_is_not_timed(batch, monkeypatch):
    monkeypatch.setattr(bench, "our_loss", lambda batch: 1.01 * bench.plain_loss(batch))
    with pytest.raises(SystemExit, match=r"loss: both differ by 0\.01; nothing was timed"):
        bench.check(batch)


def test_result_names_both_and_their_memory(batch):
    rows = {row["name"]: row for row in bench.measure(batch, 0.01)}
    assert list(rows) == ["unit_kl", "plain"]
    assert all(row["median_s"] > 0 for row in rows.values())
    assert bench._share(None, 3) is None
    assert bench._share(1, 4) == 0.25
    assert torch.is_tensor(bench.our_loss(batch))
