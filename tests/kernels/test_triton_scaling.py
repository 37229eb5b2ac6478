"""Scaling of kept gradients: the numbers of torch, and a factor of 1 that leaves every bit alone."""

import pytest
import torch

pytest.importorskip("triton")

from sod_kernels.triton.config import SCALE_BLOCK, SCALE_TURNS
from sod_kernels.triton.scaling import scale_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("size", [0, 1, SCALE_BLOCK + 3, SCALE_BLOCK * SCALE_TURNS + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_of_torch(dtype, size):
    values = torch.randn(size, dtype=torch.float64, device=DEVICE).to(dtype)
    factor = torch.tensor(0.37, dtype=torch.promote_types(dtype, torch.float32), device=DEVICE)
    wanted = values * factor
    scale_(values, factor)
    # The interpreter cuts bfloat16 off where it should round.
    step = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(values, wanted, rtol=step, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_behind_the_values_stays(dtype):
    values = torch.ones(3, SCALE_BLOCK + 7, dtype=dtype, device=DEVICE)
    scale_(values[:2], torch.tensor(2.0, dtype=torch.promote_types(dtype, torch.float32), device=DEVICE))
    assert bool((values[:2] == 2).all())
    assert bool((values[2] == 1).all())


def test_a_factor_of_one_leaves_every_bit():
    # A multiplication would make this NaN a quiet one.
    bits = torch.tensor([0x7F800001, 0x3F800000, -1], dtype=torch.int32, device=DEVICE)
    values = bits.view(torch.float32).clone()
    scale_(values, torch.ones((), device=DEVICE))
    assert torch.equal(values.view(torch.int32), bits)
