"""Whole runs whose rollouts are transformers' continuous batching of the trained module."""

from __future__ import annotations

import math

import pytest
import torch
from training_runs import trainer_of
from transformers import AutoModelForCausalLM

from sod.packing import pack
from sod.rollout.store import read_trajectories
from sod.scoring import row_log_probs, row_states
from sod.tokenization import tokenize_trajectory

pytestmark = pytest.mark.timeout(300)

ENGINE = '[engine]\nname = "continuous"\nnum_pages = 512\nmax_batch_tokens = 256\n'
SHORT = ("trainer.rounds=2", "evaluation.every=2")


def test_a_run_stays_on_policy_and_learns(arithmetic, metric_rows):
    trainer = trainer_of(arithmetic.toml("continuous", more=ENGINE), *SHORT)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    result = trainer.train()
    rows = metric_rows(result.folder / "metrics.jsonl")
    updates = [row for row in rows if row["kind"] == "update"]
    assert len(updates) == 8
    # The first update of each round scores what was sampled with the very same weights.
    firsts = [row["alignment/gap_max"] for row in updates if "alignment/gap_max" in row]
    assert len(firsts) == 2
    assert max(firsts) < 1e-4
    later = [row["alignment/step_gap_max"] for row in updates if "alignment/step_gap_max" in row]
    assert min(later) > max(firsts)
    stored = [read_trajectories(path) for path in sorted((result.folder / "trajectories").iterdir())]
    versions = [{turn.policy_version for one in each for turn in one.turns} for each in stored]
    assert versions == [{0}, {4}]
    # Several turns with the tool's answers between them, in rows of unlike length.
    assert max(len(one.turns) for each in stored for one in each) > 1
    assert len({len(one.turns[0].sampled_ids) for one in stored[0]}) > 1
    assert [row["kind"] for row in rows].count("eval") == 2
    assert updates[-1]["kl/token_mean"] < updates[0]["kl/token_mean"]
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("engine", ["lockstep", "continuous"])
def test_a_cut_vocabulary_is_counted_and_what_it_explains_is_no_misalignment(arithmetic, metric_rows, engine):
    more = ENGINE if engine == "continuous" else ""
    sets = ("rollout.top_p=0.7", "trainer.rounds=1", "trainer.epochs=1", "evaluation.every=1")
    toml = arithmetic.toml(f"cut_{engine}", algorithm='name = "opd"', more=more)
    trainer = trainer_of(toml, *sets)
    before = trainer.model.state_dict()["model.embed_tokens.weight"].clone()
    rows = metric_rows(trainer.train().folder / "metrics.jsonl")
    assert not torch.equal(before, trainer.model.state_dict()["model.embed_tokens.weight"])
    (of_round,) = [row for row in rows if row["kind"] == "round"]
    assert of_round["rollout/truncated_share"] == 1.0
    first = next(row for row in rows if row["kind"] == "update")
    assert first["alignment/gap_max"] < 1e-4
    # Greedy evaluations cut nothing.
    assert {row["eval/truncated_share"] for row in rows if row["kind"] == "eval"} == {0.0}
    stored = read_trajectories(trainer.config.run.output / "trajectories" / "round_0000.jsonl.gz")
    (batch,) = pack(
        [tokenize_trajectory(one) for one in stored], range(len(stored)), max_tokens=10**6, pad_id=0
    )
    start = AutoModelForCausalLM.from_pretrained(arithmetic.student)
    whole = row_log_probs(
        row_states(start, batch), batch.labels, temperature=0.9, vocab_size=trainer.parts.vocab_size
    )
    excess = (batch.row_log_probs - whole).max().item()
    # Lockstep gives log-probs before the cut; the other engine those after it.
    if engine == "lockstep":
        assert excess == pytest.approx(0.0, abs=1e-4)
    else:
        assert 0.05 < excess <= -math.log(0.7) + 1e-4
