"""How tensors become the arguments of the compiled libraries, which know them by their addresses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# The numbers of the enums in csrc/include/sod.
DIVERGENCES = {"reverse_kl": 0, "forward_kl": 1, "jsd": 2}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def dtype_number(function: str, logits: Tensor) -> int:
    """Number the dtype of the student's logits.

    Args:
        function: Name for the message.
        logits: The student's.

    Returns:
        Its number in the library.

    Raises:
        TypeError: The logits have a dtype without compiled kernels.
    """
    if logits.dtype not in _DTYPES:
        raise TypeError(
            f"native {function}: student_logits has dtype {logits.dtype}, but the compiled kernels take "
            'float32, bfloat16 and float16. Convert the logits, or use backend="reference".'
        )
    return _DTYPES[logits.dtype]


def addresses(tensors: NamedTuple) -> dict[str, int]:
    """Name the addresses like their tensors; the caller keeps the tensors alive.

    Args:
        tensors: Named tensors.

    Returns:
        Address by name, 0 for a tensor without elements.
    """
    fields: Iterable[tuple[str, Tensor]] = tensors._asdict().items()
    return {name: tensor.data_ptr() if tensor.numel() else 0 for name, tensor in fields}
