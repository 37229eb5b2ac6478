"""Memory and rates of the machine the tests run on."""

import pytest
import torch

from benchmarks.device import CpuDevice, make_device, measure_bandwidth, measure_matmuls

MEBIBYTE = 2**20


class Clock(CpuDevice):
    """A CPU whose every call takes a second."""

    def seconds(self, run):
        run()
        return 1.0


def test_peak_extra_memory_is_that_of_the_call():
    device = CpuDevice()

    def run():
        scratch = torch.ones(48 * MEBIBYTE, dtype=torch.uint8)
        return torch.ones(16 * MEBIBYTE, dtype=torch.uint8) + scratch[: 16 * MEBIBYTE]

    for _ in range(2):
        # The second time, pages that the first left behind must not hide it.
        peak, result = device.peak_extra_bytes(run)
        assert result.sum() == 2 * result.numel()
        del result
        assert 72 * MEBIBYTE <= peak <= 100 * MEBIBYTE


def test_memory_held_before_the_call_does_not_count():
    held = torch.ones(64 * MEBIBYTE, dtype=torch.uint8)
    peak, _ = CpuDevice().peak_extra_bytes(lambda: held[:1].clone())
    assert peak < 8 * MEBIBYTE


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="--device cuda was asked for, but torch finds no CUDA device"):
        make_device("cuda")


def test_bandwidth_counts_reading_once_and_copying_twice():
    bandwidth = measure_bandwidth(Clock(), size_bytes=4096, rounds=1)
    assert (bandwidth.read, bandwidth.copy) == (4096.0, 8192.0)


@pytest.mark.parametrize(("most_rows", "seconds"), [(100, 4.0), (5, 8.0)])
def test_products_of_more_rows_than_are_run_are_scaled(most_rows, seconds):
    student, teacher = (torch.ones(10, 3), torch.ones(7, 3)), (torch.ones(10, 4), torch.ones(7, 4))
    assert measure_matmuls(Clock(), student, teacher, most_rows=most_rows) == seconds
