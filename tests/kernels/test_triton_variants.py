"""The list of binaries holds everything that the backend launches."""

import pytest
import torch
from unit_inputs import random_pair, run_with_gradient

from sod_kernels.testing import make_case, make_log_prob_inputs
from sod_kernels.triton import backend, log_probs, scaling, units
from sod_kernels.triton import launch as launching
from sod_kernels.triton.config import CONFIGS, INTERPRETER
from sod_kernels.triton.variants import variants

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = [
    ("reverse_kl", None),
    ("reverse_kl", -6.0),
    ("forward_kl", None),
    ("forward_kl", -6.0),
    ("jsd", None),
]
# What the shape of the logits decides, not the call.
SIZES = {"VOCAB", "WIDTH", "SPLITS"}


def fingerprint(kernel, meta, absent):
    choices = frozenset((name, value) for name, value in meta.items() if name not in SIZES)
    return tuple(kernel.arg_names), choices, frozenset(absent) & frozenset(kernel.arg_names)


@pytest.fixture
def listed():
    table = variants(CONFIGS[(INTERPRETER, torch.float32)], torch.float32, 130)
    assert len({variant.name for variant in table}) == len(table)
    return {fingerprint(each.kernel, each.meta, each.absent): each for each in table}


@pytest.fixture
def launched(monkeypatch):
    """Fingerprints of what is launched, while it runs as ever."""
    seen = {}

    def record(kernel, programs, *args, num_warps, max_registers=None, **meta):
        absent = [name for name, value in zip(kernel.arg_names, args, strict=False) if value is None]
        seen[fingerprint(kernel, meta, absent)] = (num_warps, max_registers)
        launching.launch(kernel, programs, *args, num_warps=num_warps, max_registers=max_registers, **meta)

    for module in (backend, log_probs, scaling, units):
        monkeypatch.setattr(module, "launch", record)
    return seen


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's table is listed")
def test_everything_that_is_launched_is_listed_and_nothing_else(listed, launched):
    for divergence, floor in KINDS:
        for with_reference in (False, True):
            case = make_case(
                "one_row",
                divergence=divergence,
                min_log_prob=floor,
                with_reference=with_reference,
                device=DEVICE,
            )
            stats = backend.forward(case.inputs, case.num_steps, case.spec)
            backend.backward(case.upstream, case.inputs, stats.row_state, case.spec)
    inputs, upstream = make_log_prob_inputs(make_case("one_row", device=DEVICE))
    stats = backend.log_probs_forward(inputs)
    backend.log_probs_backward(upstream, inputs, stats.row_state)
    pair = random_pair(lengths=[(2, 1)], dtype=torch.float32)
    for divergence in ("reverse_kl", "forward_kl", "jsd"):
        run_with_gradient(pair, backend="triton", divergence=divergence)
    scaling.scale_(torch.ones(3, device=DEVICE), torch.tensor(2.0, device=DEVICE))
    unlisted = [key for key in launched if key not in listed]
    assert unlisted == []
    assert [variant.name for key, variant in listed.items() if key not in launched] == []
    for key, resources in launched.items():
        assert (listed[key].num_warps, listed[key].max_registers) == resources
