"""Off the CPU nothing waits for the device: tensors without values stand for those nobody may look at."""

import pytest
import torch
from linear_inputs import PACKED_IDS, PACKED_TRAJECTORY

from sod_kernels import TurnWeighting, linear_step_kl
from sod_kernels.linear import heads, rows
from sod_kernels.linear.double import run_backward, run_forward
from sod_kernels.linear.heads import Wanted
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.linear.single import run_single_sweep
from sod_kernels.reference import backend
from sod_kernels.types import TokenGradients

NUM_ROWS, NUM_COLUMNS = PACKED_IDS.numel(), 16
EVERYTHING = Wanted(hidden=True, weight=True, bias=True)


def _device(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _arguments(softcap):
    inputs = LinearInputs(
        _device(NUM_ROWS, 8),
        _device(NUM_COLUMNS + 2, 8),
        _device(NUM_COLUMNS + 2),
        _device(NUM_ROWS, 12),
        _device(NUM_COLUMNS, 12),
        None,
        _device(NUM_ROWS, 8),
        _device(NUM_COLUMNS, 8),
        None,
        # On the host, as the documentation asks.
        PACKED_IDS,
        _device(NUM_ROWS, dtype=torch.int64),
    )
    names = ("reverse_kl", 0.5, 1.0, NUM_COLUMNS, None, 4, "reference")
    return inputs, LinearOptions(6, 1.1, 1.0, 1.0, softcap, None, None, *names)


def _shapes(tensors):
    assert all(each.device.type == "meta" for each in tensors)
    return [(tuple(each.shape), each.dtype) for each in tensors]


GRADIENTS = [
    ((NUM_ROWS, 8), torch.float32),
    ((NUM_COLUMNS + 2, 8), torch.float32),
    ((NUM_COLUMNS + 2,), torch.float32),
]


@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_single_sweep_looks_at_no_value(softcap, is_mixed, monkeypatch):
    monkeypatch.setattr(heads, "_has_mixed_product", lambda tensor, dtype: is_mixed)
    inputs, options = _arguments(softcap)
    per_row = _device(NUM_ROWS, dtype=torch.float32)
    numbers = (0, 0.2, 1e-6, 0.2, 0.28, 3.0, 0.5, 0.1, "kl", "sequence_mean")
    objective = Objective(PACKED_TRAJECTORY, None, per_row, None, per_row, per_row, *numbers)
    outputs = run_single_sweep(inputs, options, objective, EVERYTHING)
    tokens = [((NUM_ROWS,), torch.float32)] * 5
    steps = [((6, 5), torch.float64), ((6,), torch.float32)]
    assert _shapes(outputs) == [((), torch.float32), *tokens, *steps, *GRADIENTS]


@pytest.mark.parametrize("is_mixed", [True, False])
def test_two_sweeps_look_at_no_value(is_mixed, monkeypatch):
    monkeypatch.setattr(heads, "_has_mixed_product", lambda tensor, dtype: is_mixed)
    inputs, options = _arguments(None)
    stats = run_forward(inputs, options)
    upstream = TokenGradients(*(_device(NUM_ROWS, dtype=torch.float32) for _ in range(4)))
    assert _shapes(run_backward(upstream, inputs, options, stats.row_state, EVERYTHING)) == GRADIENTS


@pytest.mark.parametrize("single_sweep", [True, False])
def test_front_door_takes_ids_on_the_host(single_sweep, monkeypatch):
    monkeypatch.setattr(backend, "availability", lambda device_type: None)
    inputs, _ = _arguments(None)
    out = linear_step_kl(
        inputs.student_hidden.requires_grad_(),
        inputs.student_weight.requires_grad_(),
        inputs.teacher_hidden,
        inputs.teacher_weight,
        PACKED_IDS,
        step_trajectory=PACKED_TRAJECTORY,
        vocab_size=NUM_COLUMNS,
        weighting=TurnWeighting(),
        token_weights=_device(NUM_ROWS),
        denominator=7.0,
        single_sweep=single_sweep,
        backend="reference",
    )
    out.loss.backward()
    assert inputs.student_weight.grad.dtype == torch.bfloat16
    assert out.step_weights.device.type == "meta"


def test_pinned_copies_of_a_captured_call_live_on(monkeypatch):
    class Pinned:
        """A host tensor on a machine without a driver to pin memory for."""

        device = torch.device("cpu")

        def pin_memory(self):
            return self

        def to(self, device, *, non_blocking):
            return (device.type, non_blocking)

    for is_capturing in (False, True):
        monkeypatch.setattr(rows, "_CAPTURED", [])
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda answer=is_capturing: answer)
        source = Pinned()
        copy = rows.to_device(source, torch.device("cuda"))
        assert copy == ("cuda", True)
        kept = rows._CAPTURED
        assert kept == ([source] if is_capturing else [])
