"""Which backend runs, and what is said when one cannot."""

import sys
from types import SimpleNamespace

import pytest
import torch

from sod_kernels import BackendUnavailableError, _dispatch, backends, step_kl

LOGITS = torch.zeros(2, 3)


@pytest.fixture
def fake_backends(monkeypatch):
    """Replace the compiled backends by stand-ins with the given reasons; None means that it runs."""

    def install(**reasons):
        for name, reason in reasons.items():
            module = SimpleNamespace(availability=lambda device_type, reason=reason: reason)
            monkeypatch.setitem(sys.modules, f"sod_kernels.{name}.backend", module)
        _dispatch._import_error.cache_clear()

    yield install
    _dispatch._import_error.cache_clear()


def test_backends_lists_availability_or_a_reason_for_each():
    table = backends()
    assert list(table) == ["reference", "native", "triton"]
    assert table["reference"].available == {"cpu": True, "cuda": True}
    for status in table.values():
        assert set(status.available) == {"cpu", "cuda"}
        assert {kind for kind, is_there in status.available.items() if not is_there} == set(status.reason)
        assert all(reason.endswith(".") for reason in status.reason.values())


def test_auto_prefers_native_on_the_cpu(fake_backends):
    fake_backends(native=None, triton=None)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert _dispatch.resolve("auto", "cpu", dtype) == "native"
    assert _dispatch.resolve("auto", "cpu", torch.float64) == "reference"


def test_auto_prefers_triton_on_cuda(fake_backends):
    fake_backends(native=None, triton=None)
    assert _dispatch.resolve("auto", "cuda", torch.bfloat16) == "triton"


def test_auto_takes_the_reference_where_the_fast_one_cannot_run(fake_backends):
    fake_backends(native="No compiler.", triton="No GPU.")
    assert _dispatch.resolve("auto", "cpu", torch.float32) == "reference"
    assert _dispatch.resolve("auto", "cuda", torch.float32) == "reference"
    assert step_kl(LOGITS, LOGITS).backend == "reference"


def test_by_name_says_why_not_and_what_to_do(fake_backends):
    fake_backends(native="No compiler.", triton=None)
    message = "step_kl: backend='native' cannot run on 'cpu' for torch.float32. native: No compiler."
    with pytest.raises(
        BackendUnavailableError, match=f"{message} Use backend='auto' or one of: reference, triton"
    ):
        step_kl(LOGITS, LOGITS, backend="native")


def test_native_takes_no_float64(fake_backends):
    fake_backends(native=None, triton=None)
    with pytest.raises(BackendUnavailableError, match="compute in float32 and take no float64 logits"):
        _dispatch.resolve("native", "cpu", torch.float64)


def test_no_backend_at_all(fake_backends):
    fake_backends(native="No.", triton="No.")
    with pytest.raises(BackendUnavailableError, match=r"'mps'.*Move the logits to the CPU"):
        _dispatch.resolve("auto", "mps", torch.float32)


def test_a_backend_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "sod_kernels.native.backend", None)
    _dispatch._import_error.cache_clear()
    try:
        status = backends()["native"]
        assert not any(status.available.values())
        assert "sod_kernels.native.backend cannot be imported" in status.reason["cpu"]
        with pytest.raises(BackendUnavailableError, match="cannot be imported"):
            _dispatch.load("native")
        assert step_kl(LOGITS, LOGITS).backend == "reference"
    finally:
        _dispatch._import_error.cache_clear()


def test_the_chosen_backend_is_visible():
    assert step_kl(LOGITS, LOGITS, backend="reference").backend == "reference"
    assert step_kl(LOGITS.double(), LOGITS.double()).backend == "reference"
