"""Pages of large CPU tensors are kept for the next tensors of about their size, and can be given back."""

import pytest
import torch

from sod_kernels.native import backend, loader, memory

MEBIBYTE = 1 << 20
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    loader.unavailable_reason("cpu") is not None, reason="needs the native library"
)


@pytest.fixture(autouse=True)
def _nothing_kept():
    backend.release_memory()
    yield
    backend.release_memory()


def _bytes(size):
    return memory.empty((size,), torch.uint8, CPU)


def test_tensors_of_several_sizes_get_their_own_pages_again():
    sizes = (9 * MEBIBYTE, 30 * MEBIBYTE, 80 * MEBIBYTE)
    tensors = [_bytes(size) for size in sizes]
    addresses = [tensor.data_ptr() for tensor in tensors]
    assert len(set(addresses)) == 3
    tensors.clear()
    # In another order than they were given back.
    again = {size: _bytes(size) for size in reversed(sizes)}
    assert [again[size].data_ptr() for size in sizes] == addresses


def test_a_tensor_is_uninitialised_writable_and_of_the_shape_asked_for():
    tensor = memory.empty((3, 5, 1 << 20), torch.float32, CPU)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, 5, 1 << 20), torch.float32, True)
    assert float(tensor.fill_(2.0).sum()) == 2.0 * tensor.numel()


def test_a_smaller_tensor_leaves_large_pages_to_whom_they_fit():
    address = _bytes(40 * MEBIBYTE).data_ptr()
    small = _bytes(20 * MEBIBYTE)
    assert small.data_ptr() != address
    assert _bytes(30 * MEBIBYTE).data_ptr() == address


def test_what_has_been_outgrown_goes_back():
    del [_bytes(20 * MEBIBYTE)][0]
    grown = _bytes(24 * MEBIBYTE)
    assert backend.release_memory() == 0
    del grown
    assert backend.release_memory() == 24 * MEBIBYTE


def test_only_the_last_four_are_kept():
    sizes = [size * MEBIBYTE for size in (10, 20, 40, 80, 160)]
    tensors = [_bytes(size) for size in sizes]
    while tensors:
        del tensors[0]
    assert backend.release_memory() == sum(sizes[1:])


def test_small_tensors_come_from_the_heap_and_those_of_other_devices_from_there():
    del [_bytes(MEBIBYTE)][0]
    assert backend.release_memory() == 0
    assert memory.empty((1 << 30,), torch.float32, torch.device("meta")).device.type == "meta"


def test_without_the_library_torch_allocates(monkeypatch):
    monkeypatch.setattr(loader, "unavailable_reason", lambda device_type: "not built")
    tensor = _bytes(20 * MEBIBYTE).fill_(1)
    monkeypatch.undo()
    assert int(tensor[::MEBIBYTE].sum()) == 20
    del tensor
    assert backend.release_memory() == 0
