"""Far steps, and what their samples say for and against the teacher, beside a plain computation."""

from __future__ import annotations

import pytest
import torch

from benchmarks.evidence.guides import FAR, far_steps
from sod.packing import pack
from sod.scoring import row_logits
from sod.tokenization import tokenize_trajectory
from tests.sod.tiny import V, make_model, sampled_trajectories, sharpened


def test_a_far_step_tells_how_sure_the_student_is_and_how_teacherlike_it_was():
    student, teacher = sharpened(make_model(0)), sharpened(sharpened(make_model(1, hidden_size=32)))
    sequences = [tokenize_trajectory(one) for one in sampled_trajectories(student, temperature=1.0, turns=3)]
    (batch,) = pack(sequences, range(5), max_tokens=10_000, pad_id=0)
    found = far_steps(student, teacher, batch, V)
    with torch.no_grad():
        log_p, log_q = (row_logits(one, batch)[:, :V].double().log_softmax(-1) for one in (student, teacher))
    num_near = 0
    for step, (place, turn) in enumerate(
        zip(batch.step_trajectory.tolist(), batch.step_turn.tolist(), strict=True)
    ):
        own = batch.row_steps == step
        p, q, y = log_p[own], log_q[own], batch.labels[own][:, None]
        kl = (p.exp() * (p - q)).sum(-1)
        if float(kl.mean()) <= FAR:
            num_near += 1
            continue
        far = found.pop((batch.trajectories[place], turn))
        assert far.ratio == pytest.approx(float(-(p.exp() * p).sum(-1).mean() / kl.mean()))
        pulls = (q - p).gather(1, y).squeeze(1) - (p.exp() * (q - p)).sum(-1)
        assert far.pull == pytest.approx(float(pulls.sum()))
    assert not found
    assert num_near < batch.num_steps
