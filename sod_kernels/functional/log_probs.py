"""`token_log_probs`: log-probabilities of chosen ids and entropy, from the logits of one model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _dispatch, _log_prob_ops, _parallel_log_probs
from sod_kernels._checks import arguments
from sod_kernels._checks.values import SIGNED_DTYPES, check_ids, check_number, check_tensor
from sod_kernels._layout import with_unit_stride
from sod_kernels._parallel import Shard
from sod_kernels.types import LogProbStats

_NAME = "token_log_probs"
_FORWARD = _log_prob_ops.log_probs_forward
_SHARDED_FORWARD = _parallel_log_probs.log_probs_sharded_forward


class TokenLogProbs(NamedTuple):
    """Result of `token_log_probs`; float32 (float64 for float64 logits), nats, both differentiable.

    Attributes:
        log_probs: In the shape of the ids; 0 at absent ones.
        entropy: Of the model per token, in the leading shape.
    """

    log_probs: Tensor
    entropy: Tensor


def token_log_probs(
    student_logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    backend: str = "auto",
) -> TokenLogProbs:
    r"""Look up log-probabilities of a model and compute its entropy, without anything of size (N, V).

    With :math:`p = \mathrm{softmax}(z / \tau)`: :math:`\log p(y)` and :math:`H = -\sum_v p_v \log p_v`. One
    sweep over the logits gives both, one more the gradient of whatever is built on them; what supervised
    fine-tuning and a policy gradient are made of.

    Args:
        student_logits: (N, V) packed or (B, T, V) padded; float64, float32, bfloat16 or float16.
        ids: Leading shape, or leading shape with K ids per token behind it; integer. A negative id is
            absent.
        temperature: Divides the logits, above 0.
        vocab_size: Valid columns; those beyond are not read and get zero gradient. None: all.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        Log-probabilities and entropy.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device or value is wrong.
        BackendUnavailableError: If the backend cannot run here.
    """
    width = arguments.check_logits(_NAME, student_logits, {}, vocab_size)
    check_number(_NAME, "temperature", temperature, above=0.0)
    arguments.check_options(_NAME, "kl", "none", backend)
    leading = student_logits.shape[:-1]
    check_tensor(_NAME, "ids", ids, dtypes=SIGNED_DTYPES, device=student_logits.device)
    if ids.shape[: len(leading)] != leading or ids.dim() > len(leading) + 1:
        raise ValueError(
            f"{_NAME}: ids has shape {tuple(ids.shape)}; wanted {tuple(leading)}, or {tuple(leading)} and K "
            "ids per token behind it."
        )
    is_single = ids.dim() == len(leading)
    wanted = (ids.unsqueeze(-1) if is_single else ids).detach().to(torch.int64)
    check_ids(_NAME, "ids", torch.where(wanted < 0, -1, wanted), low=-1, high=width)
    name = _dispatch.resolve(backend, student_logits.device.type, student_logits.dtype, function=_NAME)
    steps = torch.zeros(leading, dtype=torch.int64, device=ids.device)
    shard = Shard(first=0, width=width, vocab_size=width, group=None)
    stats = sweep(
        student_logits, steps, wanted, temperature=temperature, shard=shard, backend=name, function=_NAME
    )
    log_probs = stats.log_probs.squeeze(-1) if is_single else stats.log_probs
    return TokenLogProbs(log_probs=log_probs, entropy=stats.student_entropy)


def sweep(
    student_logits: Tensor,
    step_ids: Tensor,
    ids: Tensor,
    *,
    temperature: float,
    shard: Shard,
    backend: str,
    function: str,
) -> LogProbStats:
    """Run the forward op, which takes (B, T, V): packed tokens go in as one row and come out as they were.

    Args:
        student_logits: (N, V) or (B, T, V).
        step_ids: Leading shape, int64, -1 where nothing is read.
        ids: Leading shape and K, int64.
        temperature: Divides the logits.
        shard: The columns that the logits are; ids count in the whole vocabulary.
        backend: Resolved name.
        function: Name for messages.

    Returns:
        In the leading shape.
    """
    is_packed = step_ids.dim() == 1
    given = (with_unit_stride(student_logits), step_ids, ids.contiguous())
    tensors = [each.unsqueeze(0) if is_packed else each for each in given]
    if shard.group is None:
        outputs = _FORWARD(*tensors, float(temperature), shard.width, backend, function)
    else:
        options = (float(temperature), shard.width, shard.first, backend, shard.group)
        outputs = _SHARDED_FORWARD(*tensors, *options)
    return LogProbStats._make(each.squeeze(0) if is_packed else each for each in outputs)
