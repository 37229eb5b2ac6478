"""Nothing waits for the device: values are read where they are on the host, and tensors without any pass."""

import re
from pathlib import Path

import pytest
import torch

import sod_kernels
from sod_kernels import SodWeighting, step_kl, token_log_probs, topk_step_kl
from sod_kernels.reference import backend

READS_A_VALUE = re.compile(r"\.(?:item|tolist|nonzero|cpu|numpy)\(|torch\.nonzero\(|synchronize\(")
# Where reading is right: values on the host, or the one wait that is documented.
ALLOWED = {
    "_layout.py": "the number of steps, where it is not given",
    "alignment.py": "tokens of tokenizers, on the host",
    "functional/unit_frame.py": "the kinds of units, on the host",
    "linear/plan.py": "step ids on the host",
    "linear/sweep.py": "step ids on the host",
    "linear/units.py": "units on the host",
    "units.py": "a vocabulary map as it is saved",
    "vocab_report.py": "a report about a vocabulary map",
}


def test_values_are_read_only_where_they_are_on_the_host():
    root = Path(sod_kernels.__file__).parent
    reading = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if READS_A_VALUE.search(path.read_text(encoding="utf-8"))
    }
    # Checks look only where `can_look` says so, and `testing` is for tests.
    assert {name for name in reading if not name.startswith(("_checks/", "testing/"))} == set(ALLOWED)


def _device(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_functions_of_logits_look_at_no_value(divergence, monkeypatch):
    monkeypatch.setattr(backend, "availability", lambda device_type: None)
    student, teacher = _device(2, 6, 13).requires_grad_(), _device(2, 6, 13)
    step_ids, sampled = (_device(2, 6, dtype=torch.int64) for _ in range(2))
    options = {
        "sampled_ids": sampled,
        "num_steps": 4,
        "divergence": divergence,
        "step_divergence": "abs_log_ratio",
        "weighting": SodWeighting(),
        "reduction": "sequence_mean",
        "backend": "reference",
    }
    losses = [step_kl(student, teacher, step_ids, reference_logits=teacher, **options).loss]
    lists = (_device(2, 6, 3), _device(2, 6, 3, dtype=torch.int64))
    losses += [
        topk_step_kl(student, *lists, step_ids, tail=tail, **options).loss
        for tail in ("bucket", "renormalise", "drop")
    ]
    losses.append(token_log_probs(student, sampled, backend="reference").log_probs.sum())
    for loss in losses:
        (grad,) = torch.autograd.grad(loss, student)
        assert loss.device.type == grad.device.type == "meta"
        assert grad.shape == student.shape
