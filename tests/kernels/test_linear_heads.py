"""One head: projection in the computing dtype, slopes of the softcap, sums of gradients."""

import pytest
import torch

from sod_kernels.linear import heads as module
from sod_kernels.linear.heads import Head, HeadGradients, Wanted, apply_softcap_slope, project, split_in_two


def _head(dtype, *, has_bias=True, scale=0.7, softcap=None):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((9, 6), (14, 6), (14,))
    )
    return Head(hidden, weight, bias if has_bias else None, scale, softcap)


def _exact(head, width):
    logits = head.scale * (head.hidden.double() @ head.weight[:width].double().T)
    if head.bias is not None:
        logits = logits + head.bias[:width].double()
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@pytest.mark.parametrize("tile_entries", [1, 30, 1 << 22])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_projection_is_not_rounded_to_the_inputs_dtype(dtype, has_bias, softcap, tile_entries, monkeypatch):
    monkeypatch.setattr(module, "_TILE_ENTRIES", tile_entries)
    head = _head(dtype, has_bias=has_bias, softcap=softcap)
    out = torch.full((9, 13), torch.nan, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    project(head, head.hidden, out)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(out.double(), _exact(head, 13), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tile_entries", [1, 30, 1 << 22])
def test_slope_of_the_softcap(tile_entries, monkeypatch):
    monkeypatch.setattr(module, "_TILE_ENTRIES", tile_entries)
    raw = 3.0 * torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    raw.requires_grad_()
    capped = 2.0 * torch.tanh(raw / 2.0)
    upstream = torch.linspace(-1, 1, 35, dtype=torch.float64).view(5, 7)
    (exact,) = torch.autograd.grad(capped, raw, upstream)
    grad = upstream.clone()
    apply_softcap_slope(grad, capped.detach(), 2.0)
    torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("tile_entries", [30, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_over_chunks(dtype, tile_entries, monkeypatch):
    monkeypatch.setattr(module, "_TILE_ENTRIES", tile_entries)
    head = _head(dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.randn(9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(compute)
    sums = HeadGradients(head, Wanted(True, True, True), compute)
    of_hidden = torch.cat([sums.add(grad[rows], head.hidden[rows]) for rows in (slice(0, 4), slice(4, 9))])
    exact = grad.double()
    torch.testing.assert_close(
        of_hidden.double(), 0.7 * exact @ head.weight[:13].double(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        sums.weight[:13].double(), 0.7 * exact.T @ head.hidden.double(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(sums.bias[:13].double(), exact.sum(0), rtol=1e-5, atol=1e-5)
    assert not sums.weight[13:].any()
    assert not sums.bias[13:].any()


def test_what_the_memory_held_before_is_in_no_sum(monkeypatch):
    monkeypatch.setattr(
        module.memory, "empty", lambda shape, dtype, device: torch.full(shape, torch.nan, dtype=dtype)
    )
    head = _head(torch.float64)
    grad = torch.ones(9, 13, dtype=torch.float64)
    untouched, one, two, waiting = (
        HeadGradients(head, Wanted(False, True, False), torch.float64) for _ in range(4)
    )
    assert torch.equal(untouched.weight, torch.zeros(14, 6, dtype=torch.float64))
    one.add(grad, head.hidden)
    exact = 0.7 * grad.T @ head.hidden
    torch.testing.assert_close(one.weight[:13], exact)
    assert not one.weight[13:].any()
    waiting.add(grad, head.hidden)
    two.add_scaled(waiting, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(two.weight[:13], 0.5 * exact)
    # Emptied sums do not come back, and a second use starts anew.
    two.add_scaled(waiting, torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(two.weight[:13], 0.5 * exact)
    waiting.add(2.0 * grad, head.hidden)
    two.add_scaled(waiting, torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(two.weight[:13], exact)
    assert not two.weight[13:].any()


def test_only_what_is_wanted_is_computed():
    head = _head(torch.float64)
    grad = torch.ones(9, 14, dtype=torch.float64)
    nothing = HeadGradients(head, Wanted(False, False, False), torch.float64)
    assert (nothing.add(grad, head.hidden), nothing.weight, nothing.bias) == (None, None, None)
    only_hidden = HeadGradients(head, Wanted(True, False, False), torch.float64)
    assert only_hidden.add(grad, head.hidden) is not None
    assert only_hidden.weight is None


def test_scaled_sums_are_added_and_emptied():
    head = _head(torch.float64)
    grad = torch.ones(9, 14, dtype=torch.float64)
    one, other = (HeadGradients(head, Wanted(False, True, True), torch.float64) for _ in range(2))
    one.add(grad, head.hidden)
    other.add(2.0 * grad, head.hidden)
    weight, bias = one.weight.clone(), one.bias.clone()
    one.add_scaled(other, torch.tensor(0.25))
    torch.testing.assert_close(one.weight, 1.5 * weight)
    torch.testing.assert_close(one.bias, 1.5 * bias)
    assert not other.weight.any()
    assert not other.bias.any()


def test_two_bfloat16_numbers_hold_a_float32_one():
    grad = torch.randn(50, 40, generator=torch.Generator().manual_seed(3)) * 1e-9
    high, low = split_in_two(grad, torch.bfloat16).double().chunk(2)
    alone = ((high - grad).norm() / grad.norm()).item()
    both = ((high + low - grad).norm() / grad.norm()).item()
    assert 1e-3 < alone < 2e-3
    assert both < 1e-5
